"""Latents attend to inputs and to themselves, k times over; queries attend to the latents (Perceiver, Perceiver IO).

Shapes: B batch, M inputs, C their width, N latents, Q queries, D width, H heads, k blocks, l self-attentions a block.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor, nn

from perceiver_vl.layers.attention import AttentionBlock, Part
from perceiver_vl.layers.expert_block import ExpertBlock
from perceiver_vl.layers.partial_attention import PartialAttention
from perceiver_vl.layers.token_selection import most_diverse

Sharing = Literal["none", "all", "all_but_first"]
_NOT_KEPT = "inputs that were met before do not say how they were attended to: give their tokens, too"


@dataclass(frozen=True)
class Inputs:
    """What one cross-attention attends to: `tokens (B,M,C)`, of which those are real where `mask (B,M)` bool is True
    (None: all). Where `parts` are given, these are attended to, one after the other (`AttentionBlock.forward_parts`),
    and the tokens only say which latents attended to what. `boundary`: where those of the second kind begin
    (`Attention.forward`). `choose`: what is attended to in their place, by the cross-attention and the latents
    `(B,N,D)` that come to it.
    """

    tokens: Tensor | None = None
    mask: Tensor | None = None
    parts: Iterable[Part] | None = None
    boundary: int | None = None
    choose: "Callable[[AttentionBlock, Tensor, Inputs], Inputs] | None" = None

    def of(self, places: Tensor) -> "Inputs":
        """Those of some examples. Raises `ValueError` for inputs in parts."""
        if self.parts is not None or self.tokens is None:
            raise ValueError("inputs in parts: examples cannot leave one by one, ask one at a time")
        mask = None if self.mask is None else self.mask[places]
        return Inputs(self.tokens[places], mask, boundary=self.boundary, choose=self.choose)


@dataclass
class EncoderRecord:
    """What an encoder did on the way; a list is filled, None is not.

    hidden_states: the latents `(B,N,D)` before the first block and after each, the last ones normed. cross_attentions,
    attentions: the weights of the cross-attentions that ran, `(B,H,N,M)`, and of the self-attentions, `(B,H,N,N)`,
    which are written out for it and part of the graph. kept: the places of the latents that went on where not all
    did (`keep_latents`), in the order of the choice, int64 `(B,k)`.
    """

    hidden_states: list[Tensor] | None = None
    cross_attentions: list[Tensor] | None = None
    attentions: list[Tensor] | None = None
    kept: list[Tensor] | None = None


class LatentBlock(nn.Module):
    """One cross-attention to the inputs, then any number of self-attentions of the latents."""

    def __init__(self, cross_attention: AttentionBlock, self_attentions: nn.ModuleList) -> None:
        super().__init__()
        self.cross_attention = cross_attention
        self.self_attentions = self_attentions

    def forward(
        self,
        latents: Tensor,
        inputs: Inputs | None = None,
        *,
        keep_latents: int | None = None,
        absorb: bool = False,
        attributes: Tensor | None = None,
        record: EncoderRecord | None = None,
    ) -> Tensor:
        """`latents (B,N,D)` → `(B,N,D)`; without inputs there is no cross-attention. `keep_latents`: only so many go on
        after it, those that attended to what is most diverse → `(B,keep_latents,D)`. `attributes (1,A)`: what experts
        are chosen by.
        """
        if inputs is not None:
            before = latents
            if inputs.choose is not None:
                inputs = inputs.choose(self.cross_attention, before, inputs)
            if record is not None and record.cross_attentions is not None:
                if inputs.tokens is None:
                    raise ValueError(_NOT_KEPT)
                latents, weights = self.cross_attention.forward_with_weights(
                    before, inputs.tokens, inputs.mask, boundary=inputs.boundary
                )
                record.cross_attentions.append(weights)
            elif inputs.parts is not None:
                latents = self.cross_attention.forward_parts(before, inputs.parts)
            else:
                latents = self.cross_attention(
                    before, inputs.tokens, inputs.mask, boundary=inputs.boundary, absorb=absorb
                )
            if keep_latents is not None:
                chosen = most_diverse(self._weights(before, inputs).mean(1), keep_latents)  # of all heads together
                if record is not None and record.kept is not None:
                    record.kept.append(chosen)
                latents = latents.gather(1, chosen[..., None].expand(-1, -1, latents.shape[-1]))
        for self_attention in self.self_attentions:
            assert isinstance(self_attention, AttentionBlock)
            chosen_by = {"attributes": attributes} if isinstance(self_attention, ExpertBlock) else {}
            if record is not None and record.attentions is not None:
                latents, weights = self_attention.forward_with_weights(latents, **chosen_by)
                record.attentions.append(weights)
            else:
                latents = self_attention(latents, **chosen_by)
        return latents

    def _weights(self, latents: Tensor, inputs: Inputs) -> Tensor:
        if inputs.tokens is None:
            raise ValueError(_NOT_KEPT)
        latents = latents.expand(len(inputs.tokens), -1, -1)
        return self.cross_attention.weights(latents, inputs.tokens, inputs.mask, boundary=inputs.boundary)


class LatentEncoder(nn.Module):
    """k blocks of one cross-attention to the inputs and l self-attentions of the latents.

        encoder = LatentEncoder(64, num_heads=4, num_latents=16, num_blocks=3, self_attentions_per_block=2,
        input_size=32) encoder(torch.randn(2, 1000, 32))  # (2, 16, 64)

    `num_latents`: learned ones, drawn from N(0, 0.02); None: they are handed in at each forward.
    `self_attentions_per_block`: l, or one number for each block; 0 is allowed.
    `share_cross_attentions`, `share_self_attentions`: whether the blocks have weights of their own, all the same, or
    all but the first the same (the Perceiver of Jaegle et al. 2021 shares all self-attentions, and all cross-attentions
    but the first). `layer_drop`: the probability that a cross-attention is left out in training, the first `undropped`
    excepted; it is drawn anew at each forward, from `layer_drop_seed` where that is set (LayerDrop, Fan et al. 2020, on
    cross-attentions alone). `final_norm`: norm the latents at the end. `cross_attention`: arguments of `AttentionBlock`
    in which the cross-attentions differ from the self-attentions; `block`: arguments of both. `experts`: arguments of
    `ExpertBlock`, which every other self-attention then is, beginning with the first.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        num_latents: int | None = None,
        num_blocks: int = 1,
        self_attentions_per_block: int | Sequence[int] = 1,
        input_size: int | None = None,
        share_cross_attentions: Sharing = "none",
        share_self_attentions: Sharing = "none",
        layer_drop: float = 0.0,
        undropped: int = 1,
        final_norm: bool = True,
        eps: float = 1e-5,
        cross_attention: Mapping[str, Any] | None = None,
        experts: Mapping[str, Any] | None = None,
        **block: Any,
    ) -> None:
        super().__init__()
        self.layer_drop, self.undropped = layer_drop, undropped
        self.layer_drop_seed: int | None = None
        self.latents = None if num_latents is None else nn.Parameter(0.02 * torch.randn(num_latents, hidden_size))
        depths = self_attentions_per_block
        depths = [depths] * num_blocks if isinstance(depths, int) else list(depths)
        alone = {"none": num_blocks, "all": 0, "all_but_first": 1}[share_self_attentions]  # blocks that share nothing
        if len(depths) != num_blocks or len(set(depths[alone:])) > 1:
            raise ValueError(
                f"self_attentions_per_block={depths}: need one number for each of {num_blocks} blocks, the same where "
                "they share weights"
            )
        alike = {"hidden_size": hidden_size, "num_heads": num_heads, "eps": eps, **block}
        differing = {**alike, "input_size": input_size, **(cross_attention or {})}
        layers = count()
        blocks: list[LatentBlock] = []
        for number, depth in enumerate(depths):
            shared = blocks[-1] if blocks else None
            cross = shared.cross_attention if shared and _is_shared(number, share_cross_attentions) else None
            own = shared.self_attentions if shared and _is_shared(number, share_self_attentions) else None
            blocks.append(
                LatentBlock(
                    AttentionBlock(**differing) if cross is None else cross,
                    nn.ModuleList(_self_attention(alike, experts, next(layers)) for _ in range(depth))
                    if own is None
                    else own,
                )
            )
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(hidden_size, eps=eps) if final_norm else nn.Identity()

    def forward(
        self,
        inputs: Tensor | Sequence[Inputs | None],
        mask: Tensor | None = None,
        latents: Tensor | None = None,
        *,
        attending: Sequence[bool] | None = None,
        blocks: int | None = None,
        keep_latents: int | None = None,
        absorb: bool = False,
        attributes: Tensor | None = None,
        record: EncoderRecord | None = None,
    ) -> Tensor:
        """`inputs (B,M,C)`, `mask (B,M)` bool, True where real → latents `(B,N,D)`.

        `inputs` may also be `Inputs` for each block, None for one that is to have no cross-attention. `latents
        (B,N,D)`: in the place of the learned ones. `attending`: which blocks attend to the inputs (None: as
        `attending_blocks` says); `blocks`: only the first so many run at all (an early exit). `keep_latents`: after the
        first cross-attention only so many latents go on, the most diverse (Dynamic Latent Access). `absorb`: as of
        `Attention.forward`. `attributes (1,A)`: bits by which experts are chosen, where there are some. `record`: where
        to note what happens on the way.
        """
        given = [Inputs(inputs, mask)] * len(self.blocks) if isinstance(inputs, Tensor) else inputs
        if latents is None:
            if self.latents is None or not isinstance(inputs, Tensor):
                raise ValueError("latents=None: this encoder has none of its own, hand some in")
            latents = self.latents.expand(len(inputs), -1, -1)
        attending = self.attending_blocks() if attending is None else attending
        for number, attends in enumerate(attending[:blocks]):
            if record is not None and record.hidden_states is not None:
                record.hidden_states.append(latents)
            own = given[number] if attends else None
            keep = keep_latents if own is not None else None
            latents = self.blocks[number](
                latents, own, keep_latents=keep, absorb=absorb, attributes=attributes, record=record
            )
            keep_latents = keep_latents if own is None else None  # once
        latents = self.norm(latents)
        if record is not None and record.hidden_states is not None:
            record.hidden_states.append(latents)
        return latents

    def in_turn(
        self,
        inputs: Sequence[Inputs | None],
        latents: Tensor,
        *,
        every: int = 1,
        attending: Sequence[bool] | None = None,
        blocks: int | None = None,
        keep_latents: int | None = None,
        absorb: bool = False,
        attributes: Tensor | None = None,
    ) -> Generator[Tensor, Tensor | None, None]:
        """`forward`, stopping after each `every` blocks: yields the latents `(B,N,D)` as if these had been the last.
        What is sent, int64, are the places of the examples that go on; the others leave the batch.
        """
        given = list(inputs)
        attending = self.attending_blocks() if attending is None else attending
        for number, attends in enumerate(attending[:blocks]):
            own = given[number] if attends else None
            keep = keep_latents if own is not None else None
            latents = self.blocks[number](latents, own, keep_latents=keep, absorb=absorb, attributes=attributes)
            keep_latents = keep_latents if own is None else None
            if (number + 1) % every == 0:
                places = yield self.norm(latents)
                if places is not None and len(places) < len(latents):
                    latents = latents[places]
                    given = [None if one is None else one.of(places) for one in given]

    def attending_blocks(self, cross_attentions: int | None = None) -> list[bool]:
        """For each block whether it attends to the inputs: the first `cross_attentions` (None: all), less what
        LayerDrop takes of them, drawn anew at each call.
        """
        number = len(self.blocks)
        dropped = [False] * number
        if self.training and self.layer_drop > 0:
            generator = None
            if self.layer_drop_seed is not None:
                generator = torch.Generator().manual_seed(self.layer_drop_seed)
            drawn = torch.rand(number - self.undropped, generator=generator)
            dropped[self.undropped :] = (drawn < self.layer_drop).tolist()
        most = number if cross_attentions is None else cross_attentions
        return [place < most and not dropped[place] for place in range(number)]


def _self_attention(block: Mapping[str, Any], experts: Mapping[str, Any] | None, number: int) -> AttentionBlock:
    """The one of this number of an encoder's."""
    return AttentionBlock(**block) if experts is None or number % 2 else ExpertBlock(**block, **experts)


def _is_shared(number: int, sharing: Sharing) -> bool:
    """Whether block `number` has the weights of the block before."""
    return sharing == "all" or (sharing == "all_but_first" and number > 1)


class QueryDecoder(nn.Module):
    """Queries attend to latents once: one cross-attention block, and a norm.

        decoder = QueryDecoder(64, num_heads=4, num_queries=10)
        decoder(torch.randn(2, 16, 64))  # (2, 10, 64)

    `num_queries`: learned ones, drawn from N(0, 0.02); None: they are handed in. No query sees another, so those of
    several tasks can be asked together or apart. `input_size`: width of the latents, where it is not `hidden_size`.
    `block`: further arguments of `AttentionBlock`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        num_queries: int | None = None,
        input_size: int | None = None,
        final_norm: bool = True,
        eps: float = 1e-5,
        **block: Any,
    ) -> None:
        super().__init__()
        self.queries = None if num_queries is None else nn.Parameter(0.02 * torch.randn(num_queries, hidden_size))
        self.block = AttentionBlock(hidden_size, num_heads, input_size=input_size, eps=eps, **block)
        self.norm = nn.LayerNorm(hidden_size, eps=eps) if final_norm else nn.Identity()

    def forward(
        self, latents: Tensor, queries: Tensor | None = None, mask: Tensor | None = None, *, absorb: bool = False
    ) -> Tensor:
        """`latents (B,N,D)`, `mask (B,N)` bool, `queries (B,Q,D)` in the place of the learned ones → `(B,Q,D)`.

        `absorb`: as of `Attention.forward`.
        """
        if queries is None:
            if self.queries is None:
                raise ValueError("queries=None: this decoder has none of its own, hand some in")
            queries = self.queries.expand(len(latents), -1, -1)
        return self.norm(self.block(queries, latents, mask, absorb=absorb))

    def partial_attention(self, latents: Tensor, queries: Tensor, *, absorb: bool = False) -> PartialAttention:
        """What `queries (B or 1,Q,D)` find in `latents (B,N,D)`, which are some of all."""
        return self.block.partial_attention(queries, latents, absorb=absorb)

    def from_partial_attention(self, queries: Tensor, partial: PartialAttention) -> Tensor:
        """What `forward` gives for `queries (…,Q,D)`, from what they find in all latents together → `(…,Q,D)`."""
        return self.norm(self.block.from_partial_attention(queries, partial))
