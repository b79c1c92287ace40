"""Fewer keys: vision tokens merged, summed up, chosen by words, sampled at points, or read by regions; and rolled.

A token that stands for several keeps their number, its size, whose logarithm is added to the scores of attention
(proportional attention): what merges tokens that are alike changes nothing. Padding has size 0.
Shapes: B batch, M tokens, K of them that are left, T frames, P patches a frame, S points, D width, d width of keys.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class MergedTokens:
    """`tokens (B,K,D)`, `sizes (B,K)`: how many each stands for, and `places (B,M)` int64: which of them each of the M
    tokens is in.
    """

    tokens: Tensor
    sizes: Tensor
    places: Tensor


def merge_tokens(tokens: Tensor, count: int, sizes: Tensor | None = None) -> MergedTokens:
    """`tokens (B,M,D)` → `count` of them, the most alike merged (token merging, Bolya et al. 2023, section 3).

    Bipartite soft matching, in as many rounds as it takes, for a round at most halves them: of every second token the
    most similar one (cosine) among the others is found, and the pairs that are most alike become their mean, weighed by
    size. `sizes (B,M)`: how many each stands for already, 0 for padding, which goes first, and adds nothing to what it
    is merged with; None: one. M tokens that are no more than `count` stay as they are. The matching has no gradient,
    the means have one.
    """
    if sizes is None:
        sizes = torch.ones_like(tokens[..., 0])
    places = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
    while tokens.shape[1] > max(1, count):
        fewer = max(1, count, (tokens.shape[1] + 1) // 2)
        goes_to = _goes_to(tokens.detach(), sizes, fewer)
        tokens, sizes = _weighed_means(tokens, sizes, goes_to, fewer)
        places = goes_to.gather(1, places)
    return MergedTokens(tokens, sizes, places)


def _goes_to(tokens: Tensor, sizes: Tensor, fewer: int) -> Tensor:
    """One round of matching: of each token of `(B,M,D)` its place among `fewer` `(B,M)` int64."""
    number = tokens.shape[1]
    unit, is_real = F.normalize(tokens, dim=-1), sizes > 0
    similarity = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)  # (B,⌈M/2⌉,⌊M/2⌋)
    similarity = similarity.masked_fill(~is_real[:, None, 1::2], -2.0)  # real tokens meet in padding last
    best, partner = similarity.max(-1)
    best = best.masked_fill(~is_real[:, ::2], 2.0)  # padding goes first
    place = torch.arange(best.shape[1], device=tokens.device)
    before = (best[:, None] > best[..., None]) | ((best[:, None] == best[..., None]) & (place < place[:, None]))
    merges = before.sum(-1) < number - fewer  # (B,⌈M/2⌉)
    left = best.shape[1] - (number - fewer)
    even = torch.where(merges, left + partner, (~merges).long().cumsum(1) - 1)
    odd = left + place[: number // 2].expand(len(tokens), -1)
    both = torch.stack([even, F.pad(odd, (0, number % 2))], dim=-1)
    return both.flatten(1)[:, :number]


def _weighed_means(tokens: Tensor, sizes: Tensor, goes_to: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Means `(B,number,D)` of the tokens that go to each place, weighed by size, and their sizes together. A product of
    matrices, not a sum by index, whose order a GPU does not keep.
    """
    goes = goes_to[..., None] == torch.arange(number, device=tokens.device)  # (B,M,number)
    weights = goes.to(tokens.dtype) * sizes[..., None]
    total = weights.sum(1)
    means = (weights.transpose(1, 2) @ tokens).to(tokens.dtype) / total.clamp(min=1e-6)[..., None]
    return means, total


def merging_flops(number: int, count: int, width: int) -> int:
    """Operations of `merge_tokens` on one example of `number` tokens."""
    total = 0
    while number > max(1, count):
        fewer = max(1, count, (number + 1) // 2)
        total += 2 * width * ((number + 1) // 2 * (number // 2) + number * fewer)
        number = fewer
    return total


def summarise_frames(tokens: Tensor, mask: Tensor, places: Tensor, every: int) -> tuple[Tensor, Tensor]:
    """Of every `every` frames the first one whole, of the others the mean of their tokens, whose size is their number.

    Combiner (Ren et al. 2021) attends to what is near itself, and to what is far by local expectations. Latents are
    near to nothing: here some frames are read themselves, and the others by one summary each.
    `tokens (B,T,P,D)`, `mask (B,T)` bool, `places (T,)` int64, or `(B,T)` where examples differ: which frame of its
    clip each is → `(B,K,D)`, and the logarithms of their sizes `(B,K)`, minus infinity for padding.
    """
    whole = places % every == 0
    summaries = tokens.mean(2)
    if whole.ndim == 1:
        tokens, of_whole = tokens[:, whole], mask[:, whole]
        summaries, of_summaries = summaries[:, ~whole], mask[:, ~whole]
    else:
        of_whole, of_summaries = mask & whole, mask & ~whole
    sizes = torch.cat([of_whole.repeat_interleave(tokens.shape[2], 1), tokens.shape[2] * of_summaries], dim=1)
    return torch.cat([tokens.flatten(1, 2), summaries], dim=1), sizes.to(tokens.dtype).log()


def roll_over_time(tokens: Tensor, frame_mask: Tensor, share: float, *, channels: bool = False) -> Tensor:
    """Of each frame a share of the tokens comes from its neighbours: half of it from the frame before, half from the
    frame after (All-in-one, Wang et al. 2023, temporal token rolling).

    `tokens (B,T,P,D)`, `frame_mask (B,T)` bool → `(B,T,P,D)`. The tokens that roll are spread over the frame. The real
    frames of a clip are a ring, the last before the first; padding stays where it is. `channels`: of all tokens the
    first channels roll (TSM, Lin et al. 2019).
    """
    size = tokens.shape[3 if channels else 2]
    count = min(size, max(1, round(share * size)))
    if channels:
        rolls = torch.arange(size, device=tokens.device) < count
    else:
        rolls = (torch.arange(size, device=tokens.device) * count) % size < count  # evenly
    turn = rolls.long().cumsum(0) % 2
    before, after = _real_neighbours(frame_mask)
    dim = (-1,) if channels else (-1, 1)
    from_before, from_after = (rolls & (turn == one) for one in (1, 0))
    rolled = torch.where(from_before.view(dim), _of_frames(tokens, before), tokens)
    return torch.where(from_after.view(dim), _of_frames(tokens, after), rolled)


def _real_neighbours(frame_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of each frame of `(B,T)` the real one before and after it, in a ring, `(B,T)` int64; of padding, itself."""
    place = torch.arange(frame_mask.shape[1], device=frame_mask.device)
    rank, number = frame_mask.long().cumsum(1) - 1, frame_mask.sum(1, keepdim=True).clamp(min=1)

    def neighbour(step: int) -> Tensor:
        wanted = (rank + step) % number  # (B,T)
        found = ((rank[:, None] == wanted[..., None]) & frame_mask[:, None]).long().argmax(-1)
        return torch.where(frame_mask, found, place)

    return neighbour(-1), neighbour(1)


def _of_frames(tokens: Tensor, frames: Tensor) -> Tensor:
    return tokens.gather(1, frames[..., None, None].expand(-1, -1, *tokens.shape[2:]))


def select_by_text(
    tokens: Tensor,
    sizes: Tensor,
    keys: Tensor,
    text_keys: Tensor,
    text_mask: Tensor,
    counts: tuple[int, int, int],
) -> tuple[Tensor, Tensor]:
    """Tokens that words ask for, some that are unlike these, and the rest in a few (Chen et al. 2024, "Recoverable
    Compression", where the visual class token chooses first, and words recover).

    `counts`: tokens kept, recovered and merged, K in all. Kept are those whose cosine with the words, the mean over
    these, is highest; recovered, of the others, those least similar to the most similar kept one; of what remains as
    many as are to be merged, evenly apart, are centres, to the most similar of which each goes. No weights of its own
    are needed. Gradients reach the keys all the same: each token's score is added to that of attention, less itself
    (straight through), as if being chosen were being attended to.
    `tokens (B,M,D)`, `sizes (B,M)`, 0 for padding, `keys (B,M,d)`, `text_keys (B,L,d)`, `text_mask (B,L)` bool →
    `(B,K,D)`, and what is added to their scores `(B,K)`: the logarithm of their sizes. M up to K stay as they are.
    """
    kept, recovered, merged = counts
    unit, is_real = F.normalize(keys, dim=-1), sizes > 0
    words = F.normalize(text_keys, dim=-1) * text_mask[..., None]
    words = words.sum(1) / text_mask.sum(1, keepdim=True).clamp(min=1)
    scores = (unit @ words[..., None])[..., 0]  # (B,M)
    if tokens.shape[1] <= sum(counts):
        return tokens, sizes.log() + (scores - scores.detach())
    order = scores.detach().masked_fill(~is_real, -torch.inf).argsort(dim=1, descending=True, stable=True)
    first, others = order[:, :kept], order[:, kept:]
    alike = _rows(unit.detach(), others) @ _rows(unit.detach(), first).transpose(1, 2)
    nearest = alike.masked_fill(~_rows(is_real, first)[:, None], -2.0).amax(-1)
    nearest = nearest.masked_fill(~_rows(is_real, others), torch.inf)
    others = others.gather(1, nearest.argsort(dim=1, stable=True))
    chosen, rest = torch.cat([first, others[:, :recovered]], dim=1), others[:, recovered:].sort(1).values
    rest = rest.gather(1, (~_rows(is_real, rest)).long().argsort(dim=1, stable=True))  # real ones in front, by place
    number = _rows(is_real, rest).sum(1, keepdim=True)
    centres = (2 * torch.arange(merged, device=tokens.device) + 1) * number // (2 * merged)  # (B,merged)
    unit_rest = _rows(unit.detach(), rest)
    goes_to = (unit_rest @ _rows(unit_rest, centres).transpose(1, 2)).argmax(-1)
    both = torch.cat([_rows(tokens, rest), _rows(scores, rest)[..., None]], dim=-1)
    means, total = _weighed_means(both, _rows(sizes, rest), goes_to, merged)
    found = torch.cat([_rows(scores, chosen), means[..., -1]], dim=1)
    sizes = torch.cat([_rows(sizes, chosen), total], dim=1)
    return torch.cat([_rows(tokens, chosen), means[..., :-1]], dim=1), sizes.log() + (found - found.detach())


def selecting_flops(tokens: int, width: int, keys: int, counts: tuple[int, int, int]) -> int:
    """Operations of `select_by_text` on one example, keys and values left out."""
    kept, recovered, merged = counts
    if tokens <= sum(counts):
        return 2 * tokens * keys
    rest = tokens - kept - recovered
    return 2 * (tokens * keys + (tokens - kept) * kept * keys + rest * merged * (keys + width + 1))


def _rows(x: Tensor, places: Tensor) -> Tensor:
    """Of `x (B,M)` or `(B,M,…)` those at `places (B,K)`."""
    places = places.view(*places.shape, *[1] * (x.ndim - 2))
    return x.gather(1, places.expand(-1, -1, *x.shape[2:]))


class PointPredictor(nn.Module):
    """Where in each frame to look next: points that the latents predict (Dynamic MDETR, Shi et al. 2024, section 3.3).

        predictor = PointPredictor(64, num_points=4)
        predictor(torch.randn(2, 16, 64), torch.randn(2, 8, 64))  # (2, 8, 4, 2)

    From the mean of the latents and the mean of the frame's tokens, by an MLP whose way out begins at 0: at first the
    points are spread evenly, the same everywhere.
    """

    def __init__(self, hidden_size: int, num_points: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=eps)
        self.fc1 = nn.Linear(hidden_size, hidden_size)
        self.fc2 = nn.Linear(hidden_size, 2 * num_points)

    def forward(self, latents: Tensor, frames: Tensor) -> Tensor:
        """`latents (B,N,D)`, means of frames `(B,T,D)` → points `(B,T,S,2)`, row and column from 0 to 1."""
        seen = self.norm(latents.mean(1, keepdim=True) + frames)
        points: Tensor = torch.sigmoid(self.fc2(F.gelu(self.fc1(seen))))
        return points.unflatten(-1, (-1, 2))


def even_points(number: int) -> Tensor:
    """Points of the unit square that are spread evenly whatever their number, `(number,2)` (Roberts 2018, R2)."""
    steps = torch.tensor([0.7548776662466927, 0.5698402909980532], dtype=torch.float64)
    return ((0.5 + torch.arange(1, number + 1)[:, None] * steps) % 1).float()


def sample_points(frames: Tensor, points: Tensor) -> Tensor:
    """`frames (…,rows,columns,D)` bilinearly at `points (…,S,2)`, row and column from 0 to 1, of which 0 is the outer
    edge of the first patch; beyond the outer centres, the outer patches → `(…,S,D)`.

    As a product with the few weights that are not 0: gradients reach the points, in the same order on every machine.
    """
    rows, columns = frames.shape[-3:-1]
    of_rows, of_columns = _tents(points[..., 0], rows), _tents(points[..., 1], columns)
    weights = of_rows[..., :, None] * of_columns[..., None, :]  # (…,S,rows,columns)
    return weights.flatten(-2).to(frames.dtype) @ frames.flatten(-3, -2)


def _tents(places: Tensor, number: int) -> Tensor:
    """Weights `(…,number)` of linear interpolation between the centres of so many cells."""
    at = (places * number - 0.5).clamp(0, number - 1)[..., None]
    return (1 - (at - torch.arange(number, device=places.device)).abs()).clamp(min=0)


def route_regions(
    frames: Tensor,
    frame_mask: Tensor,
    size: int,
    per_frame: int,
    weigh: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """The regions of a clip that latents look at most, whole (bi-level routing, Zhu et al. 2023, BiFormer, section
    3.2).

    `frames (B,T,rows,columns,D)`, `frame_mask (B,T)` bool. A region is `size` × `size` patches. `weigh`: of the means
    of regions `(B,R,D)` and a mask `(B,R)` says how much each is wanted `(B,R)`. `per_frame` times as many as there are
    real frames are read, wherever in the clip they are → `(B,T·per_frame·size²,D)`, and which are real, bool.
    """
    rows, columns = frames.shape[2] // size, frames.shape[3] // size
    regions = frames.unflatten(3, (columns, size)).unflatten(2, (rows, size)).transpose(3, 4)
    regions = regions.flatten(4, 5).flatten(1, 3)  # (B,T·rows·columns,size²,D)
    is_real = frame_mask.repeat_interleave(rows * columns, 1)
    wanted = weigh(regions.mean(2), is_real).detach().masked_fill(~is_real, -torch.inf)
    number = frames.shape[1] * min(per_frame, rows * columns)
    chosen = wanted.argsort(dim=1, descending=True, stable=True)[:, :number]
    slot = torch.arange(number, device=frames.device)
    taken = slot < frame_mask.sum(1, keepdim=True) * min(per_frame, rows * columns)
    return _rows(regions, chosen).flatten(1, 2), taken.repeat_interleave(size * size, 1)
