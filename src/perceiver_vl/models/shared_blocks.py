"""Blocks that share their weights, in Hugging Face's folders: one module under several names, saved once."""

from transformers import PreTrainedModel


class SharedBlocksMixin(PreTrainedModel):
    """A model in which one module may have several names, because blocks share it."""

    @property
    def _tied_weights_keys(self) -> dict[str, str]:  # type: ignore[override]
        """Each further name of a weight → its first one, which is the one that is saved."""
        first: dict[int, str] = {}
        names = ((name, id(weight)) for name, weight in self.named_parameters(remove_duplicate=False))
        return {name: first[weight] for name, weight in names if first.setdefault(weight, name) != name}

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """As in transformers; no setting unties what is one module."""
        return self._tied_weights_keys
