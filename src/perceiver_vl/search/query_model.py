"""A model's side of the words, by torch, as it is loaded from its folder."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.search.query_graph import notes_on
from perceiver_vl.search.rows import IndexSettings, Vectors


class QueryModel:
    """A `QueryEncoder` on any device, in the dtype and at the budget of an index."""

    def __init__(self, model_folder: Path, settings: IndexSettings, device: str | torch.device | None = None) -> None:
        """Load it; raises as `load_folder` does."""
        self.model, self.processor = load_retriever(model_folder, device, settings.dtype)
        self.budget = ComputeBudget.parse("" if settings.budget == "full" else settings.budget)
        self.logit_scale = self.model.logit_scale.item()

    def encode(self, words: str) -> tuple[Vectors, Tensor]:
        """The unit vector `(E,)` and the partial attention `(1,D+H)` of a query."""
        return self.encode_all([words])[0]

    @torch.inference_mode()
    def encode_all(self, words: Sequence[str]) -> list[tuple[Vectors, Tensor]]:
        """The same of several queries, in one pass."""
        inputs = self.processor(text=list(words)).to(self.model.device)
        given = inputs["input_ids"], inputs["attention_mask"], self.budget
        latents, features = self.model.encode_and_pool_text(*given)
        vectors: Vectors = features.float().cpu().numpy()
        return list(zip(vectors, self.model.partial_match(latents).split(1), strict=True))

    def notes(self, words: str) -> list[str]:
        """As of `QueryEncoder`."""
        return notes_on(words, self.processor.tokenizer.backend_tokenizer)

    @torch.inference_mode()
    def match(self, clips: Vectors, text: Tensor) -> Vectors:
        """As of `QueryEncoder`."""
        logits = self.model.merge_matches(torch.from_numpy(clips).to(self.model.device), text)
        matched: Vectors = logits.float().cpu().numpy()
        return matched
