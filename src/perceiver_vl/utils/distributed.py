"""What several processes do as one: a batch of which each has a part, and work that each does a share of.

Shapes: B rows of this process, ΣB of all processes, in the order of their ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from perceiver_vl.utils.errors import PerceiverVLError

Item = TypeVar("Item")
Count = TypeVar("Count", float, Tensor)


def rank_and_world_size() -> tuple[int, int]:
    """The rank of this process, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@dataclass(frozen=True)
class GlobalBatch:
    """A batch that lies in several processes: how many rows each has (0 is allowed), and which of them this one is."""

    sizes: tuple[int, ...]
    rank: int = 0

    @property
    def total(self) -> int:
        """ΣB."""
        return sum(self.sizes)

    @property
    def own(self) -> slice:
        """Where the rows of this process stand among all."""
        end = list(accumulate(self.sizes))[self.rank]
        return slice(end - self.sizes[self.rank], end)

    @property
    def places(self) -> Tensor:
        """The same as a tensor `(B,)` int64."""
        return torch.arange(self.total)[self.own]

    @property
    def one_each(self) -> "GlobalBatch":
        """The batch of one row a process."""
        return GlobalBatch((1,) * len(self.sizes), self.rank)

    def marked(self, marks: Tensor) -> "GlobalBatch":
        """The batch of those rows that are marked, bool `(ΣB,)`."""
        return GlobalBatch(tuple(int(part.sum()) for part in marks.split(self.sizes)), self.rank)

    def pieces(self, most: int | None) -> int:
        """In how many pieces of at most so many rows each process does its part: all in as many, as sharded weights are
        gathered for each. None: in one.
        """
        return 1 if most is None else max(1, ceil(max(self.sizes) / most))

    def rows(self, mine: Tensor) -> Tensor:
        """`(B,…)` of each process → `(ΣB,…)`; gradients flow back to each."""
        if len(self.sizes) == 1:
            return mine
        gathered: Tensor = _Gather.apply(mine, self)
        return gathered

    def mean_of(self, count: Count) -> Count:
        """What a process divides a sum over its part of `count` values by (of all processes together).

        The mean over the processes, of what is left and of its gradients, which data-parallel training averages, is
        then that over the values.
        """
        return count / len(self.sizes)

    def summed(self, mine: Tensor) -> Tensor:
        """The sum over the processes, without a gradient."""
        if len(self.sizes) == 1:
            return mine
        total = mine.detach().clone()
        dist.all_reduce(total)
        return total

    def fetched(self, mine: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Rows at the places `wanted (R,)`, R ≤ B, of what the processes have `(B,T,…)`, without gradients.

        → a tensor that has them, and where in it they are `(R,)`. The processes may differ in T; the missing rows of
        it are zeros.
        """
        if len(self.sizes) == 1:
            return mine, wanted
        ordered, order = wanted.sort()
        asking = torch.full((max(self.sizes) + 1,), -1, dtype=torch.long, device=mine.device)
        asking[0] = mine.shape[1]
        asking[1 : len(ordered) + 1] = ordered
        asked = [torch.empty_like(asking) for _ in self.sizes]
        dist.all_gather(asked, asking)
        longest = max(int(one[0]) for one in asked)
        if longest > mine.shape[1]:
            more = mine.new_zeros(len(mine), longest - mine.shape[1], *mine.shape[2:])
            mine = torch.cat([mine, more], dim=1)
        here = self.own
        to_each = [one[1:][(one[1:] >= here.start) & (one[1:] < here.stop)] - here.start for one in asked]
        from_each = [
            int(((ordered >= end - size) & (ordered < end)).sum())
            for size, end in zip(self.sizes, accumulate(self.sizes), strict=True)
        ]
        found = mine.new_empty(len(wanted), *mine.shape[1:])
        dist.all_to_all_single(found, mine[torch.cat(to_each)], from_each, [len(one) for one in to_each])
        return found, order.argsort()


class _Gather(torch.autograd.Function):
    """`GlobalBatch.rows`. What each process adds to the gradient of a row is summed where the row came from."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, batch: GlobalBatch) -> Tensor:
        ctx.own = batch.own
        padded = mine.new_zeros(max(batch.sizes), *mine.shape[1:])
        padded[: len(mine)] = mine
        found = [torch.empty_like(padded) for _ in batch.sizes]
        dist.all_gather(found, padded)
        return torch.cat([part[:size] for part, size in zip(found, batch.sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # A copy, in order: autograd may hand out a transposed view, whose memory would be summed as if it were not
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed[ctx.own], None


def global_batches(sizes: Sequence[int], device: torch.device) -> list[GlobalBatch]:
    """Of some batches, of each of which this process has so many rows, what all processes have."""
    rank, processes = rank_and_world_size()
    mine = torch.tensor(sizes, device=device)
    found = [torch.empty_like(mine) for _ in range(processes)]
    if processes > 1:
        dist.all_gather(found, mine)
    else:
        found = [mine]
    return [GlobalBatch(tuple(of_one), rank) for of_one in torch.stack(found, 1).tolist()]


class ProcessGroup:
    """Processes that share some work, each calling the same methods: those of the group, or (alone) this one."""

    def __init__(self, shared: bool) -> None:
        self.rank, self.processes = rank_and_world_size() if shared else (0, 1)

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's share: neighbours, as many as the others have or one more or less."""
        count = len(items)
        return items[count * self.rank // self.processes : count * (self.rank + 1) // self.processes]

    def of_all(self, work: Callable[[], Item]) -> list[Item]:
        """What `work` gives in each process, in the order of their ranks.

        Raises in all of them what the first that failed has raised, if that is a `PerceiverVLError`.
        """
        if self.processes == 1:
            return [work()]
        mine: tuple[Item | None, PerceiverVLError | None]
        try:
            mine = work(), None
        except PerceiverVLError as error:
            mine = None, error
        found: list[Any] = [None] * self.processes
        dist.all_gather_object(found, mine)
        for _, failed in found:
            if failed is not None:
                raise failed
        return [result for result, _ in found]

    def tensors_of_all(self, work: Callable[[], list[tuple[Tensor, ...]]], device: torch.device) -> list[Any]:
        """The same of lists of tensors, one after the other."""
        if self.processes == 1:
            return work()
        found = self.of_all(lambda: [tuple(tensor.cpu() for tensor in part) for part in work()])
        return [tuple(tensor.to(device) for tensor in part) for parts in found for part in parts]

    def largest(self, mine: Tensor) -> Tensor:
        """Elementwise, over the processes: each has found some of the values, and has minus infinity elsewhere."""
        if self.processes > 1:
            dist.all_reduce(mine, op=dist.ReduceOp.MAX)
        return mine
