"""Which latents and which tokens take part: drawn in training, chosen by what they attend to in use.

Sources: Dynamic Latent Access (Tsiamas et al. 2023, "Efficient Speech Translation with Dynamic Latent Perceivers"), in
both its parts; DropToken (Akbari et al. 2021, VATT); subsets of tokens as inputs and as targets (Mizrahi et al. 2023,
4M).
Shapes: B batch, T frames, P patches a frame (with the class token where there is one), M inputs, N latents, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def drawn_latents(pool: int, count: int, seed: int, batch: int | None = None) -> Tensor:
    """The places of `count` of `pool` latents, ascending, int64 `(count,)`; those of fewer are among those of more.

    `batch`: others for each of so many examples, `(batch,count)`, as in Dynamic Latent Access itself; else all examples
    have the same, so that what is found in their inputs can be computed once.
    """
    generator = torch.Generator().manual_seed(seed)
    if batch is None:
        return torch.randperm(pool, generator=generator)[:count].sort().values
    return torch.rand(batch, pool, generator=generator).argsort(1)[:, :count].sort(1).values


def kept_tokens(frames: int, patches: int, share: float, seed: int, class_token: bool) -> Tensor:
    """The places of the vision tokens that are kept, ascending, int64: of each frame's `patches` (P) the share `share`,
    but at least one, so that no frame goes blind; and its class token, which is not drawn.
    """
    first = int(class_token)
    drawn = torch.rand(frames, patches - first, generator=torch.Generator().manual_seed(seed + 1))  # not the latents'
    count = max(1, round(share * (patches - first)))
    kept = first + drawn.argsort(1)[:, :count].sort(1).values  # (T,count)
    if class_token:
        kept = F.pad(kept, (1, 0))
    return (kept + patches * torch.arange(frames)[:, None]).flatten()


def seen_and_asked(
    frames: int, patches: int, seen: float, asked: float, seed: int, class_token: bool
) -> tuple[Tensor, Tensor]:
    """Two sets of a clip's vision tokens without a common one, of each frame as many, as places that ascend, int64:
    the share `seen` of its patches, as `kept_tokens` draws it; and of the others the share `asked`, but at least one.
    There must be others.
    """
    kept = kept_tokens(frames, patches, seen, seed, class_token)
    is_left = torch.ones(frames * patches, dtype=torch.bool)
    is_left[kept] = False
    others = is_left.nonzero().squeeze(1)
    return kept, others[kept_tokens(frames, len(others) // frames, asked, seed + 1, class_token=False)]


def most_diverse(attention: Tensor, count: int) -> Tensor:
    """For each example `count` of N latents whose attention differs most: what N latents attended to, `(B,N,M)` →
    their places in the order of the choice, int64 `(B,count)`.

    The first is the one least similar (absolute cosine) to its most similar other; each further one the least similar
    to the most similar of those chosen already (Tsiamas et al. 2023, inference).
    """
    pattern = F.normalize(attention, dim=-1)
    itself = torch.eye(attention.shape[1], dtype=torch.bool, device=attention.device)
    similarity = (pattern @ pattern.transpose(-1, -2)).abs().masked_fill(itself, -1.0)
    nearest = similarity.amax(-1)  # (B,N): the similarity to the most similar of all, then of those chosen
    chosen = [nearest.argmin(-1)]
    nearest = torch.full_like(nearest, -1.0)
    while len(chosen) < count:
        rows = similarity.gather(1, chosen[-1][:, None, None].expand(-1, 1, similarity.shape[-1]))[:, 0]
        nearest = nearest.maximum(rows).scatter(1, chosen[-1][:, None], torch.inf)
        chosen.append(nearest.argmin(-1))
    return torch.stack(chosen, dim=1)
