"""Find clips by words: a shortlist by unit vectors (multi-stream), re-ranked by partial attentions (mixed stream)."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.loading import load_retriever, model_fingerprint
from perceiver_vl.models.perceiver_vl.retrieval import combined_scores
from perceiver_vl.search.shortlist import EXACT_ROWS, Numbers, open_shortlist
from perceiver_vl.search.store import StoredIndex, Vectors
from perceiver_vl.utils.errors import UsageError

Rerank = Literal["combined", "mixed", "none"]
RERANK_BATCH = 4096  # bounds the memory of a shortlist of any length
RECALL_QUERIES = 64


@dataclass(frozen=True)
class Hit:
    """A clip that was found: `score` orders the hits, `multi_score` is the cosine, `mixed_score` the matching logit."""

    rank: int
    file_name: str
    path: Path
    score: float
    multi_score: float
    mixed_score: float | None
    duration: float | None
    texts: tuple[str, ...]


@dataclass
class SearchResult:
    """The answer to a query: hits, best first; seconds by stage (encode, shortlist, rerank, total); how it was found.

    `method` is that of the shortlist, `recall` the share of the true nearest that it finds on a sample (1 if exact),
    `searched` the number of clips in the index.
    """

    query: str
    hits: list[Hit]
    method: str
    recall: float
    searched: int
    seconds: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = asdict(self)
        for hit in plain["hits"]:
            hit["path"] = str(hit["path"])
        return plain


class Searcher:
    """An index opened once, to answer many queries. The model and the vectors are in memory, the partial attentions on
    disk.
    """

    def __init__(
        self,
        index_folder: str | Path,
        model_folder: str | Path | None = None,
        device: str | torch.device | None = None,
        exact_rows: int = EXACT_ROWS,
    ) -> None:
        """Open an index with the model that made it; `model_folder` says where it is now, should it have moved.

        More than `exact_rows` clips are searched through LanceDB, whose tables are made here if the index has changed.
        Raises `UsageError` for a folder that is not an index, an index without clips, and another model.
        """
        self.index = StoredIndex(index_folder)
        settings = self.index.settings
        if not self.index.clips:
            raise UsageError(
                f"{index_folder}: an index without clips, run perceiver-vl index on a folder that has some"
            )
        folder = Path(model_folder or settings.model)
        if model_folder is None and not folder.is_dir():
            raise UsageError(f"{index_folder}: its model {folder} is not there any more, say where with --model")
        if model_fingerprint(folder) != settings.fingerprint:
            raise UsageError(
                f"{index_folder}: made by another model than {folder} now holds; "
                "give the one that made it with --model, or index again into a new folder"
            )
        self.model, self.processor = load_retriever(folder, device, settings.dtype)
        self.budget = ComputeBudget.parse("" if settings.budget == "full" else settings.budget)
        self._shortlist = open_shortlist(self.index, self._sample_queries, exact_rows)

    @torch.inference_mode()
    def search(self, words: str, top_k: int = 10, shortlist: int = 100, rerank: Rerank = "combined") -> SearchResult:
        """The `top_k` clips for `words`.

        The `shortlist` clips with the largest cosine are scored again by the mixed stream and ordered by
        `combined_scores`, by the matching logit alone (`rerank="mixed"`), or left as they are (`"none"`).
        Raises `UsageError` for an empty query or numbers below 1.
        """
        _check_query(words, top_k, shortlist, rerank)
        seconds: dict[str, float] = {}
        with _timed(seconds, "total"):
            with _timed(seconds, "encode"):
                text_latents = self._encode([words])
                vector = self._vectors(text_latents)[0]
            with _timed(seconds, "shortlist"):
                numbers, cosines = self._shortlist.nearest(vector, top_k if rerank == "none" else max(shortlist, top_k))
            with _timed(seconds, "rerank"):
                mixed = None if rerank == "none" else self._match(numbers, text_latents)
                scores = self._scores(cosines, mixed, rerank)
                order = np.argsort(-scores, kind="stable")[:top_k]
        hits = [
            self._hit(
                rank, int(numbers[i]), float(scores[i]), float(cosines[i]), None if mixed is None else float(mixed[i])
            )
            for rank, i in enumerate(order, start=1)
        ]
        return SearchResult(words, hits, self._shortlist.method, self._shortlist.recall, len(self.index.clips), seconds)

    def _encode(self, texts: list[str]) -> Tensor:
        """Texts → latents `(B,N,D)`."""
        inputs = self.processor(text=texts).to(self.model.device)
        return self.model.encode_text(inputs["input_ids"], inputs["attention_mask"], self.budget)

    def _vectors(self, text_latents: Tensor) -> Vectors:
        vectors: Vectors = self.model.pool_text(text_latents).float().cpu().numpy()
        return vectors

    def _match(self, numbers: Numbers, text_latents: Tensor) -> Vectors:
        """Matching logits `(K,)` of clips with one text `(1,N,D)`, from the stored partial attentions."""
        stored = torch.from_numpy(self.index.partial_attentions(numbers.tolist())).to(self.model.device)
        text = self.model.partial_match(text_latents)
        logits = [self.model.merge_matches(clips, text) for clips in stored.split(RERANK_BATCH)]
        matched: Vectors = torch.cat(logits).float().cpu().numpy()
        return matched

    def _scores(self, cosines: Vectors, mixed: Vectors | None, rerank: Rerank) -> Vectors:
        if mixed is None:
            return cosines
        if rerank == "mixed":
            return mixed
        multi = self.model.logit_scale.item() * torch.from_numpy(cosines)
        combined: Vectors = combined_scores(multi, torch.from_numpy(mixed)).numpy()
        return combined

    def _hit(self, rank: int, number: int, score: float, cosine: float, mixed: float | None) -> Hit:
        clip = self.index.clips[number]
        path = Path(self.index.settings.media, clip.file_name)
        return Hit(rank, clip.file_name, path, score, cosine, mixed, clip.duration, clip.texts)

    @torch.inference_mode()
    def _sample_queries(self) -> Vectors:
        """Unit vectors of captions spread over the index; of clips, where it has no captions."""
        captioned = list(dict.fromkeys(clip.texts[0] for clip in self.index.clips if clip.texts))
        if captioned:
            return self._vectors(self._encode(captioned[:: -(-len(captioned) // RECALL_QUERIES)]))
        block = next(self.index.vectors_by_part())
        return block[:: -(-len(block) // RECALL_QUERIES)]


def _check_query(words: str, top_k: int, shortlist: int, rerank: str) -> None:
    if not words.strip():
        raise UsageError(f"query {words!r}: need at least one word")
    if top_k < 1 or shortlist < 1:
        raise UsageError(f"top_k={top_k}, shortlist={shortlist}: need at least 1 of each")
    if rerank not in get_args(Rerank):
        raise UsageError(f"rerank={rerank!r}: choose {', '.join(get_args(Rerank))}")


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
