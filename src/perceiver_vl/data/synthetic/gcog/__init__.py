"""gCOG: questions on a grid of coloured letters, with three splits that training never shows (Ito et al. 2024)."""

from perceiver_vl.data.synthetic.gcog.dataset import GCOG, Batch, collate
from perceiver_vl.data.synthetic.gcog.splits import SPLITS, draw_trees
from perceiver_vl.data.synthetic.gcog.stimuli import draw_stimulus
from perceiver_vl.data.synthetic.gcog.trees import Letter, Node, Selector, Switch, Tree, instruction, tree_from

__all__ = [
    "GCOG",
    "SPLITS",
    "Batch",
    "Letter",
    "Node",
    "Selector",
    "Switch",
    "Tree",
    "collate",
    "draw_stimulus",
    "draw_trees",
    "instruction",
    "tree_from",
]
