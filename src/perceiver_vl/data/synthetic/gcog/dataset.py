"""gCOG as a data set: instructions that are fixed, stimuli that are drawn anew for every step."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from perceiver_vl.data.synthetic.gcog.splits import draw_trees, part_of
from perceiver_vl.data.synthetic.gcog.stimuli import draw_stimulus
from perceiver_vl.data.synthetic.gcog.tokens import answer_class, instruction_tokens, stimulus_tokens
from perceiver_vl.data.synthetic.gcog.trees import Letter, Tree
from perceiver_vl.utils.errors import UsageError

_TREES, _STIMULI = range(2)  # streams of chance


@dataclass(frozen=True)
class Batch:
    """`rules (B,R,8)`, `stimuli (B,101,3)`, `answers (B,)` int64. The rows of shorter instructions end in zeros, as in
    the reference, whose models see them; `mask (B,R)` says which rows are real.
    """

    rules: Tensor
    stimuli: Tensor
    answers: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Instance:
    """An instruction, a stimulus of it, and the class of the answer."""

    tree: Tree
    letters: list[Letter]
    answer: int


class GCOG(Dataset[Instance]):
    """Instructions of one part of a split (`splits.SPLITS`).

        data = GCOG("systematic_depth3", "train", per_operator=100)
        data[7]  # its first stimulus
        collate([data.draw(7, epoch=3)])  # another one

    `per_operator`: eight times so many instructions (the paper: 5,000). The same arguments draw the same, item by item.
    Raises `UsageError` for a part that there is not.
    """

    def __init__(self, split: str, part: str, *, per_operator: int = 5000, seed: int = 0) -> None:
        if per_operator < 1:
            raise UsageError(f"per_operator={per_operator}: need at least 1 instruction of each")
        self.part, self.seed = part_of(split, part), seed
        self.name = f"{split}/{part}"
        self._key = [seed, sum(self.name.encode())]
        self.trees = draw_trees(split, part, per_operator, np.random.default_rng([*self._key, _TREES]))

    def __len__(self) -> int:
        return len(self.trees)

    def __getitem__(self, index: int) -> Instance:
        return self.draw(index)

    def draw(self, index: int, epoch: int = 0) -> Instance:
        """Of the instruction `index` the stimulus of `epoch`."""
        tree, draws = self.trees[index], np.random.default_rng([*self._key, _STIMULI, index, epoch])
        least, most = self.part.distractors
        while True:
            letters = draw_stimulus(tree, int(draws.integers(least, most + 1)), draws)
            try:
                return Instance(tree, letters, answer_class(tree.answer(letters)))
            except ValueError:  # a sum of two letters where one was drawn: the reference fails, and draws again
                continue


def collate(instances: Sequence[Instance]) -> Batch:
    """Instances → what models take."""
    rules = [torch.from_numpy(instruction_tokens(one.tree)) for one in instances]
    padded = torch.nn.utils.rnn.pad_sequence(rules, batch_first=True)
    lengths = torch.tensor([len(one) for one in rules])
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    stimuli = torch.from_numpy(np.stack([stimulus_tokens(one.letters) for one in instances]))
    return Batch(padded, stimuli, torch.tensor([one.answer for one in instances]), mask)
