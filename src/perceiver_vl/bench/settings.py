"""What `bench cost` measures: every point of the paper's cost figures and tables, ours and the others'.

Published values are those of the paper (WACV 2023) and stand beside the setting that is nearest to theirs; their
milliseconds are of another machine, so only ratios compare.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from perceiver_vl.bench.peers import PEERS
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig

OURS = "perceiver_vl"
WORDS = 40
FRAMES = (1, 8, 16, 32, 64, 128)
PATCHES = (10, 12, 14, 16, 18)  # a side: 320 to 576 pixels at base size
FEW_FRAMES = 8
IN_SIZES = (OURS, "vilt", "timesformer")  # the models of Figure 4
TITLES = {peer.name: peer.title for peer in PEERS}


@dataclass(frozen=True)
class CostSetting:
    """A forward: which model, `frames` of `image_size` pixels (0: words alone), `words` (0: frames alone), dials."""

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
class Entry:
    """A setting in its place: the part of the report, what the line is called there, the published value."""

    part: str
    label: str
    setting: CostSetting
    published: Published = Published()


def entries(config: PerceiverVLConfig, frames: Sequence[int], sizes: Sequence[int]) -> list[Entry]:
    """All points, part by part; several may name one setting."""
    full = full_budget(config)
    return [
        *_frames(config, full, frames),
        *_sizes(config, full, sizes),
        *_tables(config, full),
        *_latents(config, full),
        *_cross_attentions(config, full),
        *_words(config, full),
    ]


def full_budget(config: PerceiverVLConfig) -> ComputeBudget:
    """The dials of the paper's model: its latents, all cross-attentions."""
    return ComputeBudget(latents=config.num_latents, text_latents=config.num_latents)


def budgets(config: PerceiverVLConfig, full: ComputeBudget) -> list[tuple[str, ComputeBudget]]:
    """Our budgets that are put beside the others, by label."""
    half = config.num_latents // 2
    return [
        (f"ours, N={config.num_latents}, {config.num_blocks} reads", full),
        (f"ours, N={half}, {config.num_blocks} reads", replace(full, latents=half)),
        (f"ours, N={config.num_latents}, 1 cross-attention", replace(full, cross_attentions=1)),
        (f"ours, N={half}, 1 cross-attention", replace(full, latents=half, cross_attentions=1)),
    ]


def _frames(config: PerceiverVLConfig, full: ComputeBudget, frames: Sequence[int]) -> list[Entry]:
    """Figure 4, left: GFLOPs against frames; its values are drawn, not printed."""
    found = []
    for number in frames:
        for label, budget in budgets(config, full):
            found.append(Entry("frames", label, CostSetting(OURS, number, config.image_size, WORDS, budget)))
        for peer in PEERS:
            found.append(Entry("frames", peer.title, CostSetting(peer.name, number, config.image_size, WORDS, full)))
    return found


def _sizes(config: PerceiverVLConfig, full: ComputeBudget, sizes: Sequence[int]) -> list[Entry]:
    """Figure 4, right: GFLOPs against the size of the frames."""
    label = budgets(config, full)[0][0]
    return [
        Entry("sizes", TITLES.get(model, label), CostSetting(model, FEW_FRAMES, size, WORDS, full))
        for size in sizes
        for model in IN_SIZES
    ]


def _tables(config: PerceiverVLConfig, full: ComputeBudget) -> list[Entry]:
    """The cost columns of Tables 1 and 2. The paper's 43.9 stands in the row "mixed", but is that of one pass over
    the clip and the words together; a pair of the mixed stream takes two passes.
    """
    size, n = config.image_size, config.num_latents
    half = replace(full, latents=n // 2)
    return [
        Entry(
            "tables",
            f"image + words, N={n}",
            CostSetting(OURS, 1, size, WORDS, full),
            Published(30.5, 18, None, "Table 2"),
        ),
        Entry(
            "tables",
            f"image + words, N={n // 2}",
            CostSetting(OURS, 1, size, WORDS, half),
            Published(17.0, 8, None, "Table 2"),
        ),
        Entry(
            "tables",
            "image + words, ViLT",
            CostSetting("vilt", 1, size, WORDS, full),
            Published(55.9, 32, None, "Table 2"),
        ),
        Entry(
            "tables",
            "image + words, TimeSformer",
            CostSetting("timesformer", 1, size, WORDS, full),
            Published(63.9, 70, None, "Table 2"),
        ),
        Entry(
            "tables",
            f"8 frames + words, N={n}",
            CostSetting(OURS, FEW_FRAMES, size, WORDS, full),
            Published(43.9, 72, 32.6, "Table 1"),
        ),
        Entry("tables", f"8 frames alone, N={n}", CostSetting(OURS, FEW_FRAMES, size, 0, full)),
        Entry("tables", f"words alone, N={n}", CostSetting(OURS, 0, size, WORDS, full)),
        Entry(
            "tables",
            "8 frames + words, TimeSformer",
            CostSetting("timesformer", FEW_FRAMES, size, WORDS, full),
            Published(89.0, 260, 31.0, "Table 1"),
        ),
    ]


def _latents(config: PerceiverVLConfig, full: ComputeBudget) -> list[Entry]:
    """Figure 5; its GFLOPs are drawn, not printed."""
    n = config.num_latents
    recall = {n // 4: 24.0, n // 2: 24.6, n: 26.8, 2 * n: 27.1}
    return [
        Entry(
            "latents",
            f"N={latents}",
            CostSetting(OURS, FEW_FRAMES, config.image_size, WORDS, replace(full, latents=latents)),
            Published(score=score, source="Figure 5"),
        )
        for latents, score in recall.items()
    ]


def _cross_attentions(config: PerceiverVLConfig, full: ComputeBudget) -> list[Entry]:
    """Table 3: a checkpoint trained and fine-tuned with LayerDrop 0.5, at 3 reads and at 1."""
    known = {3: Published(None, 72.0, 27.1, "Table 3"), 1: Published(None, 58.0, 26.3, "Table 3")}
    found = []
    for cross_attentions in range(config.num_blocks, 0, -1):
        budget = full if cross_attentions == config.num_blocks else replace(full, cross_attentions=cross_attentions)
        setting = CostSetting(OURS, FEW_FRAMES, config.image_size, WORDS, budget)
        label = f"{cross_attentions} cross-attention{'s' if cross_attentions > 1 else ''}"
        found.append(Entry("cross_attentions", label, setting, known.get(cross_attentions, Published())))
    return found


def _words(config: PerceiverVLConfig, full: ComputeBudget) -> list[Entry]:
    """A caption alone: what a query costs where clips are encoded already."""
    few, size = max(1, config.num_latents // 8), config.image_size
    return [
        Entry("words", f"ours, N={config.num_latents}", CostSetting(OURS, 0, size, WORDS, full)),
        Entry("words", f"ours, N={few}", CostSetting(OURS, 0, size, WORDS, replace(full, text_latents=few))),
        Entry("words", "DistilBERT (Frozen in Time)", CostSetting("timesformer", 0, size, WORDS, full)),
        Entry("words", "CLIP's text transformer", CostSetting("clip", 0, size, WORDS, full)),
    ]
