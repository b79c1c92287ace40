"""What a clip contributes to every text it is asked with, computed once.

The keys and values of a clip depend on neither latents nor words. At the first read not even the queries do: they are
the learned latents, so what they find in the clip is a summary of N × (D + H) numbers, to which a text's is merged.
Shapes: V clips, B texts (B/V of them about each clip, next to each other), N latents, M inputs, D width, H heads.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.layers.partial_attention import AttentionSummary, KeysValues, merge_summaries
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget
from perceiver_vl.utils.errors import UsageError

# A read of one block, given its attention and the latents that ask
Reading = Callable[[AttentionBlock, Tensor], Tensor]


@dataclass(frozen=True)
class VisionCache:
    """V clips as the reads of one model meet them, at one budget; made by `cache_vision` and `long_vision`.

    `first`: what the learned latents find in each clip at the first read. `later`: for each further read of the
    budget, keys and values, in one part or more. `weights`: `weights_mark` of the model. `seen`: the clips' part of the
    input array `(V,M,D)` and its mask `(V,M)`, where the budget chooses among the latents by what they attend to.
    """

    first: AttentionSummary
    later: tuple[Iterable[KeysValues], ...]
    budget: ComputeBudget
    weights: str
    seen: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        """The number of clips V."""
        return len(self.first)

    def readings(
        self, reads: tuple[str, ...], number: int, text: Tensor | None, text_mask: Tensor | None
    ) -> dict[str, Reading]:
        """The reads of block `number`: of the clips, and of `text (B,M,D)` with its mask `(B,M)` where there is one."""
        if reads == ("joint",):
            return {"joint": partial(self._read, number, text, text_mask)}
        readings: dict[str, Reading] = {"vision": partial(self._read, number, None, None)}
        if text is not None:
            readings["text"] = partial(_read_text, text, text_mask)
        return readings

    def _read(
        self, number: int, text: Tensor | None, text_mask: Tensor | None, block: AttentionBlock, latents: Tensor
    ) -> Tensor:
        queries = block.project_queries(latents)
        if number == 0:
            found = self.first
        else:
            found = reduce(merge_summaries, (block.attend(queries, part) for part in self.later[number - 1]))
        if text is not None:
            in_words = block.attend(queries, block.keys_values(text, text_mask))
            found = merge_summaries(found.repeat(len(text) // len(found)), in_words)
        return block.finish(latents, found)

    def seen_by(self, texts: int | None) -> tuple[Tensor, Tensor]:
        """The clips' tokens and their mask, once for each of the texts about them."""
        assert self.seen is not None
        times = 1 if texts is None else texts // len(self)
        tokens, mask = self.seen
        return tokens.repeat_interleave(times, 0), mask.repeat_interleave(times, 0)

    def budget_for(self, asked: ComputeBudget, weights: str, texts: int | None) -> ComputeBudget:
        """The budget at which the cache is read; the full one stands for its own.

        Raises `UsageError` if other weights, another budget or a number of texts that V does not divide ask.
        """
        if weights != self.weights:
            raise UsageError("vision_cache: made by another model, or before its weights changed; make it again")
        if _of_vision(asked) not in (FULL_BUDGET, _of_vision(self.budget)):
            raise UsageError(f"vision_cache: made at budget {self.budget}, asked at {asked}; make it again at that one")
        if texts is not None and (texts < len(self) or texts % len(self)):
            raise UsageError(f"vision_cache of {len(self)} clips with {texts} texts: need as many texts for each clip")
        return self.budget


def _of_vision(budget: ComputeBudget) -> ComputeBudget:
    """The budget without what concerns texts alone."""
    choice = "first" if budget.latents is None else budget.latent_choice
    return replace(budget, text_latents=None, latent_choice=choice)


def _read_text(text: Tensor, text_mask: Tensor | None, block: AttentionBlock, latents: Tensor) -> Tensor:
    return block(latents.repeat_interleave(len(text) // len(latents), 0), text, text_mask)


@torch.no_grad()
def weights_mark(settings: tuple[Any, ...], weights: Iterable[Tensor]) -> str:
    """A fingerprint of `settings` and `weights` as they are now, for comparing within a process.

    Every change that autograd counts is seen (the version of each weight), and those that go round it (`.data`) by
    the sums over some dozens of each weight's numbers; it takes about a thousandth of a forward.
    """
    digest = hashlib.sha256(repr(settings).encode())
    sums = []
    for weight in weights:
        version = 0 if weight.is_inference() else weight._version
        digest.update(f"{tuple(weight.shape)} {weight.dtype} {weight.device} {version}".encode())
        sums.append(weight.flatten()[:: weight.numel() // 64 + 1].sum(dtype=torch.float64))
    digest.update(torch.stack(sums).cpu().numpy().tobytes())
    return digest.hexdigest()
