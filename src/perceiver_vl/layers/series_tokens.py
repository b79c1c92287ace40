"""A series of vectors as tokens: patches of some steps and some features, and where they stand.

Patches of a log-mel spectrogram are those of AST (Gong et al. 2021), here without overlap; patches of one feature, over
some steps of it, those of PatchTST (Nie et al. 2023). Places are rows of two tables, of time and of features, as VATT
has one for each dimension (Akbari et al. 2021).
Shapes: B batch, T steps, F features of a step, P patches of T, Q patches of F, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_vl.utils.errors import UsageError


class SeriesTokens(nn.Module):
    """Each patch of `patch_steps` × `patch_features` projected linearly, and rows for its place in time and features.

    `features`: F, a multiple of `patch_features`; `max_steps`: the longest T that the table of time has rows for.
    """

    def __init__(
        self, hidden_size: int, features: int, patch_steps: int, patch_features: int, max_steps: int, name: str
    ) -> None:
        super().__init__()
        self.name, self.features, self.max_steps = name, features, max_steps
        self.patch_steps, self.patch_features = patch_steps, patch_features
        self.projection = nn.Linear(patch_steps * patch_features, hidden_size)
        self.time_embeddings = nn.Embedding(-(-max_steps // patch_steps), hidden_size)
        self.feature_embeddings = nn.Embedding(features // patch_features, hidden_size)

    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`values (B,T,F)`, `mask (B,T)` bool → tokens `(B,P·Q,D)`, those of a time next to each other, mask `(B,P·Q)`.

        Steps that are padding count as zeros, as what the last patch lacks does; a patch with one real step is real.
        Raises `UsageError` for another F, and for more steps than the table of time has.
        """
        if values.ndim != 3 or values.shape[2] != self.features:
            raise UsageError(f"{self.name} of shape {tuple(values.shape)}: need (B,T,{self.features})")
        if values.shape[1] > self.max_steps:
            raise UsageError(f"{self.name} of {values.shape[1]} steps: more than {self.max_steps}, cut it")
        values = torch.where(mask[..., None], values, 0.0).to(self.projection.weight.dtype)
        lacking = -values.shape[1] % self.patch_steps
        values, mask = F.pad(values, (0, 0, 0, lacking)), F.pad(mask, (0, lacking))
        patches = values.unflatten(1, (-1, self.patch_steps)).unflatten(3, (-1, self.patch_features))  # (B,P,·,Q,·)
        tokens = self.projection(patches.transpose(2, 3).flatten(3))  # (B,P,Q,D)
        tokens = tokens + self.time_embeddings.weight[: tokens.shape[1], None] + self.feature_embeddings.weight
        is_real = mask.unflatten(1, (-1, self.patch_steps)).any(2)  # (B,P)
        return tokens.flatten(1, 2), is_real.repeat_interleave(tokens.shape[2], 1)


def series_token_count(steps: int, features: int, patch_steps: int, patch_features: int) -> int:
    """How many tokens a series of so many steps has."""
    return -(-steps // patch_steps) * (features // patch_features)
