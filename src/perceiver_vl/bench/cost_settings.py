"""What `bench cost` measures: every point of the paper's cost figures and tables, ours and the others'.

Published values are those of the paper (WACV 2023) and stand beside the setting that is nearest to theirs; their
milliseconds are of another machine, so only ratios compare.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from perceiver_vl.bench.baselines import BASELINES
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig

OURS = "perceiver_vl"
TEXT_TOKENS = 40
FRAMES = (1, 8, 16, 32, 64, 128)
PATCHES = (10, 12, 14, 16, 18)  # a side: 320 to 576 pixels at base size
FEW_FRAMES = 8
SIZES_MODELS = (OURS, "vilt", "timesformer")  # of Figure 4, right


@dataclass(frozen=True)
class CostSetting:
    """A forward: which model, `frames` of `image_size` pixels (0: text alone), text tokens `words` (0: frames alone),
    budget.
    """

    model: str
    frames: int
    image_size: int
    words: int
    budget: ComputeBudget

    @property
    def pixels(self) -> int:
        """Of the clip: what a model's memory grows with."""
        return self.frames * self.image_size**2


@dataclass(frozen=True)
class Published:
    """What the paper prints: GFLOPs and milliseconds of one sample, R@1 or accuracy, and where."""

    gflops: float | None = None
    milliseconds: float | None = None
    score: float | None = None
    source: str = ""


@dataclass(frozen=True)
class CostRow:
    """A setting in its place: the part of the report, what the row is called there, the published value."""

    part: str
    label: str
    setting: CostSetting
    published: Published = Published()


def cost_rows(config: PerceiverVLConfig, frames: Sequence[int], sizes: Sequence[int]) -> list[CostRow]:
    """All points, part by part; several may name one setting."""
    size, full = config.image_size, full_budget(config)
    return [
        *_frames(size, full, budgets_by_label(config), frames),
        *_sizes(full, next(iter(budgets_by_label(config))), sizes),
        *_tables(size, full, config.num_latents),
        *_latents(size, full, config.num_latents),
        *_cross_attentions(size, full, config.num_blocks),
        *_text(size, full, config.num_latents),
    ]


def full_budget(config: PerceiverVLConfig) -> ComputeBudget:
    """That of the paper's model: its latents, all cross-attentions."""
    return ComputeBudget(latents=config.num_latents, text_latents=config.num_latents)


def budgets_by_label(config: PerceiverVLConfig) -> dict[str, ComputeBudget]:
    """Our budgets that are put beside the others, the dearest first. k: cross-attentions."""
    full, n, half, k = full_budget(config), config.num_latents, config.num_latents // 2, config.num_blocks
    return {
        f"ours, N={n}, k={k}": full,
        f"ours, N={half}, k={k}": replace(full, latents=half),
        f"ours, N={n}, k=1": replace(full, cross_attentions=1),
        f"ours, N={half}, k=1": replace(full, latents=half, cross_attentions=1),
    }


def _frames(size: int, full: ComputeBudget, budgets: dict[str, ComputeBudget], frames: Sequence[int]) -> list[CostRow]:
    """Figure 4, left: GFLOPs against frames; its values are drawn, not printed."""
    models = [(label, OURS, budget) for label, budget in budgets.items()]
    models += [(one.title, one.name, full) for one in BASELINES]
    return [
        CostRow("frames", label, CostSetting(model, number, size, TEXT_TOKENS, budget))
        for number in frames
        for label, model, budget in models
    ]


def _sizes(full: ComputeBudget, our_label: str, sizes: Sequence[int]) -> list[CostRow]:
    """Figure 4, right: GFLOPs against the size of the frames."""
    titles = {OURS: our_label} | {one.name: one.title for one in BASELINES}
    return [
        CostRow("sizes", titles[model], CostSetting(model, FEW_FRAMES, size, TEXT_TOKENS, full))
        for size in sizes
        for model in SIZES_MODELS
    ]


def _tables(size: int, full: ComputeBudget, n: int) -> list[CostRow]:
    """The cost columns of Tables 1 and 2. The paper's 43.9 stands in the row "mixed", but is that of one pass over
    the clip and the words together; a pair of the mixed stream takes two passes.
    """
    image, clip = (1, size, TEXT_TOKENS), (FEW_FRAMES, size, TEXT_TOKENS)
    half, frozen_in_time = replace(full, latents=n // 2), "timesformer"
    listed = (
        (f"image + words, N={n}", CostSetting(OURS, *image, full), Published(30.5, 18, None, "Table 2")),
        (f"image + words, N={n // 2}", CostSetting(OURS, *image, half), Published(17.0, 8, None, "Table 2")),
        ("image + words, ViLT", CostSetting("vilt", *image, full), Published(55.9, 32, None, "Table 2")),
        ("image + words, TimeSformer", CostSetting(frozen_in_time, *image, full), Published(63.9, 70, None, "Table 2")),
        (f"8 frames + words, N={n}", CostSetting(OURS, *clip, full), Published(43.9, 72, 32.6, "Table 1")),
        (f"8 frames alone, N={n}", CostSetting(OURS, FEW_FRAMES, size, 0, full), Published()),
        (f"words alone, N={n}", CostSetting(OURS, 0, size, TEXT_TOKENS, full), Published()),
        (
            "8 frames + words, TimeSformer",
            CostSetting(frozen_in_time, *clip, full),
            Published(89.0, 260, 31.0, "Table 1"),
        ),
    )
    return [CostRow("tables", *one) for one in listed]


def _latents(size: int, full: ComputeBudget, n: int) -> list[CostRow]:
    """Figure 5; its GFLOPs are drawn, not printed."""
    return [
        CostRow(
            "latents",
            f"N={latents}",
            CostSetting(OURS, FEW_FRAMES, size, TEXT_TOKENS, replace(full, latents=latents)),
            Published(score=recall, source="Figure 5"),
        )
        for latents, recall in {n // 4: 24.0, n // 2: 24.6, n: 26.8, 2 * n: 27.1}.items()
    ]


def _cross_attentions(size: int, full: ComputeBudget, num_blocks: int) -> list[CostRow]:
    """Table 3: a checkpoint trained and fine-tuned with LayerDrop 0.5, with 3 cross-attentions and with 1."""
    published = {3: Published(None, 72.0, 27.1, "Table 3"), 1: Published(None, 58.0, 26.3, "Table 3")}
    rows = []
    for number in range(num_blocks, 0, -1):
        budget = full if number == num_blocks else replace(full, cross_attentions=number)
        setting = CostSetting(OURS, FEW_FRAMES, size, TEXT_TOKENS, budget)
        rows.append(CostRow("cross_attentions", f"k={number}", setting, published.get(number, Published())))
    return rows


def _text(size: int, full: ComputeBudget, n: int) -> list[CostRow]:
    """A caption alone: what a query costs where clips are encoded already."""
    few = max(1, n // 8)
    return [
        CostRow("words", label, CostSetting(model, 0, size, TEXT_TOKENS, budget))
        for label, model, budget in (
            (f"ours, N={n}", OURS, full),
            (f"ours, N={few}", OURS, replace(full, text_latents=few)),
            ("DistilBERT (Frozen in Time)", "timesformer", full),
            ("CLIP's text transformer", "clip", full),
        )
    ]
