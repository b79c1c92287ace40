"""Instructions, stimuli and answers of gCOG as numbers, exactly as the reference codes them. Two traps of it: an
attribute that an instruction leaves open is coded 1, as `a` and `red` are; answers count the places of the grid column
by column, where tokens of the stimulus go row by row.
"""

import numpy as np
import numpy.typing as npt

from perceiver_vl.data.synthetic.gcog.trees import (
    COLOURS,
    OPERATORS,
    SHAPES,
    SIDE,
    Answer,
    Letter,
    Selector,
    Tree,
    by_level,
)

Floats = npt.NDArray[np.float32]
INSTRUCTION_SIZE = 8
"""Of a token: the operator's number, (shape, colour, time) of two selectors, end."""
STIMULUS_SIZE = 3
"""Of a token: colour, shape, end."""
STIMULUS_LENGTH = SIDE * SIDE + 1
CLASSES = 2 + SIDE * SIDE + len(SHAPES) + len(COLOURS)
_SWITCH = len(OPERATORS) + 1
_OPEN = 1


def instruction_tokens(tree: Tree) -> Floats:
    """→ `(R,8)`: a row an operator, level by level, and the end."""
    rows: list[list[int]] = []
    for node in by_level(tree):
        selectors = [] if node is None else [_selector(one) for one in node.selectors]
        selectors += [[0, 0, 0]] * (2 - len(selectors))
        number = _SWITCH if node is None else OPERATORS.index(node.operator) + 1
        rows.append([number, *selectors[0], *selectors[1], 0])
    return np.array([*rows, [0] * (INSTRUCTION_SIZE - 1) + [1]], dtype=np.float32)


def _selector(one: Selector) -> list[int]:
    shape = _OPEN if one.shape is None else SHAPES.index(one.shape) + 1
    return [shape, _OPEN if one.colour is None else COLOURS.index(one.colour) + 1, 1]  # there is one time: now


def stimulus_tokens(letters: list[Letter]) -> Floats:
    """→ `(101,3)`: a row a cell, 0 where it is empty, and the end."""
    tokens = np.zeros((STIMULUS_LENGTH, STIMULUS_SIZE), dtype=np.float32)
    for one in letters:
        row = SIDE * one.place[0] + one.place[1]
        tokens[row, :2] = COLOURS.index(one.colour) + 1, SHAPES.index(one.shape) + 1
    tokens[-1, -1] = 1
    return tokens


def answer_class(answer: Answer) -> int:
    """Which of 138: true, false, 100 places, 26 shapes, 10 colours."""
    if isinstance(answer, bool):
        return 0 if answer else 1
    if isinstance(answer, tuple):
        return 2 + SIDE * answer[1] + answer[0]
    places = 2 + SIDE * SIDE
    return places + (SHAPES.index(answer) if answer in SHAPES else len(SHAPES) + COLOURS.index(answer))
