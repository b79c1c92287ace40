"""What encoding costs at several settings of the dials: operations by formula, seconds measured, side by side.

The runs are interleaved, so that a machine whose speed drifts slows all settings alike; the ratios are what to trust.
"""

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from perceiver_vl.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.console import Stages
from perceiver_vl.model import PerceiverVLForRetrieval
from perceiver_vl.model.flops import encoder_flops
from perceiver_vl.tasks.record import command_line, machine, versions

TEXT_TOKENS = 40


@dataclass(frozen=True)
class Setting:
    """One row: what goes in (frames 0: text alone; text_tokens 0: vision alone) and the dials."""

    name: str
    frames: int
    text_tokens: int
    budget: ComputeBudget = FULL_BUDGET


@dataclass(frozen=True)
class Cost:
    """Operations of one example (a multiply-add is two), the median of the measured milliseconds and their range."""

    name: str
    gflops: float
    milliseconds: float
    fastest: float
    slowest: float


@dataclass(frozen=True)
class CostReport:
    """The rows, and what it takes to get them again."""

    parameters: int
    costs: list[Cost]
    runs: int
    seed: int
    command: str
    machine: str
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


SETTINGS = (
    Setting("image + text", 1, TEXT_TOKENS),
    Setting("image + text, 64 latents", 1, TEXT_TOKENS, ComputeBudget(latents=64)),
    Setting("image + text, 1 read", 1, TEXT_TOKENS, ComputeBudget(cross_attentions=1)),
    Setting("8 frames + text", 8, TEXT_TOKENS),
    Setting("8 frames + text, 64 latents", 8, TEXT_TOKENS, ComputeBudget(latents=64)),
    Setting("8 frames + text, 1 read", 8, TEXT_TOKENS, ComputeBudget(cross_attentions=1)),
    Setting("32 frames + text", 32, TEXT_TOKENS),
    Setting("8 frames", 8, 0),
    Setting("text", 0, TEXT_TOKENS),
    Setting("text, 16 latents", 0, TEXT_TOKENS, ComputeBudget(text_latents=16)),
)


@torch.inference_mode()
def measure_cost(
    config: PerceiverVLConfig | None = None,
    *,
    runs: int = 5,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> CostReport:
    """Encode one random example at each of `SETTINGS`, with random weights, at base size unless `config` says."""
    config = config or PerceiverVLConfig()
    torch.manual_seed(seed)
    model = PerceiverVLForRetrieval(config).eval().to(device)
    size = config.image_size
    inputs = {}
    for setting in SETTINGS:
        given: dict[str, torch.Tensor] = {}
        if setting.frames:
            given["pixel_values"] = torch.randn(1, setting.frames, config.num_channels, size, size, device=device)
        if setting.text_tokens:
            given["input_ids"] = torch.randint(config.vocab_size, (1, setting.text_tokens), device=device)
        inputs[setting.name] = given
    seconds: dict[str, list[float]] = {setting.name: [] for setting in SETTINGS}
    with Stages(progress) as stages:
        advance = stages.stage("Measuring", (runs + 1) * len(SETTINGS))
        for run in range(runs + 1):
            for setting in SETTINGS:
                start = time.perf_counter()
                model.perceiver_vl(**inputs[setting.name], budget=setting.budget)
                if torch.device(device).type == "cuda":
                    torch.cuda.synchronize()
                if run:  # the first round warms up
                    seconds[setting.name].append(time.perf_counter() - start)
                advance()
    costs = [
        Cost(
            setting.name,
            encoder_flops(config, setting.frames, setting.text_tokens, setting.budget) / 1e9,
            1e3 * statistics.median(seconds[setting.name]),
            1e3 * min(seconds[setting.name]),
            1e3 * max(seconds[setting.name]),
        )
        for setting in SETTINGS
    ]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return CostReport(parameters, costs, runs, seed, command_line(), machine(), versions())
