"""The dials of one checkpoint: how much goes in, how many latents read it, how often they read.

Kept free of torch so that the command line can check a `--budget` before anything heavy is imported.
"""

import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from perceiver_vl.utils.errors import UsageError


@dataclass(frozen=True)
class ComputeBudget:
    """One setting of the dials; `None` leaves a dial where the model has it.

    `frames`: frames sampled from a clip (T). `latents`: latents that read vision, alone or with text (N).
    `text_latents`: latents that read text alone; `latents` does not touch them. `cross_attentions`: how many of the
    k blocks read the input (1..k); the blocks after them only think. `blocks`: answers are read from the latents after
    so many blocks (an early exit, 1..k); the rest of the model does not run.
    `latent_choice`: which so many latents: the first; or, after the first read by all of them, the most diverse by what
    they attended to, for each example anew (the inference side of Dynamic Latent Access, Tsiamas et al. 2023).

    Raises `UsageError` for a dial below 1, more cross-attentions than blocks, and a choice among all latents. The upper
    ends depend on the model: `PerceiverVLConfig.check_budget`.
    """

    frames: int | None = None
    latents: int | None = None
    text_latents: int | None = None
    cross_attentions: int | None = None
    blocks: int | None = None
    latent_choice: Literal["first", "diverse"] = "first"

    def __post_init__(self) -> None:
        for name in ("frames", "latents", "text_latents", "cross_attentions", "blocks"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise UsageError(f"budget {name}={value}: need a whole number of at least 1")
        if self.blocks is not None and (self.cross_attentions or 1) > self.blocks:
            raise UsageError(
                f"budget cross_attentions={self.cross_attentions},blocks={self.blocks}: a block reads once, so at most "
                f"{self.blocks} cross_attentions"
            )
        if self.latent_choice not in ("first", "diverse"):
            raise UsageError(f"budget latent_choice={self.latent_choice}: choose first or diverse")
        if self.latent_choice == "diverse" and self.latents is None and self.text_latents is None:
            raise UsageError(
                "budget latent_choice=diverse: chooses among the latents, say how many with latents=8 or text_latents=4"
            )

    @classmethod
    def parse(cls, text: str) -> "ComputeBudget":
        """Read `frames=8,latents=64,cross_attentions=1`, as typed after `--budget`."""
        known = [dial.name for dial in fields(cls)]
        dials: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name not in known:
                raise UsageError(f"budget {part}: unknown dial {name!r}, choose from {', '.join(known)}")
            if name == "latent_choice":
                dials[name] = value
                continue
            if not value.isdecimal():
                raise UsageError(f"budget {part}: need a whole number, as in {name}=1")
            dials[name] = int(value)
        return cls(**dials)

    def __str__(self) -> str:
        turned = {dial.name: getattr(self, dial.name) for dial in fields(ComputeBudget)}
        return ",".join(f"{name}={value}" for name, value in turned.items() if value not in (None, "first")) or "full"


@dataclass(frozen=True)
class TrainingBudget(ComputeBudget):
    """A budget as a step of training meets it: what it leaves out is drawn from `seed`, the same for all examples.

    The latents that read are any of the model's, not the first (Dynamic Latent Access); of each frame the share
    `token_share` of the patches is kept, at least one (DropToken).
    """

    seed: int = 0
    token_share: float = 1.0


@dataclass(frozen=True)
class EarlyExitBudget(ComputeBudget):
    """A budget whose blocks run until an example is sure of its answer: it leaves after the first block whose answer's
    probability is at least its one of `thresholds`, one for each block, after the last in any case.

    `taken` is added to as examples leave: after how many blocks, and how many text tokens each had.
    """

    thresholds: tuple[float, ...] = ()
    taken: list[tuple[int, int]] = field(default_factory=list, compare=False, repr=False)

    def __str__(self) -> str:
        thresholds = "/".join("–" if one > 1 else f"{max(one, 0):.2g}" for one in self.thresholds[:-1])
        return f"{super().__str__()}, early exit at {thresholds}"


FULL_BUDGET = ComputeBudget()

Unit = Literal["ms", "GFLOPs"]
_FACTORS: dict[str, tuple[float, Unit]] = {
    "ms": (1.0, "ms"),
    "s": (1e3, "ms"),
    "mflops": (1e-3, "GFLOPs"),
    "gflops": (1.0, "GFLOPs"),
    "tflops": (1e3, "GFLOPs"),
}
_TYPED = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]+)", re.IGNORECASE)


@dataclass(frozen=True)
class CostLimit:
    """At most `amount` milliseconds or GFLOPs for one example (`frontier` says what that is)."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> "CostLimit":
        """Read `50ms`, `0.5s`, `10GFLOPs`, `800MFLOPs`; raises `UsageError` for anything else."""
        typed = _TYPED.fullmatch(text.strip())
        factor, unit = _FACTORS.get(typed[2].lower(), (0.0, None)) if typed else (0.0, None)
        if typed is None or unit is None:
            raise UsageError(
                f"budget {text}: need a time or operations, as in 50ms, 0.5s, 10GFLOPs or 800MFLOPs, or dials, as in "
                "frames=8"
            )
        if not (amount := float(typed[1]) * factor):
            raise UsageError(f"budget {text}: need more than 0")
        return cls(amount, unit)

    def __str__(self) -> str:
        amount = f"{self.amount:.10g}"
        return f"{amount}ms" if self.unit == "ms" else f"{amount} {self.unit}"


def is_limit(text: str) -> bool:
    """Whether a typed budget is a limit on the cost, rather than settings of the dials."""
    return text.strip()[:1].isdecimal() or text.strip()[:1] == "."
