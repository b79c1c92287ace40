"""Re-ranking a shortlist for one query: from D + H stored numbers a clip, beside the decoder over its latents.

All give the mixed stream's logits. The query is encoded beforehand, as it is for the shortlist.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from perceiver_vl.bench.profiling import time_interleaved
from perceiver_vl.bench.tables import BenchReport, Section
from perceiver_vl.models.perceiver_vl import PerceiverVLForRetrieval
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.utils.console import ProgressBars
from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.timing import MatrixProduct

CANDIDATES = 1000
BATCH = 64  # clips whose latents go through the decoder at once


@dataclass(frozen=True)
class RerankingReport(BenchReport):
    """Milliseconds (median) of one query in three ways: `projected_ms` by the decoder over latents as the paper writes
    it, keys and values of each latent projected; `decoder_ms` by the same decoder as it runs here, which meets the
    latents in their own space; `partial_attention_ms` from stored partial attentions. `speedup`: the first over the
    last; `speedup_over_decoder`: the second over the last. The largest difference of the logits from those of the
    partial attentions, and the logits' standard deviation to measure it by; bytes of one clip, as stored in float32,
    and their ratio.
    """

    candidates: int
    latents: int
    projected_ms: float
    decoder_ms: float
    partial_attention_ms: float
    speedup: float
    speedup_over_decoder: float
    max_difference: float
    logits_std: float
    decoder_bytes: int
    partial_attention_bytes: int
    bytes_ratio: float

    def sections(self) -> list[Section]:
        """A row a way."""
        rows = [
            (name, f"{ms:.0f}", f"{self.projected_ms / ms:.1f}", str(size), f"{self.decoder_bytes / size:.0f}")
            for name, ms, size in (
                (f"{self.latents} latents, keys and values projected", self.projected_ms, self.decoder_bytes),
                (f"{self.latents} latents, in their own space", self.decoder_ms, self.decoder_bytes),
                ("stored partial attentions", self.partial_attention_ms, self.partial_attention_bytes),
            )
        ]
        note = f"Largest difference of the logits {self.max_difference:.1e}, their spread {self.logits_std:.2f}."
        columns = ("from", "ms", "speedup", "bytes a clip", "ratio")
        return [Section(f"re-ranking {self.candidates} clips for one query", columns, rows, (note,))]


@torch.inference_mode()
def measure_reranking(
    config: PerceiverVLConfig | None = None,
    *,
    candidates: int = CANDIDATES,
    runs: int = 5,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> RerankingReport:
    """Score random candidates for a random query in all ways, with random weights, at base size unless `config` says.

    Raises `UsageError` for fewer than one candidate.
    """
    if candidates < 1:
        raise UsageError(f"candidates={candidates}: need at least 1")
    config = config or PerceiverVLConfig()
    torch.manual_seed(seed)
    model = PerceiverVLForRetrieval(config).eval().to(device)
    with torch.no_grad():
        for parameter in model.vtm_head.parameters():  # as initialised, all logits would be about the same
            parameter.normal_(std=config.hidden_size**-0.5)
    # The encoder's last norm leaves latents of about this size
    vision = torch.randn(candidates, config.num_latents, config.hidden_size).to(device)
    text = torch.randn(1, config.text_latents_of(config.num_latents), config.hidden_size).to(device)
    stored = torch.cat([model.partial_match(part) for part in vision.split(BATCH)])

    def match(part: Tensor, absorb: bool) -> Tensor:
        latents = torch.cat([part, text.expand(len(part), -1, -1)], dim=1)
        return model.vtm_head(model.decoder(latents, model.vtm_query(len(part)), absorb=absorb)[:, 0])

    ways: list[Callable[[], Tensor]] = [
        lambda: torch.cat([match(part, absorb=False) for part in vision.split(BATCH)]),
        lambda: torch.cat([match(part, absorb=True) for part in vision.split(BATCH)]),
        lambda: model.merge_matches(stored, model.partial_match(text)),
    ]
    with ProgressBars(progress) as stages:
        advance = stages.stage("Re-ranking", len(ways) * (runs + 1))
        logits = [way() for way in ways]
        advance(len(ways))
        timings = time_interleaved(ways, runs, MatrixProduct(2 * config.hidden_size, device), advance).timings
    projected, decoder, partial_attention = (timing.milliseconds for timing in timings)
    decoder_bytes, partial_attention_bytes = vision[0].nbytes, stored[0].nbytes
    return RerankingReport(
        candidates=candidates,
        latents=config.num_latents,
        projected_ms=projected,
        decoder_ms=decoder,
        partial_attention_ms=partial_attention,
        speedup=projected / partial_attention,
        speedup_over_decoder=decoder / partial_attention,
        max_difference=max((one - logits[-1]).abs().max().item() for one in logits),
        logits_std=logits[0].std().item() if candidates > 1 else 0.0,
        decoder_bytes=decoder_bytes,
        partial_attention_bytes=partial_attention_bytes,
        bytes_ratio=decoder_bytes / partial_attention_bytes,
        runs=runs,
        seed=seed,
    )
