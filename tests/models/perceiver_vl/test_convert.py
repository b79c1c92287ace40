"""The authors' checkpoint becomes a model folder, or one line says why not and nothing is written."""

import pickle
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoProcessor

from perceiver_vl import PerceiverVLError, PerceiverVLForPreTraining, UsageError
from perceiver_vl.models.perceiver_vl.convert import convert
from perceiver_vl.models.perceiver_vl.original_checkpoint import load_released, released_config
from perceiver_vl.models.perceiver_vl.question_answering import (
    PerceiverVLForImageClassification,
    PerceiverVLForQuestionAnswering,
)
from released_checkpoint import forty_words, released_state, save
from tiny import tiny_inputs

HEADS = {"num_attention_heads": 4}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return forty_words(tmp_path / "words")


def test_a_checkpoint_becomes_a_folder_that_loads(tmp_path: Path, tokenizer: Path) -> None:
    state = released_state()
    result = convert(save(tmp_path / "a.ckpt", state), tmp_path / "out", tokenizer=str(tokenizer), **HEADS)
    model, info = PerceiverVLForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.to_dict() == PerceiverVLForPreTraining(model.config).config.to_dict()
    assert (model.config.num_blocks, model.config.self_attentions_per_block) == (3, 2)
    assert (model.config.image_size, model.config.patch_size, model.config.max_frames) == (16, 8, 4)

    base = model.perceiver_vl
    fused = state["transformer.blocks.3.attn.qkv.weight"]
    self_attention = base.encoder.blocks[1].self_attentions[1].attention
    assert torch.equal(
        torch.cat([self_attention.q_proj.weight, self_attention.k_proj.weight, self_attention.v_proj.weight]), fused
    )
    read = base.encoder.blocks[2].cross_attention
    assert torch.equal(read.attention.k_proj.weight, state["transformer.crossatt_blocks_visual.2.attn.k.weight"])
    assert torch.equal(base.embeddings.vision.position_embeddings, state["transformer.pos_embed"][0, 1:])
    assert torch.equal(model.vtm_head.classifier.weight, state["matching_score.fc.weight"][1:])
    assert set(result.conversion.left) == {"token_type_embeddings.weight", "text_embeddings.position_ids"}
    assert {name.split(".")[0] for name in result.conversion.fresh} == {"contrastive"}

    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.image_processor.num_frames == 4
    inputs = processor(text=["wag wah"], images=[torch.zeros(3, 20, 30, dtype=torch.uint8)])
    assert model(**inputs).mlm_logits.shape == (1, inputs["input_ids"].shape[1], 40)


@pytest.mark.parametrize(
    "absent",
    [
        ("text_embeddings.position_ids",),
        ("transformer.temporal_embed",),
        ("matching_score", "mlm_score"),
        ("transformer.mlm_pos", "transformer.mlm_type", "transformer.decoder_block_text"),
        ("text_embeddings", "mlm_score", "transformer.mlm", "transformer.decoder_block_text"),
    ],
)
def test_what_some_checkpoints_lack_starts_fresh(absent: tuple[str, ...]) -> None:
    whole, partial = released_state(), released_state()
    partial = {name: value for name, value in partial.items() if not name.startswith(absent)}
    model = PerceiverVLForPreTraining(released_config(whole, "pretraining", mask_token_id=4, **HEADS))
    places = {theirs: ours for ours, theirs in load_released(model, whole).loaded.items()}
    result = load_released(
        PerceiverVLForPreTraining(released_config(partial, "pretraining", mask_token_id=4, **HEADS)), partial
    )
    expected = {ours for theirs, ours in places.items() if theirs.startswith(absent)}
    assert {name for name in result.fresh if not name.startswith("contrastive")} == expected
    PerceiverVLForPreTraining(released_config(partial, "pretraining", mask_token_id=4, **HEADS))


@pytest.mark.parametrize(
    ("kind", "heads"),
    [(PerceiverVLForQuestionAnswering, {"answers": 7}), (PerceiverVLForImageClassification, {"classes": 3})],
)
def test_a_checkpoint_with_a_head_of_answers_or_classes(
    tmp_path: Path, tokenizer: Path, kind: Any, heads: dict[str, int]
) -> None:
    state = released_state(**heads)  # type: ignore[arg-type]
    state = {name: value for name, value in state.items() if not name.startswith(("matching_score", "mlm_score"))}
    convert(save(tmp_path / "a.ckpt", state), tmp_path / "out", tokenizer=str(tokenizer), **HEADS)
    model = kind.from_pretrained(tmp_path / "out").double()
    inputs = tiny_inputs(frames=1)
    if kind is PerceiverVLForImageClassification:
        inputs = {name: inputs[name] for name in ("pixel_values", "frame_mask")}
    assert model(**inputs).logits.shape == (2, *heads.values())


def test_half_precision_and_safetensors(tmp_path: Path, tokenizer: Path) -> None:
    state = {name: value.half() for name, value in released_state().items() if value.is_floating_point()}
    save_file(state, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "out", tokenizer=str(tokenizer), **HEADS)
    model = PerceiverVLForPreTraining.from_pretrained(tmp_path / "out")
    assert torch.equal(model.perceiver_vl.encoder.latents, state["transformer.latents"].float())
    assert model.dtype == torch.float32


def test_names_of_lightning_are_read_without_lightning(tmp_path: Path, tokenizer: Path) -> None:
    path = "pytorch_lightning.callbacks.model_checkpoint"
    parts = ["pytorch_lightning", "pytorch_lightning.callbacks", path]
    kind = type("ModelCheckpoint", (), {"__module__": path})
    try:
        for part in parts:
            sys.modules[part] = types.ModuleType(part)
        sys.modules[path].ModelCheckpoint = kind  # type: ignore[attr-defined]
        save(tmp_path / "a.ckpt", released_state(), callbacks={kind: {"best_model_score": torch.tensor(1.0)}})
    finally:
        for part in parts:
            del sys.modules[part]
    assert convert(tmp_path / "a.ckpt", tmp_path / "out", tokenizer=str(tokenizer), **HEADS).task == "pretraining"


class Bomb:
    """Writes a file when it is unpickled by someone who runs what a pickle says."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def bad(folder: Path, kind: str) -> tuple[Path, str, type[PerceiverVLError]]:
    """A file that cannot be converted, what is to be said of it, and the kind of error."""
    path, state = folder / f"{kind}.ckpt", released_state()
    match kind:
        case "code":
            return save(path, state, extra=Bomb(folder / "ran")), "holds more than tensors", PerceiverVLError
        case "old code":
            path.write_bytes(pickle.dumps({"state_dict": Bomb(folder / "ran")}))
            return path, "holds more than tensors", PerceiverVLError
        case "truncated":
            whole = save(path, state).read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            return path, "damaged or cut short", PerceiverVLError
        case "empty":
            path.touch()
            return path, "damaged or cut short", PerceiverVLError
        case "text":
            path.write_text("# a page about a checkpoint")
            return path, "not a checkpoint", UsageError
        case "list":
            torch.save([1, 2], path)
            return path, "no state_dict of tensors", PerceiverVLError
        case "another architecture":
            return save(path, {"vit.weight": torch.ones(2)}), "no tensor transformer.latents", PerceiverVLError
        case "another shape":
            state["transformer.blocks.0.mlp.fc2.bias"] = torch.ones(3)
            return save(path, state), "transformer.blocks.0.mlp.fc2.bias of shape (3,)", PerceiverVLError
        case "another part":
            state["transformer.crossatt_blocks_audio.0.norm1.weight"] = torch.ones(16)
            return save(path, state), "crossatt_blocks_audio.0.norm1.weight: has no place", PerceiverVLError
        case "uneven":
            return save(path, released_state(depth=5)), "3 cross-attentions and 5 self-attentions", PerceiverVLError
        case "other words":
            return save(path, released_state(words=41)), "40 tokens, but the word table has 41 rows", UsageError
    raise AssertionError(kind)


KINDS = "code|old code|truncated|empty|text|list|another architecture|another shape|another part|uneven|other words"


@pytest.mark.parametrize("kind", KINDS.split("|"))
def test_bad_checkpoints(tmp_path: Path, tokenizer: Path, kind: str) -> None:
    path, said, error = bad(tmp_path, kind)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(error, match=re.escape(said)) as caught:
        convert(path, tmp_path / "out", tokenizer=str(tokenizer), **HEADS)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == before  # nothing written, nothing run


def test_other_bad_arguments(tmp_path: Path, tokenizer: Path) -> None:
    path = save(tmp_path / "a.ckpt", released_state())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for source, out, given, said in (
        (tmp_path / "none", "out", HEADS, "no such file"),
        (path, "full", HEADS, "is not empty"),
        (path, "out", {}, "num_attention_heads='N'"),
        (path, "out", {"num_attention_heads": 3}, "must divide"),
        (path, "out", {"task": "asking"}, "choose from"),
        (path, "out", HEADS | {"tokenizer": str(tmp_path / "full")}, "cannot be loaded"),
        (path, "out", HEADS | {"num_frames": 5}, "num_frames=5: need 1 to 4"),
        ("hf://owner", "out", HEADS, "need hf://owner/name/file"),
    ):
        with pytest.raises(UsageError, match=said):
            convert(source, tmp_path / out, **({"tokenizer": str(tokenizer)} | given))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
