"""What one example may cost: time or operations, as typed after `--budget`. Free of torch, as `budget` is."""

import re
from dataclasses import dataclass
from typing import Literal

from perceiver_vl.utils.errors import UsageError

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
