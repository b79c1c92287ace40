"""A query of several parts: words, words to leave out, examples, each with a weight.

Shapes: E retrieval vector, D width, H heads, K candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from perceiver_vl.search.query_graph import QueryEncoder
from perceiver_vl.search.rows import Vectors
from perceiver_vl.search.searcher import Rerank, log_softmax
from perceiver_vl.utils.errors import UsageError


@dataclass(frozen=True)
class CombinedQuery:
    """`vector (E,)`: the unit vector of the weighted sum of all parts. `texts`: of those that are words, what `match`
    wants of them, each with its weight; those of words to leave out are negative.
    """

    vector: Vectors
    texts: tuple[tuple[Any, float], ...]

    def match(self, queries: QueryEncoder, clips: Vectors) -> Vectors:
        """The weighted sum of the matching logits `(K,)` of all words with clips `(K,D+H)`."""
        logits: Vectors = np.zeros(len(clips), np.float32)
        for text, weight in self.texts:
            logits = logits + np.float32(weight) * queries.match(clips, text)
        return logits

    def scores(
        self, queries: QueryEncoder, vectors: Vectors, clips: Vectors, rerank: Rerank
    ) -> tuple[Vectors, Vectors, Vectors | None]:
        """Scores, cosines and matching logits `(K,)` of candidates, as `Searcher.search` has them for one text; without
        words the cosines are the scores.
        """
        cosines: Vectors = vectors @ self.vector
        if rerank == "none" or not self.texts:
            return cosines, cosines, None
        mixed = self.match(queries, clips)
        if rerank == "mixed":
            return mixed, cosines, mixed
        return log_softmax(queries.logit_scale * cosines) + log_softmax(mixed), cosines, mixed


def combine(
    words: Sequence[tuple[Vectors, Any, float]], examples: Sequence[tuple[Vectors, float]] = ()
) -> CombinedQuery:
    """Of texts as `QueryEncoder.encode` gives them and the vectors `(E,)` of example clips, with their weights.

    Raises `UsageError` for no part, and for parts that cancel each other out.
    """
    parts = [(vector, weight) for vector, _, weight in words] + list(examples)
    if not parts:
        raise UsageError("query '': need at least one word or example")
    summed: Vectors = np.sum([np.float32(weight) * vector for vector, weight in parts], axis=0, dtype=np.float32)
    length = float(np.linalg.norm(summed))
    if not length > 1e-6:
        raise UsageError("query: its parts cancel each other out, change a weight")
    texts = tuple((text, weight) for _, text, weight in words)
    single = len(parts) == 1 and parts[0][1] > 0  # which is of unit length, to the last bit
    unit: Vectors = parts[0][0] if single else (summed / length).astype(np.float32)
    return CombinedQuery(unit, texts)
