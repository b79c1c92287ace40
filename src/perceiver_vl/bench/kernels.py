"""What the same forward costs in other forms: attention written out, `scaled_dot_product_attention`, compiled; in
float32, in bfloat16 and in int8.

The runs are interleaved, so that a machine whose speed drifts slows all forms alike; the ratios are what to trust.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perceiver_vl.bench.cost_settings import TEXT_TOKENS
from perceiver_vl.bench.profiling import peak_memory_mib, time_interleaved
from perceiver_vl.bench.tables import BenchReport, Section, or_dash
from perceiver_vl.models.perceiver_vl import PerceiverVLModel
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.quantization import set_dtype
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.timing import MatrixProduct

FORMS = (
    *((form, dtype) for dtype in ("float32", "bfloat16") for form in ("eager", "sdpa", "compiled")),
    ("sdpa", "int8"),
)
REFERENCE = ("sdpa", "float32")


@dataclass(frozen=True)
class Form:
    """One row: median milliseconds of a forward and their range; how many times as fast as sdpa in float32 (None where
    that was not measured); the most memory that it holds beside model and inputs in MiB; and how far the latents are
    from those of sdpa in float32: the largest difference, and the norm of all over the norm of the latents.
    """

    form: str
    dtype: str
    milliseconds: float
    fastest: float
    slowest: float
    speedup: float | None
    peak_mib: float
    difference: float
    relative_difference: float


@dataclass(frozen=True)
class KernelReport(BenchReport):
    """The rows, and what was encoded."""

    forms: list[Form]
    frames: int
    batch_size: int

    def sections(self) -> list[Section]:
        """A row a form."""
        rows = [
            (
                row.form,
                row.dtype,
                f"{row.milliseconds:.0f}",
                f"{row.fastest:.0f}",
                f"{row.slowest:.0f}",
                or_dash(row.speedup, ".2f"),
                f"{row.peak_mib:.0f}",
                f"{row.relative_difference:.1e}",
            )
            for row in self.forms
        ]
        title = f"encoding {self.batch_size} × {self.frames} frames and {TEXT_TOKENS} words, base size"
        columns = ("attention", "dtype", "ms", "fastest", "slowest", "speedup", "MiB", "difference")
        note = (
            "Speedup: times as fast as sdpa in float32; difference: norm of that of the latents over the latents' norm."
        )
        return [Section(title, columns, rows, (note,))]


@torch.inference_mode()
def measure_kernels(
    config: PerceiverVLConfig | None = None,
    *,
    frames: int = 8,
    batch_size: int = 1,
    runs: int = 5,
    seed: int = 0,
    device: str | torch.device = "cpu",
    forms: Sequence[tuple[str, str]] = FORMS,
    progress: bool = False,
) -> KernelReport:
    """Encode the same random clips with 40 words in each of `forms`, at base size unless `config` says.

    Compiling needs a C++ compiler (CPU) or Triton (GPU).
    """
    config = config or PerceiverVLConfig()
    models = {dtype: _model(config, dtype, seed, device) for dtype in {REFERENCE[1], *(dtype for _, dtype in forms)}}
    inputs = _inputs(config, frames, batch_size, seed, device)
    forwards = [_forward(models[dtype], form, inputs) for form, dtype in forms]
    with ProgressBars(progress) as stages:
        advance = stages.stage("Compiling and measuring memory", len(forms))
        latents, peaks = [], []
        for forward in forwards:
            latents.append(forward().float())
            peaks.append(peak_memory_mib(forward))
            advance()
        advance = stages.stage("Measuring time", runs * len(forms))
        timings = time_interleaved(forwards, runs, MatrixProduct(2 * config.hidden_size, device), advance).timings
    exact = _forward(models[REFERENCE[1]], REFERENCE[0], inputs)()
    reference = dict(zip(forms, timings, strict=True)).get(REFERENCE)
    rows = [
        Form(
            *form,
            timing.milliseconds,
            timing.fastest,
            timing.slowest,
            reference.milliseconds / timing.milliseconds if reference else None,
            peak,
            (found - exact).abs().max().item(),
            ((found - exact).norm() / exact.norm()).item(),
        )
        for form, timing, peak, found in zip(forms, timings, peaks, latents, strict=True)
    ]
    return KernelReport(rows, frames, batch_size, runs=runs, seed=seed)


def _model(config: PerceiverVLConfig, dtype: str, seed: int, device: str | torch.device) -> PerceiverVLModel:
    torch.manual_seed(seed)
    model = PerceiverVLModel(config).eval()
    set_dtype(model, dtype)
    return model.to(device)


def _inputs(
    config: PerceiverVLConfig, frames: int, batch_size: int, seed: int, device: str | torch.device
) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    size = config.image_size
    tokens = min(TEXT_TOKENS, config.max_text_length)
    return {
        "input_ids": torch.randint(config.vocab_size, (batch_size, tokens), generator=draw).to(device),
        "pixel_values": torch.randn(batch_size, frames, config.num_channels, size, size, generator=draw).to(device),
    }


def _forward(model: PerceiverVLModel, form: str, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
    implementation = "eager" if form == "eager" else "sdpa"
    compiled = torch.compile(model) if form == "compiled" else model

    def forward() -> Tensor:
        if model.config._attn_implementation != implementation:
            model.set_attn_implementation(implementation)
        return compiled(**inputs).last_hidden_state

    return forward
