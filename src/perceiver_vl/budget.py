"""The dials of one checkpoint: how much goes in, how many latents read it, how often they read.

Kept free of torch so that the command line can check a `--budget` before anything heavy is imported.
"""

from dataclasses import dataclass, fields

from perceiver_vl.errors import UsageError


@dataclass(frozen=True)
class ComputeBudget:
    """One setting of the dials; `None` leaves a dial where the model has it.

    `frames`: frames sampled from a clip (T). `latents`: latents that read vision, alone or with text (N).
    `text_latents`: latents that read text alone; `latents` does not touch them. `cross_attentions`: how many of the
    k blocks read the input (1..k); the blocks after them only think.

    Raises `UsageError` for a dial below 1. The upper ends depend on the model: `PerceiverVLConfig.check_budget`.
    """

    frames: int | None = None
    latents: int | None = None
    text_latents: int | None = None
    cross_attentions: int | None = None

    def __post_init__(self) -> None:
        for dial in fields(self):
            value = getattr(self, dial.name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise UsageError(f"budget {dial.name}={value}: need a whole number of at least 1")

    @classmethod
    def parse(cls, text: str) -> "ComputeBudget":
        """Read `frames=8,latents=64,cross_attentions=1`, as typed after `--budget`."""
        known = [dial.name for dial in fields(cls)]
        dials: dict[str, int] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name not in known:
                raise UsageError(f"budget {part}: unknown dial {name!r}, choose from {', '.join(known)}")
            if not value.isdecimal():
                raise UsageError(f"budget {part}: need a whole number, as in {name}=1")
            dials[name] = int(value)
        return cls(**dials)

    def __str__(self) -> str:
        turned = {dial.name: getattr(self, dial.name) for dial in fields(self)}
        return ",".join(f"{name}={value}" for name, value in turned.items() if value is not None) or "full"


FULL_BUDGET = ComputeBudget()
