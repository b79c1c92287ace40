"""What is neither words nor pixels: its tokens by hand, the streams, saving, a modality of one's own, bad input."""

import json
import math
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver_vl import (
    ComputeBudget,
    MediaError,
    Modality,
    PerceiverVLForPreTraining,
    PerceiverVLForRetrieval,
    PerceiverVLModel,
    PerceiverVLProcessor,
    UsageError,
    register_modality,
)
from perceiver_vl.layers.log_mel import log_mel
from perceiver_vl.media.recording import Recording
from perceiver_vl.media.sound import load_sound, read_sound, resample, write_wav
from perceiver_vl.models.budget import TrainingBudget
from perceiver_vl.models.perceiver_vl.flops import cached_vision_flops, encoder_flops
from perceiver_vl.models.perceiver_vl.modalities import (
    MODALITIES,
    SHORTEST,
    Audio,
    TimeSeries,
    load_recording,
    make_modalities,
)
from tiny import AGGREGATIONS, assert_same, differs, tiny_config, tiny_inputs, tiny_model, tiny_processor

AUDIO = {
    "sample_rate": 8000,
    "window": 200,
    "hop": 80,
    "mel_bins": 12,
    "patch_steps": 4,
    "patch_bins": 6,
    "max_seconds": 1.0,
}
SERIES = {"channels": 3, "patch_steps": 5, "max_steps": 32}
BOTH: dict[str, Any] = {"audio": AUDIO, "time_series": SERIES}


def sounds(steps: int = 11, examples: int = 2) -> Tensor:
    return torch.randn(examples, steps, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def series(steps: int = 13) -> Tensor:
    return torch.randn(2, steps, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def tone(path: Path, rate: int = 8000, seconds: float = 0.5, hertz: float = 440.0) -> Path:
    write_wav(path, 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate), rate)
    return path


# --- Tokens ---------------------------------------------------------------------------------------------------------


def naive_log_mel(samples: np.ndarray, rate: int, window: int, hop: int, bins: int, lowest: float) -> np.ndarray:
    """Frame by frame, a discrete Fourier transform as a sum, triangles on the mel scale of HTK."""
    mel = [2595 * math.log10(1 + hertz / 700) for hertz in (lowest, rate / 2)]
    edges = [700 * (10 ** (m / 2595) - 1) for m in np.linspace(*mel, bins + 2)]
    frequencies = [k * rate / window for k in range(window // 2 + 1)]
    around = np.pad(samples, window // 2, mode="reflect")
    hann = [0.5 - 0.5 * math.cos(2 * math.pi * n / window) for n in range(window)]
    rows = []
    for start in range(0, len(samples) + 1, hop):
        frame = around[start : start + window] * hann
        row = []
        power = [
            abs(sum(frame[n] * np.exp(-2j * math.pi * k * n / window) for n in range(window))) ** 2
            for k in range(len(frequencies))
        ]
        for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
            weights = [max(0.0, min((f - low) / (middle - low), (high - f) / (high - middle))) for f in frequencies]
            row.append(math.log10(max(sum(w * p for w, p in zip(weights, power, strict=True)), 1e-10)))
        rows.append(row)
    logs = np.array(rows)
    return (np.maximum(logs, logs.max() - 8) + 4) / 4


def test_log_mel_is_that_of_the_sums() -> None:
    samples = np.random.default_rng(0).standard_normal(97)
    found = log_mel(torch.from_numpy(samples), 800, 32, 10, 5, 20.0)
    np.testing.assert_allclose(found.numpy(), naive_log_mel(samples, 800, 32, 10, 5, 20.0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "values"), [("audio", sounds()), ("time_series", series())])
def test_tokens_are_those_of_patches_taken_one_by_one(name: str, values: Tensor) -> None:
    model = tiny_model(PerceiverVLModel, modalities=BOTH)
    embeddings: Any = model.embeddings
    tokenizer: Any = embeddings.tokenizers[name]
    mask = torch.ones(values.shape[:2], dtype=torch.bool)
    mask[1, -6:] = False
    found, found_mask = embeddings.embed_modality(name, values, mask)
    steps, width = tokenizer.patch_steps, tokenizer.patch_features
    number, row = 0, ["audio", "time_series"].index(name)
    for first in range(0, values.shape[1], steps):
        for column in range(0, values.shape[2], width):
            for example in range(2):
                patch = torch.zeros(steps, width, dtype=torch.float64)
                for step in range(steps):
                    if first + step < values.shape[1] and mask[example, first + step]:
                        patch[step] = values[example, first + step, column : column + width]
                token = tokenizer.projection(patch.flatten())
                token = token + tokenizer.time_embeddings.weight[first // steps]
                token = token + tokenizer.feature_embeddings.weight[column // width]
                token = embeddings.norm(token + embeddings.more_modality_embeddings.weight[row])
                assert_same(found[example, number], token)
                assert bool(found_mask[example, number]) is bool(mask[example, first : first + steps].any())
            number += 1
    assert found.shape[1] == number == make_modalities(BOTH)[name].token_count(values.shape[1])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_padding_changes_nothing(aggregation: str) -> None:
    model = tiny_model(PerceiverVLForRetrieval, modalities=BOTH, modality_aggregation=aggregation)
    words = tiny_inputs()["input_ids"]
    longer = torch.cat([sounds(), torch.full((2, 7, 12), torch.nan, dtype=torch.float64)], dim=1)
    mask = torch.cat([torch.ones(2, 11), torch.zeros(2, 7)], dim=1)
    for of in (model.get_vision_features, lambda *given, **more: model.match_jointly(words, None, *given, **more)):
        assert_same(of(longer, mask, modality="audio"), of(sounds(), modality="audio"))


def test_each_sound_is_encoded_as_it_is_alone() -> None:
    model = tiny_model(PerceiverVLForRetrieval, modalities=BOTH)
    mask = torch.ones(2, 11)
    mask[1, 5:] = 0
    together = model.encode_vision(sounds(), mask, modality="audio")
    assert_same(together[1:], model.encode_vision(sounds()[1:, :5], modality="audio"))


# --- The model ------------------------------------------------------------------------------------------------------


def test_without_modalities_nothing_is_new() -> None:
    torch.manual_seed(0)
    plain = PerceiverVLForPreTraining(tiny_config())
    torch.manual_seed(0)
    more = PerceiverVLForPreTraining(tiny_config(modalities=BOTH))
    assert not any("tokenizers" in name or "more_modality" in name for name in plain.state_dict())
    assert more.state_dict().keys() > plain.state_dict().keys()
    assert tiny_config().modalities == {}
    with pytest.raises(UsageError, match=r"modality 'audio': not of this model, which has none"):
        plain(**tiny_inputs(), modality="audio")


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_streams_agree_and_a_cache_is_the_clip(aggregation: str) -> None:
    model = tiny_model(PerceiverVLForRetrieval, modalities=BOTH, modality_aggregation=aggregation)
    inputs = tiny_inputs()
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    single = model.match_jointly(**words, pixel_values=sounds(), modality="audio")
    assert_same(model(**words, pixel_values=sounds(), modality="audio").vtm_logits, single)
    cache = model.cache_vision(sounds(), modality="audio")
    assert_same(model.match_jointly(**words, vision_cache=cache), single)
    latents, features = model.encode_and_pool_vision(sounds(), modality="audio")
    assert_same(features, model.get_vision_features(sounds(), modality="audio"))
    text = model.encode_text(**words)
    merged = model.merge_matches(model.partial_match(latents), model.partial_match(text))
    assert_same(merged, model.match(latents, text))
    assert differs(features, model.get_vision_features(sounds().flip(1), modality="audio"))


def test_a_video_and_its_sound_are_one_input_array() -> None:
    model = tiny_model(PerceiverVLModel, modalities=BOTH)
    inputs = tiny_inputs()
    clip = model.embed_inputs(inputs["input_ids"], None, inputs["pixel_values"])
    sound = model.embed_inputs(pixel_values=sounds(), modality="audio")
    both = clip.beside(sound)
    assert clip.vision is not None
    assert both.vision is not None
    assert both.vision.shape[1] == clip.vision.shape[1] + 6  # three patches of time, two of bins
    assert both.text is clip.text
    assert differs(model.encode(both), model.encode(clip))
    other_sound = model.embed_inputs(pixel_values=sounds().flip(1), modality="audio")
    assert differs(model.encode(both), model.encode(clip.beside(other_sound)))


def test_gradients_reach_every_new_parameter() -> None:
    model = tiny_model(PerceiverVLForPreTraining, modalities=BOTH)
    words = tiny_inputs()["input_ids"]
    total = torch.zeros((), dtype=torch.float64)
    for name, values in (("audio", sounds(100)), ("time_series", series(32))):
        total = total + model.match_jointly(words, None, values, modality=name).square().sum()
    total.backward()
    new = {name: value for name, value in model.named_parameters() if "tokenizers" in name or "more_modality" in name}
    assert len(new) == 9
    for name, value in new.items():
        assert value.grad is not None, name
        rows = value.grad.abs() if value.ndim == 1 else value.grad.abs().sum(-1)
        assert (rows > 0)[: 25 if "audio.time" in name else None].all(), name


def test_a_model_with_modalities_is_saved_and_loaded(tmp_path: Path) -> None:
    turned = dict(reversed(BOTH.items()))  # what is saved is in the order of names
    model, processor = tiny_model(PerceiverVLForRetrieval, modalities=turned), tiny_processor(["a low tone"])
    processor.modalities = BOTH
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = PerceiverVLForRetrieval.from_pretrained(tmp_path, dtype=torch.float64).eval()
    again = PerceiverVLProcessor.from_pretrained(tmp_path)
    assert loaded.config.modalities == again.modalities == BOTH
    given = {"text": ["a tone", "a low tone"], "audio": [np.ones(3000), tone(tmp_path / "tone.wav")]}
    assert_same(loaded(**again(**given)).vtm_logits, model(**processor(**given)).vtm_logits)


def test_a_processor_without_modalities_is_written_as_before(tmp_path: Path) -> None:
    tiny_processor(["a low tone"]).save_pretrained(tmp_path)
    assert "modalities" not in json.loads((tmp_path / "processor_config.json").read_text())


@pytest.mark.parametrize(
    ("name", "values", "aggregation"),
    [*(("audio", sounds(11, 1), one) for one in AGGREGATIONS), ("time_series", series()[:1], "joint")],
)
def test_operations_are_those_counted(name: str, values: Tensor, aggregation: str) -> None:
    model = tiny_model(PerceiverVLModel, modalities=BOTH, modality_aggregation=aggregation).requires_grad_(False)
    words = tiny_inputs(1)["input_ids"]
    for budget in (ComputeBudget(), ComputeBudget(latents=3, cross_attentions=2)):
        for text in (None, words):
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                model(text, None, values, modality=name, budget=budget)
            wanted = encoder_flops(model.config, values.shape[1], 0 if text is None else 6, budget, name)
            assert counter.get_total_flops() == wanted
        cache = model.cache_vision(values, budget=budget, modality=name)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(words, vision_cache=cache, budget=budget)
        assert counter.get_total_flops() == cached_vision_flops(model.config, values.shape[1], 6, budget, name)


def test_tokens_of_a_sound_are_dropped_in_training() -> None:
    model = tiny_model(PerceiverVLModel, modalities=BOTH)
    whole = model.embed_inputs(pixel_values=sounds(40), modality="audio")
    half = model.embed_inputs(pixel_values=sounds(40), modality="audio", budget=TrainingBudget(token_share=0.5, seed=1))
    assert whole.vision is not None
    assert half.vision is not None
    assert half.vision.shape[1] * 2 == whole.vision.shape[1] == 20
    assert all((whole.vision[0] == token).all(-1).any() for token in half.vision[0])


# --- One's own ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Letters(Modality):
    """A row of letters as numbers, a token each."""

    extensions = frozenset({".letters"})
    most: int = 9

    def tokenizer(self, hidden_size: int) -> nn.Module:
        return LetterTokens(hidden_size, self.most)

    def values(self, recording: Recording) -> Any:
        return recording.values[: self.most, None].astype(np.float32)

    def token_count(self, steps: int) -> int:
        return steps

    def flops(self, steps: int, hidden_size: int) -> int:
        return 2 * steps * hidden_size

    @classmethod
    def load(cls, path: Path) -> tuple[Any, None]:
        return np.array([ord(letter) - 97 for letter in path.read_text()], np.float32), None


class LetterTokens(nn.Module):
    def __init__(self, hidden_size: int, most: int) -> None:
        super().__init__()
        self.projection, self.places = nn.Linear(1, hidden_size), nn.Embedding(most, hidden_size)

    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.projection(values) + self.places.weight[: values.shape[1]], mask


def test_a_modality_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perceiver_vl.models.perceiver_vl.modalities.MODALITIES", dict(MODALITIES))
    monkeypatch.setattr("perceiver_vl.models.perceiver_vl.processing.MODALITIES", MODALITIES)
    with pytest.raises(UsageError, match=r"modalities.letters: not registered"):
        tiny_config(modalities={"letters": {}})
    register_modality("letters", Letters)
    model = tiny_model(PerceiverVLForRetrieval, modalities={"letters": {"most": 4}})
    (tmp_path / "one.letters").write_text("abcabc")
    assert load_recording("letters", tmp_path / "one.letters").values.tolist() == [0, 1, 2, 0, 1, 2]
    vectors = model.get_vision_features(torch.rand(2, 4, 1).double(), modality="letters")
    assert vectors.shape == (2, 12)
    assert encoder_flops(model.config, 4, modality="letters") > 0


class WrongTokens(LetterTokens):
    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(values, mask)[0][..., :-1], mask


def test_a_tokenizer_that_gives_something_else_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(PerceiverVLModel, modalities=BOTH)
    embeddings: Any = model.embeddings
    embeddings.tokenizers["audio"] = WrongTokens(16, 20).double()
    with pytest.raises(
        UsageError, match=r"modality audio: its tokenizer gives tokens \(2, 3, 15\), .* need \(B,M,16\)"
    ):
        model(pixel_values=torch.rand(2, 3, 1).double(), modality="audio")


@pytest.mark.parametrize("name", ["text", "videos", "audio_kwargs", "no name"])
def test_names_that_mean_something_else(name: str) -> None:
    with pytest.raises(UsageError, match=r"need a name of letters"):
        register_modality(name, Letters)


def test_what_is_no_modality_is_not_registered() -> None:
    with pytest.raises(UsageError, match=r"no dataclass that is a Modality"):
        register_modality("spectra", LetterTokens)  # type: ignore[arg-type]


# --- What is given --------------------------------------------------------------------------------------------------


def test_sounds_of_any_rate_become_frames_of_one(tmp_path: Path) -> None:
    kind, processor = Audio(**AUDIO), tiny_processor(["a tone"])
    processor.modalities = BOTH
    file = tone(tmp_path / "tone.wav", rate=16_000, seconds=0.4)
    samples, rate = load_sound(file)
    assert (len(samples), rate) == (6400, 16_000)
    batch = processor(audio=[file, str(tone(tmp_path / "short.wav", seconds=0.2))])
    assert batch["pixel_values"].shape == (2, 41, 12)
    assert batch["frame_mask"].sum(1).tolist() == [41, 21]
    assert not batch["pixel_values"][1, 21:].any()
    array = processor(audio=samples, sampling_rate=16_000)
    assert torch.equal(array["pixel_values"][0], batch["pixel_values"][0])
    assert torch.equal(array["pixel_values"][0], torch.from_numpy(kind.values(Recording("audio", samples, rate))))
    assert processor(audio=torch.from_numpy(samples), return_tensors="np")["pixel_values"].shape == (1, 81, 12)
    long = processor(audio=np.ones(30_000))
    assert long["pixel_values"].shape[1] == kind.max_steps == 101
    tiny_model(PerceiverVLForRetrieval, modalities=BOTH)(**processor(text="a tone", audio=np.ones(30_000)))


def test_a_sound_is_read_again_as_it_was_written(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 1000).astype(np.float32)
    write_wav(tmp_path / "one.wav", samples, 8000)
    assert np.abs(read_sound(tmp_path / "one.wav", 8000) - samples).max() <= 1 / 32768
    assert resample(samples, 8000, 8000) is samples
    assert len(resample(samples, 8000, 4000)) == pytest.approx(500, abs=20)


@pytest.mark.parametrize("rate", [1000, 8000, 44_100, 768_000])
def test_a_short_sound_is_one_whatever_the_window(rate: int) -> None:
    kind = Audio(**(AUDIO | {"window": 8000}))
    short = Recording("audio", np.full(math.ceil(SHORTEST * rate), 0.5, np.float32), rate)
    assert kind.values(short).shape == (1 + 4001 // 80, 12)
    assert np.isfinite(kind.values(short)).all()
    with pytest.raises(UsageError, match=f"at {rate} Hz: need at least 10 ms"):
        kind.values(Recording("audio", short.values[1:], rate))


def test_a_file_that_no_model_can_use_is_named(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"click.wav: audio of 8 samples at 8000 Hz: need at least 10 ms"):
        load_recording("audio", tone(tmp_path / "click.wav", seconds=0.001))
    with pytest.raises(MediaError, match=r"tone.wav: audio of 8 samples at 8000 Hz: need at least 10 ms"):
        load_recording("audio", tone(tmp_path / "tone.wav"), 0.1, 0.101)
    for name, text, message in [
        ("nan.csv", "1,2\nnan,3\n", "holds nothing, or what is no finite number"),
        ("empty.csv", "", "no row in it"),
        ("names.csv", "a,b\n\n", "no row in it"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(MediaError, match=f"{name}: .*{message}"):
            load_recording("time_series", tmp_path / name)


def test_seconds_of_a_sound(tmp_path: Path) -> None:
    file = tone(tmp_path / "tone.wav", seconds=0.5)
    assert len(load_recording("audio", file, 0.1, 0.3)) == 1600
    with pytest.raises(MediaError, match=r"beyond its 0.5 seconds"):
        load_recording("audio", file, 0.7)


def test_series_are_normalised_by_channel_or_not() -> None:
    values = np.array([[1.0, 5.0, 0.0], [3.0, 5.0, 2.0], [5.0, 5.0, 1.0]], np.float32)
    found = TimeSeries(**SERIES).values(Recording("time_series", values))
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(found.std(0), [1, 0, 1], atol=1e-5)
    same = TimeSeries(**SERIES, normalize=False).values(Recording("time_series", values))
    np.testing.assert_array_equal(same, values)


def test_a_table_of_numbers_is_a_series(tmp_path: Path) -> None:
    (tmp_path / "with.csv").write_text("hour,load\n1,2.5\n2,3\n")
    (tmp_path / "without.csv").write_text("1,2.5\n2,3\n")
    for name in ("with.csv", "without.csv"):
        assert load_recording("time_series", tmp_path / name).values.tolist() == [[1, 2.5], [2, 3]]
    (tmp_path / "words.csv").write_text("a,b\nc,d\n")
    with pytest.raises(MediaError, match=r"words.csv: no table of numbers"):
        load_recording("time_series", tmp_path / "words.csv")
    with pytest.raises(MediaError, match=r"gone.csv: no table of numbers"):
        load_recording("time_series", tmp_path / "gone.csv")


def test_a_file_that_the_models_settings_refuse_is_named(tmp_path: Path) -> None:
    (tmp_path / "two.csv").write_text("1,2.5\n2,3\n")
    processor = tiny_processor(["a tone"])
    processor.modalities = BOTH
    with pytest.raises(MediaError, match=r"two.csv: time_series of shape \(2, 2\): need \(T,3\)"):
        processor(time_series=[str(tmp_path / "two.csv")])
    with pytest.raises(MediaError, match=r"two.csv: time_series of shape \(2, 2\): need \(T,3\)"):
        load_recording("time_series", tmp_path / "two.csv", settings=SERIES)


def test_what_was_made_for_a_model_is_what_it_makes_itself(tmp_path: Path) -> None:
    processor = tiny_processor(["a tone"])
    processor.modalities = BOTH
    path = tone(tmp_path / "tone.wav")
    made = load_recording("audio", path, settings=AUDIO)
    own, again = (processor(audio=one)["pixel_values"] for one in (path, made))
    assert torch.equal(own, again)
    processor.modalities = {"audio": AUDIO | {"mel_bins": 2 * AUDIO["mel_bins"]}}
    with pytest.raises(MediaError, match=r"tone.wav: read for Audio\(.*\), not for Audio\("):
        processor(audio=made)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sounds": {}}, r"modalities.sounds: not registered"),
        ({"audio": 16_000}, r"modalities.audio=16000: need a mapping, of sample_rate"),
        ({"audio": {"rate": 8000}}, r"modalities.audio.rate=8000: unknown, choose from sample_rate"),
        ({"audio": {"sample_rate": "8000"}}, r"audio.sample_rate='8000': need int"),
        ({"audio": {"sample_rate": 10}}, r"audio.sample_rate=10: need 1000 to 768000"),
        ({"audio": {"mel_bins": 100}}, r"audio.patch_bins=16: must divide mel_bins=100"),
        (
            {"audio": {"mel_bins": 128}},
            r"audio.mel_bins=128: more than a window of 400 samples at 16000 Hz tells apart",
        ),
        ({"audio": {"hop": 500}}, r"audio.hop=500, audio.window=400"),
        ({"audio": {"max_seconds": 1e9}}, r"audio.max_seconds=1e\+09"),
        ({"audio": {"max_seconds": 0.012}}, r"audio.max_seconds=0.012: need more than half of window=400"),
        ({"audio": {"lowest_frequency": 9000.0}}, r"audio.lowest_frequency=9000"),
        ({"time_series": {"channels": 0}}, r"time_series.channels=0: need a number above 0"),
        ({"time_series": {"channels": True}}, r"time_series.channels=True: need int"),
        ({"time_series": {"normalize": 1}}, r"time_series.normalize=1: need bool"),
    ],
)
def test_settings_that_cannot_be(settings: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny_config(modalities=settings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"audio": [np.ones((2, 3000))]}, r"audio of shape \(2, 3000\): need one channel"),
        ({"audio": np.ones(50)}, r"audio of 50 samples at 8000 Hz: need at least 10 ms"),
        ({"audio": np.array([1.0, np.nan])}, r"holds nothing, or what is no finite number"),
        ({"audio": np.array(["a"])}, r"need an array of numbers"),
        ({"audio": 3}, r"audio of type int: need a path, an array or a tensor"),
        ({"audio": []}, r"audio=\[\]: need at least one"),
        ({"audio": np.ones(3000), "sampling_rate": 3}, r"audio of 3 samples a second: need 1000 to 768000"),
        ({"time_series": np.ones((8, 2))}, r"time_series of shape \(8, 2\): need \(T,3\)"),
        (
            {"audio": np.ones(3000), "time_series": np.ones((8, 3))},
            r"audio and time_series together: call once for each",
        ),
        ({"videos": [Recording("smell", np.ones(3))]}, r"smell: not a modality of this model, which has audio, time_"),
    ],
)
def test_examples_that_cannot_be(given: Any, message: str) -> None:
    processor = tiny_processor(["a tone"])
    processor.modalities = BOTH
    with pytest.raises(UsageError, match=message):
        processor(**given)


def test_tensors_that_cannot_be() -> None:
    model = tiny_model(PerceiverVLModel, modalities=BOTH)
    with pytest.raises(UsageError, match=r"audio of shape \(2, 11, 5\): need \(B,T,12\)"):
        model(pixel_values=sounds()[..., :5], modality="audio")
    with pytest.raises(UsageError, match=r"time_series of 33 steps: more than 32, cut it"):
        model(pixel_values=series(33), modality="time_series")
    with pytest.raises(UsageError, match=r"modality 'smell': not of this model, which has audio, time_series"):
        model(pixel_values=sounds(), modality="smell")
    with pytest.raises(UsageError, match=r"budget frames=2: of pixels, audio has no frames"):
        model(pixel_values=sounds(), modality="audio", budget=ComputeBudget(frames=2))
    with pytest.raises(UsageError, match=r"pixel_values of shape \(2, 11, 12\): need"):
        model(pixel_values=sounds())


def test_files_that_are_no_sound(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(MediaError, match=r"text.wav"):
        load_recording("audio", tmp_path / "text.wav")
    with wave.open(str(tmp_path / "slow.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(20)
        file.writeframes(b"\0\0" * 100)
    with pytest.raises(MediaError, match=r"slow.wav: of 20 samples a second"):
        load_recording("audio", tmp_path / "slow.wav")


def test_a_base_and_modalities_do_not_meet() -> None:
    from tiny import tiny_encoders

    with pytest.raises(UsageError, match=r"modalities=audio: base=linear is of pixels"):
        tiny_config(**tiny_encoders(), modalities={"audio": AUDIO})
