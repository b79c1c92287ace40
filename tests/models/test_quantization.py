"""Data types, compiling and threads: what they change, and what they must not."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from perceiver_vl import ComputeBudget, PerceiverVLForRetrieval, UsageError
from perceiver_vl.bench.profiling import count_flops
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.models.quantization import DTYPES, Int8Linear, compile_encoder, set_dtype
from perceiver_vl.utils.threads import physical_cores, use_threads
from tiny import tiny_config, tiny_inputs, tiny_processor


@pytest.fixture
def model() -> PerceiverVLForRetrieval:
    torch.manual_seed(0)
    return PerceiverVLForRetrieval(tiny_config()).eval()


eights = st.integers(1, 6).map(lambda times: 8 * times)


@given(rows=st.integers(1, 9), sizes=st.tuples(eights, eights), seed=st.integers(0, 99))
def test_whole_numbers_are_as_near_as_their_rounding(rows: int, sizes: tuple[int, int], seed: int) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(*sizes)
    x = torch.randn(2, rows, sizes[0]) * torch.logspace(-3, 3, rows)[:, None]  # each row has a scale of its own
    with torch.no_grad():
        found, wanted = Int8Linear(linear)(x), linear(x)
        error = (found - wanted).abs() / (x.abs().amax(-1, keepdim=True) * linear.weight.abs().amax(-1))
    assert found.shape == wanted.shape
    assert error.max() <= sizes[0] / 127 + 1e-4  # half a step of each of the two factors


def test_zeros_and_what_is_not_a_number_stay_so() -> None:
    linear = Int8Linear(nn.Linear(8, 8))
    torch.testing.assert_close(linear(torch.zeros(3, 8)), linear.bias.expand(3, 8))
    assert linear(torch.tensor([[float("nan")] * 8])).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("budget", [ComputeBudget(), ComputeBudget(latents=3, cross_attentions=1)])
def test_every_stream_runs_in_every_dtype(model: PerceiverVLForRetrieval, dtype: str, budget: ComputeBudget) -> None:
    inputs = tiny_inputs()
    inputs["pixel_values"] = inputs["pixel_values"].float()
    pixels, text = (inputs["pixel_values"], inputs["frame_mask"]), (inputs["input_ids"], inputs["attention_mask"])
    other = copy.deepcopy(model)
    set_dtype(other, dtype)
    with torch.inference_mode():
        pairs = [
            (model.get_vision_features(*pixels, budget), other.get_vision_features(*pixels, budget)),
            (model.match_jointly(**inputs, budget=budget), other.match_jointly(**inputs, budget=budget)),
        ]
        cached = other.match_jointly(*text, vision_cache=other.cache_vision(*pixels, budget), budget=budget)
        pairs.append((pairs[1][1], cached))
        for wanted, found in pairs:
            torch.testing.assert_close(found.float(), wanted.float(), rtol=0, atol=0.15)
    assert (dtype == "float32") == bool((pairs[0][0] == pairs[0][1]).all())


def test_int8_rounds_the_encoder_and_counts_as_many_operations(model: PerceiverVLForRetrieval) -> None:
    other = copy.deepcopy(model)
    set_dtype(other, "int8")
    whole = [module for module in other.perceiver_vl.encoder.modules() if isinstance(module, Int8Linear)]
    assert len(whole) == 6 * 3 * 3  # six products of each cross-attention and its two self-attentions
    assert not any(isinstance(module, Int8Linear) for module in other.decoder.modules())
    pixels = torch.randn(1, 3, 3, 16, 16)
    counted = [count_flops(lambda one=one: one.encode_vision(pixels)) for one in (model, other)]  # type: ignore[misc]
    assert counted[0] == counted[1]


def test_a_cache_of_other_whole_numbers_is_refused(model: PerceiverVLForRetrieval) -> None:
    pixels, words = torch.randn(1, 3, 3, 16, 16), torch.randint(5, 40, (1, 6))
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.perceiver_vl.encoder.vision_cross_attentions[0].attention.k_proj.weight.mul_(-1)  # as large as before
    set_dtype(model, "int8")
    set_dtype(changed, "int8")
    with torch.inference_mode(), pytest.raises(UsageError, match="made by another model"):
        changed.match_jointly(words, vision_cache=model.cache_vision(pixels))


def test_a_folder_is_loaded_in_the_dtype_asked_for(model: PerceiverVLForRetrieval, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    tiny_processor(["a red circle"]).save_pretrained(tmp_path)
    for dtype, kept in ((None, torch.float32), ("bfloat16", torch.bfloat16), ("int8", torch.bfloat16)):
        assert load_retriever(tmp_path, "cpu", dtype)[0].logit_scale.dtype == kept
    with pytest.raises(UsageError, match=r"^dtype=float16: choose from float32, bfloat16, int8$"):
        load_retriever(tmp_path, "cpu", "float16")


def test_a_compiled_encoder_gives_the_same(model: PerceiverVLForRetrieval, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    compiled = torch.compile

    def quick(function: object, mode: str) -> object:
        modes.append(mode)
        return compiled(function, backend="eager")  # type: ignore[call-overload]

    monkeypatch.setattr(torch, "compile", quick)
    pixels = torch.randn(2, 3, 3, 16, 16)
    with torch.inference_mode():
        wanted = model.get_vision_features(pixels)
        compile_encoder(model)
        torch.testing.assert_close(model.get_vision_features(pixels), wanted)
    assert modes == ["default"]
    torch._dynamo.reset()


def test_compiling_needs_a_compiler(model: PerceiverVLForRetrieval, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UsageError, match=r"^compile: needs a C\+\+ compiler"):
        compile_encoder(model)


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert physical_cores() >= 1
    before = torch.get_num_threads()
    try:
        use_threads(3)
        assert torch.get_num_threads() == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        use_threads()  # the environment has said it already
        assert torch.get_num_threads() == 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        use_threads()
        assert torch.get_num_threads() == physical_cores()
    finally:
        torch.set_num_threads(before)
