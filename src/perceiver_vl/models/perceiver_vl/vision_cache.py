"""What a clip contributes to every text it is asked with, computed once.

The keys and values of a clip depend on neither latents nor words. At the first cross-attention not even the queries do:
they are the learned latents, so what they find in the clip is a partial attention of N × (D + H) numbers, to which a
text's is merged. Shapes: V clips, B texts (B/V of them about each clip, next to each other), N latents, M inputs, D
width, H heads.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from perceiver_vl.layers.attention import AttentionBlock, Part
from perceiver_vl.layers.partial_attention import KeysValues, PartialAttention, merge, unpack
from perceiver_vl.layers.perceiver import Inputs
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget, TrainingBudget
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.embeddings import InputEmbeddings
from perceiver_vl.models.perceiver_vl.encoders import BaseVectors
from perceiver_vl.models.perceiver_vl.fewer_keys import (
    join_masks,
    reads_by_latents,
    reads_by_text,
    reduce_frames,
    refuse_without_tokens,
)
from perceiver_vl.models.perceiver_vl.long_video import SPILL_BYTES, Chunks, EmbeddedChunks, ProjectedChunks, Spill
from perceiver_vl.utils.errors import UsageError


@dataclass(frozen=True)
class VisionCache:
    """V clips as the cross-attentions of one model meet them, at one budget; made by `cache_vision` and `long_vision`.

    `clips`: their number V. `first`: what the learned latents find in each clip at the first cross-attention; None
    where words are read before. `later`: for each further cross-attention of the budget (then, each), keys and values,
    in one part or more. `weights`: `weights_fingerprint` of the model.
    `seen`: the clips' part of the input array `(V,M,D)` and its mask `(V,M)`, where the budget chooses among the
    latents by what they attend to, or words or latents choose what is read (`fewer_keys`; then that is all there is).
    `base (V,E)`: what a pretrained encoder alone says of them, where there is one. `frames`: as of `InputArray`.
    """

    clips: int
    first: PartialAttention | None
    later: tuple[Iterable[KeysValues], ...]
    budget: ComputeBudget
    weights: str
    seen: tuple[Tensor, Tensor] | None = None
    base: Tensor | None = None
    frames: int | None = None

    def __len__(self) -> int:
        """The number of clips V."""
        return self.clips

    def base_of(self, texts: int) -> Tensor | None:
        """`base` for so many texts `(B,E)`, as many for each clip, in their order; of no text: of the clips."""
        return None if self.base is None else self.base.repeat_interleave(max(1, texts) // len(self), 0)

    def inputs(
        self, number: int, modalities: tuple[str, ...], text: Tensor | None, text_mask: Tensor | None
    ) -> list[Inputs | None]:
        """What block `number` of the k attends to, by modality: the clips, each once for every text about it, and
        `text (B,M,D)` with its mask `(B,M)`, where there is one. Beyond the budget there is nothing.
        """
        if number >= len(self.later) + (self.first is not None):
            return [None] * len(modalities)
        times = 1 if text is None else len(text) // len(self)
        parts: Iterable[Part]
        if self.first is None:
            parts = self.later[number]
        else:
            parts = [self.first.repeat(times)] if number == 0 else self.later[number - 1]
        tokens, mask = (None, None) if self.seen is None else (one.repeat_interleave(times, 0) for one in self.seen)
        boundary = None if tokens is None else tokens.shape[1]
        if modalities != ("joint",):
            apart = {
                "vision": Inputs(tokens, mask, parts),
                "text": None if text is None else Inputs(text, text_mask),
            }
            return [apart[modality] for modality in modalities]
        if text is not None:
            parts = chain(parts, [(text, text_mask, 0)])  # none of these is vision
            if tokens is not None and mask is not None:
                assert text_mask is not None
                tokens, mask = torch.cat([tokens, text], dim=1), join_masks([mask, text_mask])
        return [Inputs(tokens, mask, parts, boundary)]

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


@torch.no_grad()
def weights_fingerprint(settings: tuple[Any, ...], weights: Iterable[Tensor]) -> str:
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


class _Encoder(Protocol):
    """Of the encoder: the cross-attentions that vision comes in by, and the latents that are first to attend."""

    @property
    def vision_cross_attentions(self) -> list[AttentionBlock]: ...

    def first_latents(self, which: int) -> Tensor: ...


class _Base(Protocol):
    """Of `PerceiverVLModel`: what reading clips beforehand needs."""

    config: PerceiverVLConfig
    embeddings: InputEmbeddings

    @property
    def encoder(self) -> _Encoder: ...

    @property
    def base(self) -> BaseVectors | None: ...

    def embed_inputs(
        self, *, pixel_values: Tensor, frame_mask: Tensor | None, budget: ComputeBudget, modality: str | None
    ) -> Any: ...

    def encode_frames(self, pixel_values: Tensor) -> Tensor: ...

    def vision_fingerprint(self) -> str: ...

    def may_absorb(self, part: Any) -> bool: ...

    def __call__(self, *inputs: Tensor | None, vision_cache: "VisionCache") -> Any: ...


def why_whole(config: PerceiverVLConfig) -> str | None:
    """Why a model's clips cannot be read in chunks of frames, in words; None where they can."""
    if config.temporal_kernel:
        return f"temporal_kernel={config.temporal_kernel}: tokens of neighbouring frames are mixed"
    if config.tubelet_size > 1:
        return f"tubelet_size={config.tubelet_size}: a token sees several frames"
    for name in ("rolled_tokens", "rolled_channels"):
        if share := getattr(config, name):
            return f"{name}={share}: tokens come from neighbouring frames"
    return None


class VisionCacheMixin:
    """What every model can do with clips beforehand; the results go in as `vision_cache=`."""

    def cache_vision(
        self,
        pixel_values: Tensor,
        frame_mask: Tensor | None = None,
        budget: ComputeBudget | None = None,
        modality: str | None = None,
    ) -> VisionCache:
        """All that `pixel_values (B,T,3,H,W)`, `frame_mask (B,T)` will contribute to any text, for reading at `budget`.
        `modality`: what they are instead of pixels, as of `PerceiverVLModel.embed_inputs`.

        It takes 2·M·D numbers for each cross-attention after the first, and N·(D+H) for that (2·M·D as well where the
        words are read first); M·D in all where words or latents choose what is read. Raises `UsageError` for a budget
        that the model does not have.
        """
        base = _base(self)
        budget = budget or FULL_BUDGET
        _check_budget(base, budget)
        clip: dict[str, Any] = {"pixel_values": pixel_values, "frame_mask": frame_mask, "modality": modality}
        array = base.embed_inputs(**clip, budget=budget)
        assert array.vision is not None
        assert array.vision_mask is not None
        seen, marks = (array.vision, array.vision_mask), (base.vision_fingerprint(), array.vision_base, array.frames)
        if reads_by_text(base.config) or reads_by_latents(base.config):
            return VisionCache(len(array.vision), None, (), budget, marks[0], seen, *marks[1:])
        cross_attentions, latents = _first_queries(base, budget)
        first = None
        if not _reads_text_first(base):
            first = cross_attentions.pop(0).partial_attention(
                latents, array.vision, array.vision_mask, absorb=base.may_absorb(base.encoder)
            )
        later = tuple((block.keys_values(array.vision, array.vision_mask),) for block in cross_attentions)
        kept = seen if _chooses(base, budget) else None
        return VisionCache(len(array.vision), first, later, budget, marks[0], kept, *marks[1:])

    def cache_from_partial_attention(self, packed: Tensor, budget: ComputeBudget) -> VisionCache:
        """The cache of clips whose first cross-attention was stored: `packed (B,N,D+H)` as `vision_cache.first.pack()`
        gave it.

        With one cross-attention that is all there is to a clip. That the weights are still the same is for the caller
        to know. Raises `UsageError` for a budget of several cross-attentions, of another number of latents, or that
        chooses among them.
        """
        base = _base(self)
        _check_budget(base, budget)
        _refuse_choice(base, budget)
        if _reads_text_first(base):
            raise UsageError(
                "modality_aggregation=text_first: what is found in a clip depends on the words, no attention is stored"
            )
        if base.config.has_vision_base:
            raise UsageError(
                f"base={base.config.base}: a first cross-attention does not hold what its encoder alone says"
            )
        if base.config.cross_attentions_of(budget) != 1:
            raise UsageError(f"budget {budget}: a first cross-attention is all of a clip only at cross_attentions=1")
        wanted = (base.config.latents_of(budget)[0], base.config.hidden_size + base.config.num_attention_heads)
        if packed.shape[1:] != wanted:
            raise UsageError(
                f"first cross-attentions of shape {tuple(packed.shape)}: need (B, {wanted[0]}, {wanted[1]})"
            )
        first = unpack(packed, base.config.num_attention_heads)
        return VisionCache(len(packed), first, (), budget, base.vision_fingerprint())

    @contextmanager
    def long_vision(
        self,
        chunks: Chunks,
        *,
        num_frames: int | None = None,
        budget: ComputeBudget | None = None,
        spill: str | Path | None = None,
        spill_bytes: int = SPILL_BYTES,
    ) -> Iterator[VisionCache]:
        """Clips of any length, in the memory of one chunk, for any number of texts within the `with` block.

        `chunks`: `pixel_values (B,T,3,H,W)` of T frames at a time (T may vary), or pairs of them and `frame_mask
        (B,T)`; either an iterable, or a function that opens it. Reads after the first need the chunks again: from the
        function or the list, or, if `spill` names a folder, from a file there that holds at most `spill_bytes` of
        embedded frames and is deleted afterwards. `num_frames`: how many frames in all; needed beyond `max_frames`,
        where the temporal table is interpolated. For use without gradients.
        Raises `UsageError` for a stream that can be read once where more is needed and there is no spill, for a budget
        of frames or that chooses among the latents, and for frames that are not as many as said; `PerceiverVLError` for
        a spill that has no room. A model whose tokens see several frames (`temporal_kernel`, `tubelet_size`,
        `rolled_tokens`), or whose latents choose what they read, takes clips whole alone.
        """
        base = _base(self)
        budget = budget or FULL_BUDGET
        _check_budget(base, budget)
        _refuse_choice(base, budget)
        if budget.frames is not None:
            raise UsageError(f"budget {budget}: every frame of a stream is read, give it fewer frames")
        if reason := why_whole(base.config):
            raise UsageError(f"{reason}, which chunks cut apart; give the clip whole (pixel_values), of fewer frames")
        refuse_without_tokens(base.config, base.config.cross_attentions_of(budget), has_text=False)
        cross_attentions, latents = _first_queries(base, budget)
        sums: list[tuple[Tensor, Tensor]] = []
        clips, first_passed = 0, False

        def add(vectors: Tensor, mask: Tensor) -> None:
            if base.base is not None and base.config.base_of_vision and not first_passed:
                sums.append(base.base.sums(vectors, mask))

        def reduce(tokens: Tensor, mask: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
            found = reduce_frames(base.config, tokens, mask, places.shape[-1], places)
            return found.tokens, found.mask

        embedded = EmbeddedChunks(base.embeddings, base.encode_frames, chunks, num_frames, add, reduce)
        anew, text_first = len(cross_attentions) > 1, _reads_text_first(base)
        if embedded.once and (anew or text_first) and spill is None:
            instead = (
                "a folder to spill into" if text_first else "a folder to spill into, or a budget of cross_attentions=1"
            )
            times = "anew for each text" if text_first else f"{len(cross_attentions)} times"
            raise UsageError(
                f"chunks: can be read once, but are read {times}; give a function that opens them, {instead}"
            )
        kept = Spill(spill, spill_bytes) if spill is not None and (anew or text_first) else None
        try:
            first_pass = iter(embedded) if kept is None else kept.copies(embedded)
            absorb, first = base.may_absorb(base.encoder), None
            for tokens, mask in first_pass:
                clips = len(tokens)
                if not text_first:
                    found = cross_attentions[0].partial_attention(latents, tokens, mask, absorb=absorb)
                    first = found if first is None else merge(first, found)
                del tokens, mask  # or they stay until the next are there
            first_passed = True
            of_chunks = cross_attentions if text_first else cross_attentions[1:]
            later = tuple(ProjectedChunks(block, embedded if kept is None else kept) for block in of_chunks)
            known = [torch.stack(one).sum(0) for one in zip(*sums, strict=True)]
            vectors = base.base.of_sums(*known) if base.base is not None and known else None
            yield VisionCache(clips, first, later, budget, base.vision_fingerprint(), base=vectors)
        finally:
            if kept is not None:
                kept.close()

    @torch.no_grad()
    def encode_long(
        self,
        chunks: Chunks,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        num_frames: int | None = None,
        budget: ComputeBudget | None = None,
        spill: str | Path | None = None,
        spill_bytes: int = SPILL_BYTES,
    ) -> Tensor:
        """Clips of any length, alone or with texts `input_ids (B,L)` → latents `(B,N,D)`, as of the clip in one piece.

        The other arguments and what is raised: `long_vision`.
        """
        long = self.long_vision(chunks, num_frames=num_frames, budget=budget, spill=spill, spill_bytes=spill_bytes)
        with long as cache:
            latents: Tensor = _base(self)(input_ids, attention_mask, vision_cache=cache).last_hidden_state
        return latents


def _base(model: object) -> _Base:
    return cast(_Base, model.base_model)  # type: ignore[attr-defined]


def _first_queries(base: _Base, budget: ComputeBudget) -> tuple[list[AttentionBlock], Tensor]:
    """The cross-attentions that vision comes in by at `budget`, and the latents that attend first, `(1,N,D)`."""
    blocks = base.encoder.vision_cross_attentions[: base.config.cross_attentions_of(budget)]
    return blocks, base.encoder.first_latents(base.config.latents_of(budget)[0])


def _check_budget(base: _Base, budget: ComputeBudget) -> None:
    base.config.check_budget(budget)
    if isinstance(budget, TrainingBudget):
        raise UsageError(f"budget {budget}: drawn for a step of training, clips are cached for use")


def _reads_text_first(base: _Base) -> bool:
    return base.config.modality_aggregation == "text_first"


def _chooses(base: _Base, budget: ComputeBudget) -> bool:
    """Whether the budget chooses among the latents after the first cross-attention."""
    first, kept = base.config.latents_of(budget)
    return kept < first


def _refuse_choice(base: _Base, budget: ComputeBudget) -> None:
    """A partial attention does not say what each latent attended to."""
    if _chooses(base, budget):
        raise UsageError(f"budget {budget}: the first cross-attention is not kept whole here, leave out latent_choice")
