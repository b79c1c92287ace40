"""Letters on the grid for an instruction, drawn as the reference draws them (IBM/gcog), its quirks included:

- A distractor is of any colour and shape, but for the colours that a `getshape` and the shapes that a `getcolor` of the
  instruction names. Nothing else is spared: what an `exist` asks for may be there by accident.
- Distractors come first. Placing a letter removes the distractors of its colour and shape, other distractors too, so
  there may be fewer than were asked for.
- A letter whose place is taken goes to a free one, and a distractor that had it is removed all the same.
- Letters of both branches of a switch are there, whichever is taken; half of the time an `exist` gets none.
- A letter's place is that of its selector, drawn with the instruction. So the parity of a sum is given with the
  instruction, whatever its words.
"""

from dataclasses import replace

import numpy as np

from perceiver_vl.data.synthetic.gcog.trees import COLOURS, SHAPES, SIDE, Letter, Node, Place, Selector, Switch, Tree


def draw_stimulus(tree: Tree, distractors: int, rng: np.random.Generator) -> list[Letter]:
    """The letters of one stimulus, in the order the reference has them."""
    letters: list[Letter] = []
    nodes = _in_order(tree)
    colours, shapes = list(COLOURS), list(SHAPES)
    for node in nodes:
        for selector in node.selectors:
            if node.operator == "getshape" and selector.colour in colours:
                colours.remove(selector.colour)
            if node.operator == "getcolor" and selector.shape in shapes:
                shapes.remove(selector.shape)
    for _ in range(distractors):
        one = Letter((-1, -1), colours[rng.integers(len(colours))], shapes[rng.integers(len(shapes))], True)
        letters = _without_distractors_like(one, letters)
        letters.sort(key=lambda other: (other.place, other.colour, other.shape))
        letters.append(replace(one, place=_free_place(letters, rng)))
    for node in nodes:
        if node.operator == "exist" and rng.random() < 0.5:
            continue
        for selector in reversed(node.selectors):
            letters = _placed(_letter_of(selector), letters, rng)
    return letters


def _in_order(tree: Tree) -> list[Node]:
    """Operators in the order in which their letters are placed: branches before their condition, the last first."""
    if isinstance(tree, Switch):
        return [*_in_order(tree.otherwise), *_in_order(tree.then), tree.condition]
    return [tree]


def _letter_of(selector: Selector) -> Letter:
    return Letter(selector.place, selector.colour or selector.drawn, selector.shape or selector.drawn)


def _placed(letter: Letter, letters: list[Letter], rng: np.random.Generator) -> list[Letter]:
    letters = _without_distractors_like(letter, letters)
    if any((one.colour, one.shape) == (letter.colour, letter.shape) for one in letters):
        return letters  # it is there
    holder = next((one for one in letters if one.place == letter.place), None)
    if holder is not None:
        letters = [one for one in letters if not (one is holder and one.distractor)]
        letters.sort(key=lambda other: (other.place, other.colour, other.shape))
        letter = replace(letter, place=_free_place(letters, rng))
    return [*letters, letter]


def _without_distractors_like(letter: Letter, letters: list[Letter]) -> list[Letter]:
    like = (letter.colour, letter.shape)
    return [one for one in letters if not (one.distractor and (one.colour, one.shape) == like)]


def _free_place(letters: list[Letter], rng: np.random.Generator) -> Place:
    taken = {one.place for one in letters}
    while (place := (int(rng.integers(SIDE)), int(rng.integers(SIDE)))) in taken:
        pass
    return place
