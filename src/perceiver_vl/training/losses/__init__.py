"""The objectives of pre-training and retrieval training, one class a file.

A recipe weighs them by their names here. To add one, see CONTRIBUTING.md: its class in a file beside the others, and
its line in the table.
"""

from perceiver_vl.training.losses.base import Objective
from perceiver_vl.training.losses.mixed_vtc import MixedVTC
from perceiver_vl.training.losses.mixed_vtm import MixedVTM
from perceiver_vl.training.losses.mlm import MLM
from perceiver_vl.training.losses.moments import Moments
from perceiver_vl.training.losses.momentum import Momentum
from perceiver_vl.training.losses.mpm import MPM
from perceiver_vl.training.losses.structure import Structure
from perceiver_vl.training.losses.ttc import TTC
from perceiver_vl.training.losses.vtc import VTC
from perceiver_vl.training.losses.vtm import VTM

OBJECTIVES: dict[str, Objective] = {
    "vtm": VTM(),
    "mlm": MLM(),
    "vtc": VTC(),
    "ttc": TTC(),
    "mixed_vtm": MixedVTM(),
    "mixed_vtc": MixedVTC(),
    "momentum": Momentum(),
    "mpm": MPM(),
    "structure": Structure(),
    "moments": Moments(),
}
"""Every objective, by the name of its weight in a recipe's `objectives` and of its `loss_NAME` in the log."""
