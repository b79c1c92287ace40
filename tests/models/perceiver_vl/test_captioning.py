"""Captions: words that attend to a clip and to the words before them, generated with a cache and without."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from perceiver_vl import ComputeBudget, PerceiverVLForCaptioning, PerceiverVLForPreTraining, UsageError
from perceiver_vl.models.perceiver_vl.captioning import caption_loss
from tiny import assert_same, tiny_encoders, tiny_inputs, tiny_model

KINDS: dict[str, dict[str, Any]] = {
    "latents": {},
    "frames": {"caption_prefix": "frames", "caption_cross_attentions": 3},
    "encoders": tiny_encoders(),
    "frames of encoders": tiny_encoders() | {"caption_prefix": "frames"},
}
HOW: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 5, "num_return_sequences": 2},
    "beams": {"num_beams": 3},
}


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> PerceiverVLForCaptioning:
    """One of each kind."""
    return captioner(**KINDS[request.param])


def captioner(**changes: Any) -> PerceiverVLForCaptioning:
    ends = {"bos_token_id": 2, "eos_token_id": 3, "max_text_length": 16, "caption_layers": 2}
    return tiny_model(PerceiverVLForCaptioning, **(ends | changes))


def clips_of(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    inputs["frame_mask"][1, -1:] = 0
    return {name: inputs[name] for name in ("pixel_values", "frame_mask")}


def test_no_word_knows_those_after_it(model: PerceiverVLForCaptioning) -> None:
    inputs = tiny_inputs()
    before = model(**inputs).logits
    for place in range(6):
        changed = inputs["input_ids"].clone()
        changed[:, place] = 39 - changed[:, place]
        after = model(**(inputs | {"input_ids": changed})).logits
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.equal(after[:, place], before[:, place])


def test_what_is_said_depends_on_what_is_seen_and_not_on_padding(model: PerceiverVLForCaptioning) -> None:
    inputs = tiny_inputs()
    said = model(**inputs).logits
    other = model(**(inputs | {"pixel_values": inputs["pixel_values"].flip(0)})).logits
    assert (said - other).abs().max() > 1e-3
    left = {name: torch.cat([one.new_zeros(2, 3), one], 1) for name, one in inputs.items() if one.ndim == 2}
    left["frame_mask"] = inputs["frame_mask"]
    assert_same(model(**(inputs | left)).logits[:, 3:], said)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_cache_changes_nothing(model: PerceiverVLForCaptioning, how: str, side: str) -> None:
    inputs = tiny_inputs(words=4)
    inputs["attention_mask"][0, slice(0, 2) if side == "left" else slice(2, 4)] = 0
    found = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        asked = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 8}
        words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        found.append(model.generate(**words, **clips_of(inputs), **asked, **HOW[how], use_cache=use_cache))
    assert torch.equal(found[0].sequences, found[1].sequences)
    for cached, plain in zip(found[0].logits, found[1].logits, strict=True):
        assert_same(cached, plain)


def test_padding_on_the_right_is_padding_on_the_left(model: PerceiverVLForCaptioning) -> None:
    inputs = tiny_inputs(words=4)
    clips, ids = clips_of(inputs), inputs["input_ids"]
    alone = model.generate(ids[:1, 2:], **{name: one[:1] for name, one in clips.items()}, max_new_tokens=6)
    for places in ([0, 1, 2, 3], [2, 3, 0, 1]):
        mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])[:, places]
        rows = torch.stack([ids[0, places], ids[1]])
        mask[1] = 1
        found = model.generate(rows, mask, **clips, max_new_tokens=6)
        length = alone.shape[1] - 2
        assert torch.equal(found[0, 4 : 4 + length], alone[0, 2:])


def test_a_clip_is_encoded_once_for_all_texts_and_beams(model: PerceiverVLForCaptioning) -> None:
    inputs, seen = tiny_inputs(batch=4, words=3), []
    clips = {name: one[:2] for name, one in clips_of(inputs).items()}
    model.perceiver_vl.embeddings.vision.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    found = model.generate(inputs["input_ids"], **clips, num_beams=2, max_new_tokens=5)
    assert seen == [2]
    prefix = model.encode_prefix(**clips)
    assert torch.equal(model.generate(inputs["input_ids"], prefix=prefix, num_beams=2, max_new_tokens=5), found)
    each = {name: one.repeat_interleave(2, 0) for name, one in clips.items()}
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert_same(model(**words, **clips).logits, model(**words, **each).logits)
    cache = model(**words, **clips, use_cache=True).past_key_values
    assert {len(part) for part in cache.prefix} == {2}


def test_beams_find_what_is_likelier() -> None:
    model, inputs = captioner(), tiny_inputs()
    how = {"max_new_tokens": 5, "min_new_tokens": 5}
    likely = []
    for beams in (1, 6):
        found = model.generate(**clips_of(inputs), num_beams=beams, **how)
        logits = model(found[:, :-1], **clips_of(inputs)).logits.log_softmax(-1)
        likely.append(logits.gather(2, found[:, 1:, None]).sum((1, 2)))
    assert bool((likely[1] >= likely[0] - 1e-9).all())


def test_a_clip_met_before_is_as_good(tmp_path: Path) -> None:
    model, inputs = captioner(), tiny_inputs()
    clips = clips_of(inputs)
    cache = model.cache_vision(**clips)
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert_same(model(**words, vision_cache=cache).logits, model(**words, **clips).logits)
    assert torch.equal(model.generate(vision_cache=cache), model.generate(**clips))
    budget = ComputeBudget(frames=1, latents=3)
    assert not torch.equal(model(**words, **clips, budget=budget).logits, model(**words, **clips).logits)
    model.save_pretrained(tmp_path)
    again = PerceiverVLForCaptioning.from_pretrained(tmp_path, dtype=torch.float64)
    assert (again.generation_config.bos_token_id, again.generation_config.eos_token_id) == (2, 3)
    assert torch.equal(again.generate(**clips), model.generate(**clips))


def test_pre_trained_weights_start_a_captioner(tmp_path: Path) -> None:
    for changes in ({}, tiny_encoders()):
        pretrained = tiny_model(PerceiverVLForPreTraining, **changes)
        pretrained.save_pretrained(tmp_path)
        model, report = PerceiverVLForCaptioning.from_pretrained(
            tmp_path, dtype=torch.float64, output_loading_info=True
        )
        assert {name.split(".")[0] for name in report["missing_keys"]} == {"caption_words", "caption_decoder"}
        assert not report["unexpected_keys"]
        assert not model.caption_words.bias.any()
        assert all(value.isfinite().all() for value in model.parameters())
        if changes:  # the words of a text encoder are what they were
            table = pretrained.perceiver_vl.get_input_embeddings().weight
            assert torch.equal(model.perceiver_vl.get_input_embeddings().weight, table)
            assert not model.perceiver_vl.get_input_embeddings().weight.requires_grad


def test_each_text_has_the_same_say_in_the_loss() -> None:
    logits, labels = torch.randn(2, 5, 7), torch.tensor([[1, 2, 3, 4, 5], [1, 6, -100, -100, -100]])
    surprise = -logits.log_softmax(-1)
    first = torch.stack([surprise[0, place, labels[0, place + 1]] for place in range(4)]).mean()
    said = torch.cat([logits[0, :4], logits[1, :1]])
    torch.testing.assert_close(caption_loss(said, labels), (first + surprise[1, 0, 6]) / 2)
    assert caption_loss(said[:0], torch.full_like(labels, -100)) == 0
    model, inputs = captioner(layer_drop=0.0), tiny_inputs()
    inputs["labels"] = inputs["input_ids"].masked_fill(torch.arange(6) > torch.tensor([[2], [5]]), -100)
    evaluated, trained = model(**inputs), model.train()(**inputs)
    assert_same(trained.loss, evaluated.loss)
    assert_same(trained.logits, torch.cat([evaluated.logits[0, :2], evaluated.logits[1, :5]]))


def test_the_loss_is_of_all_words_however_many_logits_are_kept() -> None:
    model, inputs = captioner(), tiny_inputs()
    ids, clips = inputs["input_ids"], clips_of(inputs)
    whole, last = model(ids, **clips, labels=ids), model(ids, **clips, labels=ids, logits_to_keep=2)
    torch.testing.assert_close(last.loss, whole.loss)
    torch.testing.assert_close(last.logits, whole.logits[:, -2:])


def test_what_cannot_be_is_refused_in_a_line() -> None:
    model, inputs = captioner(), tiny_inputs()
    clips = clips_of(inputs)
    with pytest.raises(
        UsageError, match=r"^max_new_tokens=16: [^\n]+ 16 tokens [^\n]+; set max_new_tokens=15 or fewer$"
    ):
        model.generate(**clips, max_new_tokens=16)
    with pytest.raises(UsageError, match=r"^nothing to see: give pixel_values[^\n]+$"):
        model.generate(inputs["input_ids"])
    with pytest.raises(UsageError, match=r"^text of 17 tokens: longer than max_text_length=16, truncate it$"):
        model(torch.ones(2, 17, dtype=torch.long), **clips)
    with pytest.raises(UsageError, match=r"^3 texts about 2 clips: need as many texts about each clip$"):
        model(torch.ones(3, 4, dtype=torch.long), **clips)
    with pytest.raises(UsageError, match=r"^input_ids=None: this model's configuration has no bos_token_id[^\n]+$"):
        captioner(bos_token_id=None).generate(**clips)
    frames = captioner(caption_prefix="frames")
    with pytest.raises(UsageError, match=r"^vision_cache: does not hold the frames[^\n]+give pixel_values$"):
        frames.generate(vision_cache=frames.cache_vision(**clips))
    with torch.no_grad():
        cache = model(inputs["input_ids"][:, :4], **clips, use_cache=True).past_key_values
    with pytest.raises(UsageError, match=r"^past_key_values: of another sequence; leave it out"):
        model.generate(inputs["input_ids"].flip(1), **clips, past_key_values=cache, max_new_tokens=2)
    with pytest.raises(UsageError, match=r"^past_key_values: of 2 sequences, here are 1; give the same ones$"):
        model(inputs["input_ids"][:1, 4:5], past_key_values=cache)
    with pytest.raises(UsageError, match=r"^attention_mask of shape \(2, 3\): need \(2, 5\), of all tokens so far$"):
        model(inputs["input_ids"][:, 4:5], torch.ones(2, 3), past_key_values=cache)
    with pytest.raises(UsageError, match=r"^past_key_values: of another model; leave it out"):
        captioner(caption_layers=1)(inputs["input_ids"][:, 4:5], past_key_values=cache)
    for name, value in {"caption_layers": 0, "caption_cross_attentions": 4, "caption_prefix": "words"}.items():
        with pytest.raises(UsageError, match=rf"^{name}={value!r}: [^\n]+$"):
            captioner(**{name: value})
