"""Latents that are the last of their inputs: each attends to what comes before it.

Source: Perceiver AR (Hawthorne et al. 2022), 3.

Shapes: B batch, M inputs, P of them the prefix, N = M - P latents, C width of the inputs, D width of the latents,
H heads, d channels of a head.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from perceiver_vl.layers.attention import AttentionBlock
from perceiver_vl.layers.partial_attention import KeysValues, PartialAttention, merge

_Of = TypeVar("_Of", KeysValues, PartialAttention)


@dataclass(frozen=True)
class Inputs:
    """`embeddings (B,M,C)`, `mask (B,M)` bool, True where real, and `positions (B,M)` for rotary attentions."""

    embeddings: Tensor
    mask: Tensor
    positions: Tensor

    def __getitem__(self, columns: slice) -> "Inputs":
        return Inputs(self.embeddings[:, columns], self.mask[:, columns], self.positions[:, columns])

    def __len__(self) -> int:
        """How many columns M."""
        return self.mask.shape[1]

    def gather(self, columns: Tensor) -> "Inputs":
        """Of each row the columns `(B,K)` int64."""
        wide = columns[..., None].expand(-1, -1, self.embeddings.shape[-1])
        return Inputs(self.embeddings.gather(1, wide), self.mask.gather(1, columns), self.positions.gather(1, columns))

    def rows(self, rows: Tensor) -> "Inputs":
        """Rows `(B,)` int64 of the batch."""
        return Inputs(self.embeddings[rows], self.mask[rows], self.positions[rows])

    def beside(self, later: "Inputs") -> "Inputs":
        """These, then `later`."""
        pairs = zip(vars(self).values(), vars(later).values(), strict=True)
        return Inputs(*(torch.cat([first, second], 1) for first, second in pairs))


class CausalCrossAttention(AttentionBlock):
    """A block whose latents are the last of its inputs, which it norms. `own_norm`: whether the norm of the inputs is
    that of all (the authors), or of the prefix alone, and latents are met as their queries are normed (public
    implementations in PyTorch).
    """

    def __init__(self, *args: Any, own_norm: Literal["inputs", "queries"] = "inputs", **block: Any) -> None:
        super().__init__(*args, norm_inputs=True, **block)
        self.own_norm = own_norm

    def own_keys_values(self, latents: Tensor, own: Inputs) -> KeysValues:
        """Of the latents' own places: `latents (B,N,D)`, and what they were made of."""
        return self.attention.keys_values(self._own(latents, own.embeddings), None, own.positions)

    def forward(self, latents: Tensor, inputs: Tensor, mask: Tensor, positions: Tensor) -> Tensor:  # type: ignore[override]
        """`latents (B,N,D)`, `inputs (B,P+N,C)` and their `positions (B,P+N)`, `mask (B,N,P+N)` bool → `(B,N,D)`."""
        number = latents.shape[1]
        own = self._own(latents, inputs[:, -number:])
        attended = self.attention(
            self.norm1(latents),
            torch.cat([self.input_norm(inputs[:, :-number]), own], 1),
            mask,
            query_positions=positions[:, -number:],
            input_positions=positions,
        )
        return self._add(latents, attended)

    def _own(self, latents: Tensor, embeddings: Tensor) -> Tensor:
        return self.norm1(latents) if self.own_norm == "queries" else self.input_norm(embeddings)


@dataclass
class CausalCache:
    """What later inputs need of those so far. Exact: every answer is what `CausalLatents.forward` gives over all.

    own: the inputs that are latents now. prefix: keys and values of all before them, of each cross-attention, if
    `keep_prefix`. found: what each latent finds in the prefix by the first cross-attention, which merges with what it
    finds in a latent that becomes prefix. kept: keys and values of the latents, of each attention.
    """

    keep_prefix: bool = True
    prefix_length: int = 0
    own: Inputs | None = None
    prefix: list[KeysValues | None] = field(default_factory=list)
    found: PartialAttention | None = None
    kept: list[KeysValues | None] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Of all inputs, M."""
        return self.prefix_length + (0 if self.own is None else len(self.own))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take rows `beam_idx (B,)` int64, as beam search does."""
        self.own = None if self.own is None else self.own.rows(beam_idx)
        self.prefix = [None if part is None else _rows(part, beam_idx) for part in self.prefix]
        self.kept = [None if part is None else _rows(part, beam_idx) for part in self.kept]
        self.found = None if self.found is None else _rows(self.found, beam_idx)


class CausalLatents(nn.Module):
    """Perceiver AR between embeddings and logits: latents at the last places attend to all inputs before them once or
    more, and to each other, causally.

        core = CausalLatents(64, num_heads=4, num_layers=2)
        core(Inputs(torch.randn(2, 1000, 64), torch.ones(2, 1000).bool(), torch.arange(1000).expand(2, -1)), 990)

    gives `(2,10,64)`. `num_layers`: self-attentions of the latents. `cross_attentions`: for each how many of these come
    before it. `query_projection`: latents begin as a projection of their embeddings (the authors), else as these.
    `cross_attention`: arguments of `CausalCrossAttention` in which they differ; `layer_blocks`: arguments of single
    layers in which these do; `block`: arguments of all.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_layers: int,
        *,
        cross_attentions: Sequence[int] = (0,),
        input_size: int | None = None,
        query_projection: bool = False,
        final_norm: bool = True,
        eps: float = 1e-5,
        cross_attention: Mapping[str, Any] | None = None,
        layer_blocks: Sequence[Mapping[str, Any]] | None = None,
        **block: Any,
    ) -> None:
        super().__init__()
        alike = {"hidden_size": hidden_size, "num_heads": num_heads, "eps": eps, **block}
        differing = {**alike, "input_size": input_size, **(cross_attention or {})}
        self.places, self.input_size = list(cross_attentions), input_size or hidden_size
        self.query_projection = nn.Linear(self.input_size, hidden_size) if query_projection else nn.Identity()
        self.cross_attentions = nn.ModuleList(CausalCrossAttention(**differing) for _ in self.places)
        own = layer_blocks or [{}] * num_layers
        self.layers = nn.ModuleList(AttentionBlock(**{**alike, **own[number]}) for number in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size, eps=eps) if final_norm else nn.Identity()

    def forward(self, inputs: Inputs, prefix_length: int, kept_prefix: Tensor | None = None) -> Tensor:
        """The latents at the last M - P places → `(B,N,D)`; `kept_prefix (B,K)` int64: only these of the prefix are
        there (prefix dropout). A latent that is padding sees itself alone, and no other sees it.
        """
        prefix, own = inputs[:prefix_length], inputs[prefix_length:]
        prefix = prefix if kept_prefix is None else prefix.gather(kept_prefix)
        among, seen = causal_mask(own.mask, len(own)), prefix.beside(own)
        mask = torch.cat([prefix.mask[:, None].expand(-1, len(own), -1), among], -1)
        latents = self.query_projection(own.embeddings)
        for block, _ in self._in_order():
            if isinstance(block, CausalCrossAttention):
                latents = block(latents, seen.embeddings, mask, seen.positions)  # tensors, as checkpointing wants them
            else:
                latents = block(latents, None, among, query_positions=own.positions, input_positions=own.positions)
        return self.norm(latents)

    @torch.no_grad()
    def extend(self, cache: CausalCache, new: Inputs, prefix_length: int, *, chunk: int = 4096) -> Tensor:
        """The latents at the places of `new` that are not prefix, after all that the cache holds → `(B,≤M,D)`.

        The first `prefix_length` of all inputs are the prefix from now on, and never fewer than before. While it stays
        the same, only new latents are computed. When it grows, a latent is gone that the others attended to, so these
        are computed again: what they find in the prefix is merged, what they find in each other is found anew. New
        prefix is attended to `chunk` inputs at a time, so memory does not grow with it but by its keys and values, and
        by those only if the cache is to keep them.
        """
        inputs = new if cache.own is None else cache.own.beside(new)
        drop, before = prefix_length - cache.prefix_length, len(inputs) - len(new)
        turned, own, again = inputs[:drop], inputs[drop:], drop > 0 or cache.own is None
        old = max(0, before - drop)  # latents that were latents before
        rows = own if again else own[old:]  # those that are computed
        if again:
            cache.kept = [None] * (len(self.cross_attentions) + len(self.layers))
            cache.found = None if cache.found is None else _queries(cache.found, slice(drop, None))
        cache.prefix = cache.prefix or [None] * len(self.cross_attentions)
        among, latents = causal_mask(own.mask, len(rows)), self.query_projection(rows.embeddings)
        for place, (block, number) in enumerate(self._in_order()):
            q = block.project_queries(latents, rows.positions)
            if isinstance(block, CausalCrossAttention):
                fresh = block.own_keys_values(latents, rows)
            else:
                fresh = block.keys_values(block.norm1(latents), None, rows.positions)
            cache.kept[place] = kept = _joined([*filter(None, [cache.kept[place]]), fresh])
            attended = block.attend(q, KeysValues(kept.keys, kept.values, among))
            if isinstance(block, CausalCrossAttention):
                known = cache.found if number == 0 and again else None
                found = self._find_in_prefix(cache, number, q, known, turned, chunk)
                attended = merge(found, attended)
                if number == 0:
                    cache.found = found if again or cache.found is None else _beside(cache.found, found)
            latents = block.from_partial_attention(latents, attended)
        cache.own, cache.prefix_length = own, prefix_length
        return self.norm(latents[:, len(latents[0]) - min(len(new), len(own)) :])

    def _find_in_prefix(
        self, cache: CausalCache, number: int, q: Tensor, known: PartialAttention | None, turned: Inputs, chunk: int
    ) -> PartialAttention:
        """What `q (B,H,N,d)` find in the prefix by one cross-attention. The first of them `known` what they find in its
        old part; `turned` is its new part, which the cache gets.
        """
        block = self.cross_attentions[number]
        assert isinstance(block, CausalCrossAttention)
        old, parts = cache.prefix[number], []
        asking = q if known is None else q[:, :, known.logsumexp.shape[-1] :]
        found = _nothing(asking) if old is None else block.attend(asking, old)
        found = found if known is None else _beside(known, found)
        for start in range(0, len(turned), chunk):
            part = turned[start : start + chunk]
            parts.append(block.keys_values(part.embeddings, part.mask, part.positions))
            found = merge(found, block.attend(q, parts[-1]))
            if not cache.keep_prefix:
                parts.clear()
        if parts:
            cache.prefix[number] = _joined([*filter(None, [old]), *parts])
        return found

    def _in_order(self) -> Iterator[tuple[AttentionBlock, int]]:
        """Every block as it is run, and which it is of its kind."""
        for depth in range(len(self.layers) + 1):
            for number, place in enumerate(self.places):
                if place == depth:
                    yield cast(AttentionBlock, self.cross_attentions[number]), number
            if depth < len(self.layers):
                yield cast(AttentionBlock, self.layers[depth]), depth


def causal_mask(real: Tensor, number: int) -> Tensor:
    """What the last `number` of N latents see of all, `real (B,N)` bool → `(B,number,N)` bool: real ones up to
    themselves, and themselves in any case, so that no row is empty.
    """
    places = torch.arange(real.shape[1], device=real.device)
    rows = places[len(places) - number :, None]
    return (real[:, None] & (places <= rows)) | (places == rows)


def _joined(parts: list[KeysValues]) -> KeysValues:
    masks = [part.mask for part in parts if part.mask is not None]
    return KeysValues(
        torch.cat([part.keys for part in parts], 2),
        torch.cat([part.values for part in parts], 2),
        torch.cat(masks, 1) if masks else None,
    )


def _nothing(q: Tensor) -> PartialAttention:
    """What queries `(B,H,N,d)` find where there is nothing."""
    scores = q[..., 0].to(torch.promote_types(q.dtype, torch.float32))
    return PartialAttention(torch.zeros_like(q), torch.full_like(scores, -torch.inf))


def _beside(first: PartialAttention, second: PartialAttention) -> PartialAttention:
    """Of some queries, and of others."""
    outputs, weights = (first.output, second.output), (first.logsumexp, second.logsumexp)
    return PartialAttention(torch.cat(outputs, -2), torch.cat(weights, -1))


def _queries(found: PartialAttention, which: slice) -> PartialAttention:
    return PartialAttention(found.output[..., which, :], found.logsumexp[..., which])


def _rows(part: _Of, rows: Tensor) -> _Of:
    """Rows `(B,)` int64 of the batch."""
    taken: list[Any] = [None if value is None else value[rows] for value in vars(part).values()]
    return type(part)(*taken)
