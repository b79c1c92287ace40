"""A bridge to a language model: what it shows it, what it says, and that it depends on nothing else."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, GenerationConfig

from perceiver_vl import ComputeBudget, LanguageBridgeForConditionalGeneration, PerceiverVLConfig, UsageError
from perceiver_vl.models.language_bridge.flops import bridge_flops
from perceiver_vl.models.language_bridge.language_model import language_fields, load_language_model
from perceiver_vl.models.perceiver_vl.captioning import caption_loss
from small_language_models import END, language_config, save_bytes_tokenizer, save_language_model
from tiny import assert_same, tiny_config, tiny_inputs, tiny_model

WORDS = 40
SHOWN: dict[str, dict[str, Any]] = {
    "latents": {},
    "two blocks": {"bridge_blocks": [0, -1], "bridge_tokens": 2},
    "layers": {"bridge_blocks": [1, 2], "bridge_layers": [1, -1], "bridge_tokens": 4},
}


def bridge(kind: str = "gpt2", shown: str = "latents", **changes: Any) -> LanguageBridgeForConditionalGeneration:
    """With weights none of which is zero, float64."""
    same = {"bos_token_id": 2, "eos_token_id": 3, "mask_token_id": 0, "max_text_length": 16}
    config = language_config(kind, WORDS)
    return tiny_model(LanguageBridgeForConditionalGeneration, language_config=config, **(same | SHOWN[shown] | changes))


def clips_of(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in ("pixel_values", "frame_mask")}


def shown_by_hand(model: LanguageBridgeForConditionalGeneration, pixel_values: Tensor) -> list[Tensor]:
    """What each of the blocks says of one clip, through the linear layer: a list of `(n,W)`."""
    states = model.perceiver_vl(pixel_values=pixel_values, output_hidden_states=True).hidden_states[1:]
    found = []
    for block in model.config.bridge_blocks:
        last = block in (-1, len(states) - 1)
        latents = states[block][0] if last else model.perceiver_vl.encoder.norm(states[block])[0]
        number = model.config.bridge_tokens or len(latents)
        groups = [
            latents[place * len(latents) // number : -(-(place + 1) * len(latents) // number)].mean(0)
            for place in range(number)
        ]
        found.append(torch.stack(groups) @ model.bridge.weight.T + model.bridge.bias)
    return found


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mamba"])
@pytest.mark.parametrize("shown", ["latents", "two blocks"])
def test_soft_tokens_are_vectors_before_the_words(kind: str, shown: str) -> None:
    model, inputs = bridge(kind, shown), tiny_inputs(words=5)
    inputs["frame_mask"][1, -1:] = 0
    logits = model(input_ids=inputs["input_ids"], **clips_of(inputs)).logits
    language = model.language_model.model
    for row, frames in enumerate((3, 2)):
        soft = torch.cat(shown_by_hand(model, inputs["pixel_values"][row : row + 1, :frames]))
        words = language.get_input_embeddings()(inputs["input_ids"][row])
        assert_same(logits[row], language(inputs_embeds=torch.cat([soft, words])[None]).logits[0, len(soft) :])


def test_layers_find_vectors_in_the_place_of_soft_tokens() -> None:
    model, inputs = bridge("gpt2", "layers"), tiny_inputs(batch=1, words=5)
    gpt2 = model.language_model.model.transformer
    x = torch.cat([model.soft_tokens, gpt2.wte(inputs["input_ids"][0])])[None]
    x = x + gpt2.wpe.weight[: x.shape[1]]
    later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    unseen = torch.zeros(later.shape, dtype=x.dtype).masked_fill(later, -torch.inf)[None, None]
    for number, layer in enumerate(gpt2.h):
        for own, place in zip(shown_by_hand(model, inputs["pixel_values"]), (1, 2), strict=True):
            if number == place:
                x = torch.cat([own[None], x[:, len(own) :]], 1)
        found = layer(x, attention_mask=unseen)
        x = found[0] if isinstance(found, tuple) else found
    wanted = model.language_model.model.lm_head(gpt2.ln_f(x))[:, 4:]
    assert_same(model(input_ids=inputs["input_ids"], **clips_of(inputs)).logits, wanted)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt", "mamba"])
@pytest.mark.parametrize("shown", ["latents", "layers"])
def test_padding_changes_nothing(kind: str, shown: str) -> None:
    """On either side, of words that are read, and of those that are gone on with."""
    model, inputs = bridge(kind, shown), tiny_inputs(words=5)
    alone = []
    for row, length in ((0, 3), (1, 5)):
        one = {"input_ids": inputs["input_ids"][row : row + 1, :length]}
        one |= {name: values[row : row + 1] for name, values in clips_of(inputs).items()}
        alone.append((model(**one), model.generate(**one, max_new_tokens=4)))
    for words, mask, real in (
        ([[0, 0], []], [[0, 0, 1, 1, 1], [1] * 5], slice(2, 5)),
        ([[], [0, 0]], [[1, 1, 1, 0, 0], [1] * 5], slice(0, 3)),
    ):
        first = inputs["input_ids"][0, :3].tolist()
        ids = torch.tensor([[*words[0], *first, *words[1]], inputs["input_ids"][1].tolist()])
        asked = {"input_ids": ids, "attention_mask": torch.tensor(mask), **clips_of(inputs)}
        logits = model(**asked).logits
        assert_same(logits[0, real], alone[0][0].logits[0])
        assert_same(logits[1], alone[1][0].logits[0])
        said = model.generate(**asked, max_new_tokens=4)
        assert torch.equal(said[:, :5], ids)
        assert torch.equal(said[0, 5:], alone[0][1][0, 3:])
        assert torch.equal(said[1, 5:], alone[1][1][0, 5:])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("shown", ["two blocks", "layers"])
def test_generating_is_a_greedy_loop_with_a_cache_and_without(kind: str, shown: str) -> None:
    model, inputs = bridge(kind, shown, eos_token_id=None), tiny_inputs(words=3)
    words = inputs["input_ids"]
    with torch.no_grad():
        for _ in range(5):
            logits = model(input_ids=words, **clips_of(inputs)).logits[:, -1]
            words = torch.cat([words, logits.argmax(-1, keepdim=True)], 1)
    asked = {"input_ids": inputs["input_ids"], **clips_of(inputs)}
    for how in ({"max_new_tokens": 5}, {"max_length": 8}, {"max_new_tokens": 5, "use_cache": False}):
        assert torch.equal(model.generate(**asked, **how), words)
    beams = [model.generate(**asked, max_new_tokens=5, num_beams=3, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*beams)
    torch.manual_seed(0)
    drawn = model.generate(**asked, do_sample=True, num_return_sequences=2, max_new_tokens=5)
    assert drawn.shape == (4, 8)
    assert torch.equal(drawn[:, :3], inputs["input_ids"].repeat_interleave(2, 0))
    told = model.generate(**asked, max_new_tokens=5, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(told.sequences, words)
    assert len(told.logits) == 5


def test_texts_about_the_same_clip_and_texts_that_begin_alone() -> None:
    model, inputs = bridge("llama", "layers"), tiny_inputs(batch=4, words=3)
    clips = {name: one[:2] for name, one in clips_of(inputs).items()}
    prefix = model.encode_prefix(**clips)
    twice = prefix.rows(torch.tensor([0, 0, 1, 1]))
    assert_same(model(inputs["input_ids"], **clips).logits, model(inputs["input_ids"], prefix=twice).logits)
    begun = model.generate(**clips, max_new_tokens=3)
    assert torch.equal(begun, model.generate(torch.tensor([[2], [2]]), prefix=prefix, max_new_tokens=3))
    cache = model.perceiver_vl.cache_vision(**clips)
    assert_same(model.encode_prefix(vision_cache=cache).embeddings, prefix.embeddings)


@pytest.mark.parametrize("shown", SHOWN)
def test_the_bridge_alone_learns_unless_more_is_asked(shown: str) -> None:
    """The loss is that of captions; what is frozen drops nothing, so that it is the same twice."""
    model, inputs = bridge("gpt2", shown, layer_drop=0.9, hidden_dropout_prob=0.5), tiny_inputs(words=5)
    model.perceiver_vl.requires_grad_(False)
    labels = inputs["input_ids"].clone()
    labels[0, :2] = -100
    inputs["attention_mask"][1, 3:], labels[1, 3:] = 0, -100
    whole = model(**inputs, labels=labels)
    assert_same(whole.loss, caption_loss(whole.logits[:, :-1][labels[:, 1:] != -100], labels))
    model.train()
    found = model(**inputs, labels=labels)
    assert_same(found.loss, whole.loss)
    found.loss.backward()
    own = {"bridge.weight", "bridge.bias", *(["soft_tokens"] if shown == "layers" else [])}
    assert {name for name, weight in model.named_parameters() if weight.grad is not None} == own
    assert all(weight.grad.abs().max() > 0 for name, weight in model.named_parameters() if name in own)

    model.perceiver_vl.requires_grad_(True)
    model.train()
    assert model.perceiver_vl.training
    assert not model.language_model.model.training
    model(**inputs, labels=labels).loss.backward()
    assert model.perceiver_vl.encoder.latents.grad.abs().max() > 0
    assert all(weight.grad is None for weight in model.language_model.parameters())


def test_nearly_all_is_frozen_at_real_sizes() -> None:
    with torch.device("meta"):
        config = language_config("gpt2", 50257, 1024)
        config.hidden_size, config.num_hidden_layers, config.num_attention_heads = 768, 12, 12
        base = tiny_config(language_config=config, vocab_size=50257, mask_token_id=0).to_dict()
        sizes = {"hidden_size": 768, "num_attention_heads": 12, "num_latents": 128, "self_attentions_per_block": 4}
        model = LanguageBridgeForConditionalGeneration(PerceiverVLConfig.from_dict(base | sizes))
    model.perceiver_vl.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) < 0.01 * model.num_parameters()


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_it_is_saved_whole_and_loads_elsewhere(kind: str, tmp_path: Path) -> None:
    save_language_model(tmp_path / "language", kind)
    model = bridge(kind, "layers").float()
    model.save_pretrained(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    shutil.rmtree(tmp_path / "language")
    inputs = tiny_inputs()
    inputs["pixel_values"] = inputs["pixel_values"].float()
    for loads in (LanguageBridgeForConditionalGeneration, AutoModelForImageTextToText):
        again, told = loads.from_pretrained(tmp_path / "there", output_loading_info=True)
        assert type(again) is LanguageBridgeForConditionalGeneration
        assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert torch.equal(again.eval()(**inputs).logits, model(**inputs).logits)
        assert not any(weight.requires_grad for weight in again.language_model.parameters())
        words = again.language_model.model.get_output_embeddings().weight
        assert words is again.get_input_embeddings().weight
    with pytest.raises(UsageError, match=r"^language_config=None"):
        LanguageBridgeForConditionalGeneration(tiny_config())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("shown", SHOWN)
def test_it_costs_what_the_formula_says(kind: str, shown: str) -> None:
    model, inputs = bridge(kind, shown), tiny_inputs(batch=1, words=5)
    for budget in (ComputeBudget(), ComputeBudget(frames=2, latents=5)):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**inputs, budget=budget)
        assert sum(bridge_flops(model.config, 3, 5, budget)) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"language_config": None, "bridge_tokens": 2}, "of a model with a language_config"),
        ({"caption_prefix": "frames"}, "is shown latents"),
        ({"bridge_blocks": [3]}, r"bridge_blocks=\[3\]: need different ones of the 3"),
        ({"bridge_blocks": [-1, 2]}, r"bridge_blocks=\[-1, 2\]: need different ones"),
        ({"bridge_layers": [3]}, r"bridge_layers=\[3\]: need different ones of the 3"),
        ({"bridge_layers": [0, 1]}, "a layer for each of them or none"),
        ({"bridge_blocks": []}, "need a block"),
        ({"bridge_tokens": 7}, "bridge_tokens=7: need 1 to the model's num_latents=6"),
        ({"max_text_length": 91}, "with 6 soft tokens more than the 96 positions"),
        ({"vocab_size": 39}, "vocab_size=39: the language model has 40 words"),
    ],
)
def test_what_cannot_be_shown_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        tiny_config(**({"language_config": language_config("gpt2", WORDS), "mask_token_id": 0} | changes))


def test_calls_that_cannot_be() -> None:
    model, inputs = bridge(shown="two blocks"), tiny_inputs()
    with pytest.raises(UsageError, match="nothing to see"):
        model(inputs["input_ids"])
    with pytest.raises(UsageError, match=r"text of 17 tokens: longer than max_text_length=16"):
        model(torch.ones(2, 17, dtype=torch.long), **clips_of(inputs))
    with pytest.raises(UsageError, match=r"max_new_tokens=11: .* set max_new_tokens=10 or fewer"):
        model.generate(inputs["input_ids"], **clips_of(inputs), max_new_tokens=11)
    for settings in (GenerationConfig(max_new_tokens=500), GenerationConfig(max_length=500)):
        with pytest.raises(UsageError, match=r"set max_new_tokens=10 or fewer"):
            model.generate(inputs["input_ids"], **clips_of(inputs), generation_config=settings)
    with pytest.raises(UsageError, match=r"max_new_tokens=1: .* give fewer words"):
        model.generate(torch.ones(2, 16, dtype=torch.long), **clips_of(inputs), max_new_tokens=1)
    with pytest.raises(UsageError, match="resize it before"):
        model.resize_token_embeddings(99)
    other = bridge(bridge_blocks=[2])
    with pytest.raises(UsageError, match=r"budget blocks=2: the language model is shown bridge_blocks=2"):
        other.encode_prefix(**clips_of(inputs), budget=ComputeBudget(blocks=2))


def test_what_is_no_language_model_is_told_in_a_line(tmp_path: Path) -> None:
    def refused(call: Any, folder: Path, *said: str) -> None:
        with pytest.raises(UsageError) as caught:
            call(str(folder))
        assert "\n" not in str(caught.value)
        assert all(one in str(caught.value) for one in (str(folder), *said))

    def fields(source: str) -> Any:
        return language_fields(source, 16)

    refused(fields, tmp_path / "none", "cannot be loaded")
    save_language_model(tmp_path / "bert", "bert")
    refused(load_language_model, tmp_path / "bert", "depends on those after it", "name a causal one")
    save_language_model(tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    refused(load_language_model, tmp_path / "bare", "cannot be loaded")
    save_language_model(tmp_path / "cut")
    whole = (tmp_path / "cut" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(whole[:100])
    refused(load_language_model, tmp_path / "cut", "cannot be loaded")
    save_language_model(tmp_path / "silent")
    for file in (tmp_path / "silent").glob("tokenizer*"):
        file.unlink()
    refused(fields, tmp_path / "silent", "knows no words, save its tokenizer.json")
    part = save_language_model(tmp_path / "part")
    state = {name: one for name, one in part.state_dict().items() if "h.1." not in name and name != "lm_head.weight"}
    part.save_pretrained(tmp_path / "part", state_dict=state)
    refused(load_language_model, tmp_path / "part", "of its weights (transformer.h.1.", "save all of them")
    save_language_model(tmp_path / "words")
    save_bytes_tokenizer(tmp_path / "words", ["many other words than before are in this text"] * 4)
    assert fields(str(tmp_path / "words"))[0].pad_token == END
    small = language_config("gpt2", 100)
    small.save_pretrained(tmp_path / "words")
    refused(fields, tmp_path / "words", "the model 100; save the tokenizer that it was trained with")
