"""A model's side of the words → graphs in the user's cache, for `query_graph`: once for a model and a budget."""

import json
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from perceiver_vl.models.folder import weight_files
from perceiver_vl.search.query_graph import QueryGraph, graph_path
from perceiver_vl.search.query_model import QueryModel
from perceiver_vl.search.table import open_table
from perceiver_vl.utils.console import Listener, ProgressBars
from perceiver_vl.utils.errors import first_line
from perceiver_vl.utils.files import write_with
from perceiver_vl.utils.onnx import quiet_exporter

_KEPT = 32  # graphs in the cache; the oldest go
_TOLERANCE = 1e-5


class _Text(nn.Module):
    """`input_ids (1,L)` → unit vectors `(1,E)`, partial attentions `(1,D+H)`."""

    def __init__(self, queries: QueryModel) -> None:
        super().__init__()
        self.model, self.budget = queries.model, queries.budget

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        latents, features = self.model.encode_and_pool_text(input_ids, budget=self.budget)
        return features, self.model.partial_match(latents)


class _Matcher(nn.Module):
    """Partial attentions of clips `(K,D+H)` and a text `(1,D+H)` → matching logits `(K,)`."""

    def __init__(self, queries: QueryModel) -> None:
        super().__init__()
        self.model = queries.model

    def forward(self, clips: Tensor, text: Tensor) -> Tensor:
        return self.model.merge_matches(clips, text)


@dataclass(frozen=True)
class _Stored:
    """A tensor of a safetensors file: where its bytes are."""

    file: str
    dtype: str
    start: int
    size: int


def write_query_graph(index: str | Path, progress: bool | Listener = False) -> str | None:
    """Leave graphs for the searches of an index, where the packages are installed and there are none yet; None, or why
    this model has none. One that is not in float32 needs none.
    """
    if any(find_spec(package) is None for package in ("onnx", "onnxscript", "onnxruntime")):
        return None
    settings = open_table(index).settings
    folder = Path(settings.model)
    path, weights = graph_path(folder, settings), _stored_weights(folder)
    if path is None or path.exists() or {one.dtype for one in weights.values() if "F" in one.dtype} != {"F32"}:
        return None
    why = None
    with ProgressBars(progress) as bar:
        advance = bar.stage("Preparing quick searches", 1)
        queries = QueryModel(folder, settings, "cpu")
        try:
            write_with(path, lambda beside: _write(beside, queries, folder, weights))
        except OSError as error:
            return f"{path.parent}: cannot be written ({error.strerror}), searches import torch"
        except Exception as error:  # whatever the exporter or onnxruntime has to say: it is remembered, not tried again
            why = f"{folder}: has no graphs for quick searches ({first_line(error)}), they import torch"
            write_with(path, Path.touch)
        advance()
    for old in sorted(path.parent.glob("*.zip"), key=lambda one: one.stat().st_mtime)[:-_KEPT]:
        old.unlink(missing_ok=True)
    return why


@torch.inference_mode()
def _write(path: Path, queries: QueryModel, folder: Path, weights: dict[str, _Stored]) -> None:
    """Write the graphs; raises where they do not give what the model gives, on other sizes than those of the trace."""
    config, tokenizer = queries.model.config, queries.processor.tokenizer
    ids = queries.processor(text=["some words"])["input_ids"]
    clips = torch.randn(5, config.hidden_size + config.num_attention_heads, generator=torch.Generator().manual_seed(0))
    free = torch.export.Dim.DYNAMIC
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("text.onnx", _graph(_Text(queries), {"input_ids": ids}, ({1: free},), weights))
        inputs = {"clips": clips[:2], "text": clips[2:3]}
        file.writestr("matcher.onnx", _graph(_Matcher(queries), inputs, ({0: free}, None), weights))
        file.writestr("tokenizer.json", tokenizer.backend_tokenizer.to_str())  # which cuts as the processor does
        file.writestr("logit_scale", repr(queries.logit_scale))
    graph = QueryGraph(path, folder)
    for words in (tokenizer.decode(range(count)) for count in (7, 20, 2 * config.max_text_length)):
        (wanted, text), (found, partial) = queries.encode(words), graph.encode(words)
        np.testing.assert_allclose(found, wanted, rtol=_TOLERANCE, atol=_TOLERANCE)
        for some in (clips[:1].numpy(), clips.numpy()):
            logits = queries.match(some, text)
            np.testing.assert_allclose(graph.match(some, partial), logits, rtol=_TOLERANCE, atol=_TOLERANCE)


def _graph(part: nn.Module, example: dict[str, Tensor], free: Any, weights: dict[str, _Stored]) -> bytes:
    """A traced part as ONNX, its weights left where they are stored."""
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    with quiet_exporter():
        program = torch.export.export(part.eval(), tuple(example.values()), dynamic_shapes=free, strict=False)
        exported = torch.onnx.export(program, input_names=list(example), optimize=False, verbose=False)
    assert exported is not None
    ClearMetadataAndDocStringPass()(exported.model)  # a dozen times the size of the rest
    for name, value in exported.model.graph.initializers.items():
        if (stored := weights.get(name.removeprefix("model."))) and (traced := value.const_value) is not None:
            shape = onnx_ir.Shape(traced.shape.numpy())
            value.const_value = onnx_ir.ExternalTensor(
                stored.file, stored.start, stored.size, traced.dtype, shape=shape, name=name
            )
    graph: bytes = onnx_ir.to_proto(exported.model).SerializeToString()
    return graph


def _stored_weights(folder: Path) -> dict[str, _Stored]:
    stored = {}
    for name in weight_files(folder):
        with (folder / name).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for tensor, about in header.items():
            if tensor != "__metadata__":
                begin, end = about["data_offsets"]
                stored[tensor] = _Stored(name, about["dtype"], 8 + length + begin, end - begin)
    return stored
