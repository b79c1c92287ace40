"""A model's side of the words as graphs, for searches that do not wait for torch: `perceiver-vl index` leaves them in
the user's cache (`query_export`), onnxruntime runs them. They hold no weights; those are read from the model's files.

Shapes: E retrieval vector, D width, H heads, K clips, L text tokens.
"""

import hashlib
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from perceiver_vl._version import __version__
from perceiver_vl.models.folder import weight_files
from perceiver_vl.search.rows import IndexSettings, Vectors
from perceiver_vl.utils.errors import PerceiverVLError, first_line
from perceiver_vl.utils.files import sha256, user_cache
from perceiver_vl.utils.onnx import import_onnxruntime

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class QueryEncoder(Protocol):
    """What a search asks of a model. `logit_scale`: the factor on cosines."""

    logit_scale: float

    def encode(self, words: str) -> tuple[Vectors, Any]:
        """The unit vector of a query `(E,)`, and what `match` wants of it."""
        ...

    def notes(self, words: str) -> list[str]:
        """What of a query that was encoded the model does not know, or has not read: `notes_on`."""
        ...

    def match(self, clips: Vectors, text: Any) -> Vectors:
        """Matching logits `(K,)` of a query with clips, from their stored partial attentions `(K,D+H)`."""
        ...


def notes_on(words: str, tokenizer: "Tokenizer") -> list[str]:
    """What of a query its tokenizer, which cuts as the model needs it, does not know or cuts off."""
    encoding = tokenizer.encode(words)
    unknown = getattr(tokenizer.model, "unk_token", None)
    lost = dict.fromkeys(
        words[begin:end]
        for token, (begin, end) in zip(encoding.tokens, encoding.offsets, strict=True)
        if token == unknown and any(map(str.isalnum, words[begin:end]))
    )
    notes = [f"the model does not know {', '.join(lost)}: the score says nothing of that"] if lost else []
    if encoding.overflowing:
        read = max((end for _, end in encoding.offsets), default=0)
        notes.append(f"the model reads {len(encoding.ids)} tokens, no more: “{words[read:].strip()}” was cut off")
    return notes


class QueryGraph:
    """A `QueryEncoder` without torch, on the CPU."""

    def __init__(self, path: Path, model_folder: Path, threads: int | None = None) -> None:
        """Open the graphs of a file for the weights of a folder; raises whatever is raised where either is damaged."""
        from tokenizers import Tokenizer

        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads or 0  # 0: as many as there are cores
        for name, value in (
            ("session.model_external_initializers_file_folder_path", str(model_folder.resolve())),
            ("session.disable_prepacking", "1"),  # weights are used where they are, not copied for one query
            ("session.intra_op.allow_spinning", "0"),
        ):
            options.add_session_config_entry(name, value)

        def session(graph: bytes) -> Any:
            return onnxruntime.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
            )

        with zipfile.ZipFile(path) as file:  # which compares checksums
            self._text, self._matcher = session(file.read("text.onnx")), session(file.read("matcher.onnx"))
            self._tokenizer = Tokenizer.from_str(file.read("tokenizer.json").decode())
            self.logit_scale = float(file.read("logit_scale"))

    def encode(self, words: str) -> tuple[Vectors, Vectors]:
        """The unit vector `(E,)` and the partial attention `(1,D+H)` of a query."""
        vector, partial = self._text.run(None, {"input_ids": np.array([self._tokenizer.encode(words).ids], np.int64)})
        return vector[0], partial

    def notes(self, words: str) -> list[str]:
        """As of `QueryEncoder`."""
        return notes_on(words, self._tokenizer)

    def match(self, clips: Vectors, text: Vectors) -> Vectors:
        """As of `QueryEncoder`."""
        logits: Vectors = self._matcher.run(None, {"clips": clips, "text": text})[0]
        return logits


def graph_path(model_folder: Path, settings: IndexSettings) -> Path | None:
    """Where the graphs of an index's model at the index's budget are, if they are: their name tells all they depend on,
    the tokenizer's files among it. None: there can be none, for another dtype, or for weights that are links out of the
    folder, which onnxruntime does not follow.
    """
    weights = [(model_folder / name).resolve() for name in weight_files(model_folder)]
    if settings.dtype not in (None, "float32") or not all(
        one.is_relative_to(model_folder.resolve()) for one in weights
    ):
        return None
    digest = hashlib.sha256(f"{__version__} {settings.fingerprint} {settings.budget}".encode())
    for path in sorted([*model_folder.glob("*.json"), *model_folder.glob("*.txt")]):
        digest.update(f"\n{path.name} {sha256(path)}".encode())
    return user_cache("queries") / f"{digest.hexdigest()}.zip"


def open_graph(model_folder: Path, settings: IndexSettings, threads: int | None = None) -> QueryGraph | None:
    """The graphs for an index, if there are any and what runs them is installed. Raises `PerceiverVLError` for damaged
    ones, and deletes them.
    """
    path = graph_path(model_folder, settings)
    if path is None or not path.is_file() or not path.stat().st_size or find_spec("onnxruntime") is None:
        return None  # an empty file: the model has none
    try:
        return QueryGraph(path, model_folder, threads)
    except Exception as error:  # onnxruntime and tokenizers raise bare ones
        path.unlink(missing_ok=True)
        raise PerceiverVLError(f"{path}: damaged, deleted ({first_line(error)})") from error
