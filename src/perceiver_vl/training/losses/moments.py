"""Moments: which window of a video is the caption's? Of all windows of the batch's stretches, by their segments.

Windows that begin or end elsewhere, that are shorter or longer, other moments of the same video and other videos are
the negatives. Each is scored as a search for moments scores it. Shapes: B batch, ΣB that of all processes, S segments
of a stretch, K = S·(S+1)/2 windows of it, D width, H heads, E retrieval vector.

A long window has many others that are nearly as good, a short one few, and a softmax would have the former share what
the latter has alone: the shortest would be the likeliest. So each counts in the sum by one over the windows that are
like it. What is learned then is, up to a constant, the logarithm of how much the window is expected to overlap by.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from perceiver_vl.layers.partial_attention import every_window, merge_windows
from perceiver_vl.training.losses.base import BatchFlops, EncodedBatch, Objective, ObjectiveOutput, in_pieces

LEAST_OVERLAP = 0.5
"""Windows that overlap more with the moment share in being right."""
_NO_WINDOW = -1e4  # finite, as nothing else in a softmax that knows no infinity


class Moments(Objective):
    """By the scaled cosines of the windows' mean vectors, the matching logits of their merged partial attentions, and
    what the model adds for their length.
    """

    encodings = ("features", "partial_match")
    needs_decoder = True
    needs_stretches = True

    def forward(self, batch: EncodedBatch) -> ObjectiveOutput:
        """Logits `(B,ΣB·K)`."""
        inputs, everyone, model = batch.inputs, batch.global_batch, batch.model
        assert inputs.edges is not None
        assert inputs.moments is not None
        examples, segments = len(inputs), inputs.edges.shape[1] - 1
        vectors, partial_matches = (
            everyone.rows(batch.vision[name].unflatten(0, (examples, segments)))
            for name in ("features", "partial_match")
        )
        starts, ends = every_window(segments, inputs.edges.device)
        edges = everyone.rows(inputs.edges)  # (ΣB,S+1)
        begin = edges[:, starts]  # (ΣB,K)
        end = torch.where(edges[:, ends] > edges[:, ends - 1], edges[:, ends], begin)  # others end where they begin
        seconds = (end - begin).flatten()
        added = seconds.clamp(min=1e-3).log() * (0.0 if model.length_weight is None else model.length_weight)
        crowds = crowds_of(begin, end).log().flatten()
        windows = merge_windows(partial_matches, model.config.num_attention_heads).flatten(0, 1)
        means = mean_vectors(vectors, starts, ends).flatten(0, 1)

        def score(features: Tensor, texts: Tensor) -> Tensor:
            cosines = features @ means.T
            logits = model.logit_scale * cosines + model.merge_matches(windows, texts[:, None]) + added
            return logits.masked_fill(seconds <= 0, _NO_WINDOW)

        of_text = batch.text["features"], batch.text["partial_match"]
        logits = in_pieces(score, everyone.pieces(batch.chunk), *of_text)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        places = everyone.places.to(logits.device)
        shares = right_shares(begin[places], end[places], inputs.moments)
        counted = logits - crowds
        own = counted.unflatten(1, (everyone.total, len(starts)))[torch.arange(examples, device=logits.device), places]
        surprise = counted.logsumexp(1) - (shares * own).sum(1)
        rows, found = everyone.mean_of(everyone.total), [logits]
        if weight := batch.options.moment_alignment:
            own_vectors = batch.vision["features"].unflatten(0, (examples, segments))
            cosines = model.logit_scale * (own_vectors @ batch.text["features"][..., None]).squeeze(-1)
            outside, segment_logits = alignment(cosines, inputs.edges, inputs.moments)
            surprise = surprise + weight * outside
            found.append(segment_logits)
        return ObjectiveOutput(surprise.sum() / rows, tuple(found), "classes", rows)

    def flops(self, batch: BatchFlops) -> float:
        """The end of the decoder, for every caption with every window."""
        windows = batch.segments * (batch.segments + 1) // 2
        return batch.examples**2 * windows * batch.match_end


def mean_vectors(vectors: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """The direction of the mean of the vectors `(…,S,E)` of each window `(K,)` → unit vectors `(…,K,E)`."""
    sums = F.pad(vectors.to(torch.promote_types(vectors.dtype, torch.float32)).cumsum(-2), (0, 0, 1, 0))
    return F.normalize(sums[..., ends, :] - sums[..., starts, :], dim=-1)


def alignment(cosines: Tensor, edges: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
    """How surprised captions are `(B,)` that the segments inside the moment, not those outside, are what they say, and
    the logits of the segments `(B,S)`: scaled cosines `(B,S)`, of those that last no time near minus infinity.

    The probability that is to be 1 is the softmax over the segments of a stretch, of each by the share of it that a
    moment fills. In the manner of VideoLights (Paul et al. 2024), whose alignment loss draws clips to the words inside
    the moment alone. `edges (B,S+1)` and `moments (B,M,2)` in seconds. Nothing is learned from a stretch whose segments
    are all inside, or none.
    """
    begin, end = edges[:, :-1, None], edges[:, 1:, None]
    logits = cosines.to(torch.promote_types(cosines.dtype, torch.float32))
    logits = logits.masked_fill((end <= begin).squeeze(-1), _NO_WINDOW)
    common = (end.minimum(moments[:, None, :, 1]) - begin.maximum(moments[:, None, :, 0])).clamp(min=0)  # (B,S,M)
    inside = (common.sum(2) / (end - begin).squeeze(-1).clamp(min=1e-6)).clamp(max=1).to(logits.dtype)
    smallest = torch.finfo(logits.dtype).tiny  # whose logarithm has a gradient, where a segment is all outside
    known = (logits + inside.clamp(min=smallest).log()).logsumexp(1)
    return (logits.logsumexp(1) - known) * (inside > 0).any(1), logits


def right_shares(begin: Tensor, end: Tensor, moments: Tensor) -> Tensor:
    """How much each of the windows from `begin` to `end (B,K)` is the right answer, all of a row 1 in all → `(B,K)`.

    `moments (B,M,2)`: when what is said is shown, as far as the stretch shows it. By how much its overlap with one of
    these (intersection over union) exceeds a half; where none does, the windows that overlap most. Windows that end
    where they begin are none.
    """
    first, last = begin.min(1).values[:, None], end.max(1).values[:, None]
    starts, stops = (moments[..., side].clamp(first, last) for side in (0, 1))  # (B,M)
    overlaps = _overlaps(begin, end, starts, stops).amax(2)
    shares = (overlaps - LEAST_OVERLAP).clamp(min=0)
    best = ((overlaps == overlaps.amax(1, keepdim=True)) & (end > begin)).to(shares.dtype)
    shares = torch.where(shares.sum(1, keepdim=True) > 0, shares, best)
    return shares / shares.sum(1, keepdim=True)


def crowds_of(begin: Tensor, end: Tensor) -> Tensor:
    """How many of a row's windows are like each of them `(B,K)`: by how much their overlaps exceed a half, itself being
    one.
    """
    like = (_overlaps(begin, end, begin, end) - LEAST_OVERLAP).clamp(min=0).sum(2) / (1 - LEAST_OVERLAP)
    return like.clamp(min=1)


def _overlaps(begin: Tensor, end: Tensor, starts: Tensor, stops: Tensor) -> Tensor:
    """Intersection over union of windows `(B,K)` with others `(B,M)` → `(B,K,M)`; 0 of what lasts no time."""
    begin, end, starts, stops = begin[..., None], end[..., None], starts[:, None], stops[:, None]
    common = (end.minimum(stops) - begin.maximum(starts)).clamp(min=0)
    return common / (end - begin + stops - starts - common).clamp(min=1e-6)
