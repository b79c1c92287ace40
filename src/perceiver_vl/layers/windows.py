"""Any window of a row of parts, in constant time: the partial attention of parts i to j - 1 together is one addition.

Parts merge associatively, so sums over stretches that end or begin at the middles of ever larger blocks (a disjoint
sparse table) give every window as the sum of two of them. Prefix sums would be one table instead of log2(S), but their
differences lose a quiet window behind a loud beginning; here nothing is ever taken away. NumPy alone: a search does not
wait for torch. Shapes: S parts, K windows, D width, H heads, d = D/H.
"""

import numpy as np
import numpy.typing as npt

Packed = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]
_Sums = npt.NDArray[np.float64]


_AT_ONCE = 256  # windows, whose sums stay in the processor's cache


class WindowTable:
    """The parts of a row, `(S,D+H)` as `PartialAttention.pack` gives them for one query, ready for any window of it.

    It takes log2 of the longest window so far times S·(D+H) numbers of float64. A part that is 700 nats quieter than
    the loudest of the row counts as silent.
    """

    def __init__(self, packed: Packed, num_heads: int) -> None:
        parts = packed.astype(np.float64)
        output, logsumexp = parts[:, :-num_heads], parts[:, -num_heads:]
        loudest = logsumexp.max(0, initial=-np.inf)
        self._shift = np.where(np.isfinite(loudest), loudest, 0.0)  # (H,)
        weights = np.exp(logsumexp - self._shift)  # (S,H)
        self._sums = np.concatenate([_by_head(output, weights), weights], axis=1)  # (S,D+H)
        self._heads = num_heads
        self._levels: dict[int, _Sums] = {}

    def __len__(self) -> int:
        """The number of parts S."""
        return len(self._sums)

    def merge(self, starts: Places, ends: Places) -> Packed:
        """The partial attentions of the windows [start, end) of parts, `(K,)` each → `(K,D+H)`.

        Raises `ValueError` for a window that is empty or reaches beyond the parts.
        """
        if len(starts) and not (starts.min() >= 0 and (starts < ends).all() and ends.max() <= len(self)):
            raise ValueError(f"windows of {len(self)} parts: need 0 <= start < end <= {len(self)}")
        merged = np.empty((len(starts), self._sums.shape[1]), np.float32)
        for first in range(0, len(starts), _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            self._merge(starts[some], ends[some] - 1, merged[some])
        return merged

    def _merge(self, first: Places, last: Places, merged: Packed) -> None:
        """The same of windows from part `first` to part `last` of them, into `merged`."""
        levels = np.frexp((first ^ last).astype(np.float64))[1] - 1  # highest bit in which they differ; -1: none
        sums = np.empty(merged.shape)
        for level in np.unique(levels).tolist():
            rows = np.flatnonzero(levels == level)
            if level < 0:
                sums[rows] = self._sums[first[rows]]
            else:
                table = self._level(level)
                sums[rows] = table[first[rows]] + table[last[rows]]
        weights = sums[:, -self._heads :]
        silent = weights == 0
        shares = np.divide(1.0, weights, out=np.zeros_like(weights), where=~silent)
        logarithms = np.log(weights, out=np.full_like(weights, -np.inf), where=~silent)
        merged[:, : -self._heads] = _by_head(sums[:, : -self._heads], shares)
        merged[:, -self._heads :] = logarithms + self._shift

    def _level(self, level: int) -> _Sums:
        """`(S,D+H)`: in each block of 2·2^level parts, sums from a part of the first half to the middle, and from the
        middle to a part of the second.
        """
        if level not in self._levels:
            half = 1 << level
            padded = np.zeros((-(-len(self) // (2 * half)) * 2 * half, self._sums.shape[1]))
            padded[: len(self)] = self._sums
            blocks = padded.reshape(-1, 2, half, padded.shape[1])
            for step in range(1, half):  # all blocks at once
                blocks[:, 0, half - 1 - step] += blocks[:, 0, half - step]
                blocks[:, 1, step] += blocks[:, 1, step - 1]
            self._levels[level] = padded[: len(self)]
        return self._levels[level]


def _by_head(values: _Sums, factors: _Sums) -> _Sums:
    """`(K,D)` times `(K,H)`, a factor a head."""
    number = factors.shape[1]
    heads = values.reshape(len(values), number, values.shape[1] // number)
    return (heads * factors[:, :, None]).reshape(values.shape)
