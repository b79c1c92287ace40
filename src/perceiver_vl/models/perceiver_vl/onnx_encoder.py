"""A vision encoder that is an ONNX file: frozen, run by onnxruntime, kept among the weights of the model it serves.

So a saved model is whole, is loaded from a folder or the hub as every other, and its fingerprint covers the graph.
Shapes: F frames, P tokens a frame, W width.
"""

from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from perceiver_vl.utils.errors import PerceiverVLError, UsageError, first_line
from perceiver_vl.utils.onnx import import_onnxruntime

MAX_GRAPH_BYTES = 2 << 30


@strict
class OnnxVisionConfig(PreTrainedConfig):
    """What a graph takes and gives, as its `encoder.json` says.

    `graph_bytes`: size of the file. `input_name`: of pixels `(F,3,image_size,image_size)` float32, normalised.
    `tokens_name`: of the output `(F,P,hidden_size)`, a square grid in raster order. `embedding_name`: of an output
    `(F,E)` that describes the whole frame; None: the mean of the tokens does. `flops`: of one frame, if known.
    """

    model_type = "perceiver_vl_onnx_vision"

    graph_bytes: int = 0
    input_name: str = "pixel_values"
    tokens_name: str = "tokens"
    embedding_name: str | None = None
    embedding_size: int | None = None
    image_size: int = 224
    hidden_size: int = 768
    grid_size: int = 7
    flops: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not 0 <= self.graph_bytes <= MAX_GRAPH_BYTES:
            raise UsageError(f"graph_bytes={self.graph_bytes}: need 0 to {MAX_GRAPH_BYTES}")
        super().__post_init__(**kwargs)


class OnnxVisionModel(PreTrainedModel):
    """The graph as a module without gradients; its bytes are a buffer, so they are saved and loaded with the rest."""

    config_class = OnnxVisionConfig
    main_input_name = "pixel_values"
    graph: Tensor

    def __init__(self, config: OnnxVisionConfig) -> None:
        super().__init__(config)
        self.register_buffer("graph", torch.zeros(config.graph_bytes, dtype=torch.uint8))
        self._session: Any = None
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """`pixel_values (F,3,H,W)` → tokens `(F,P,W)`, and the embedding `(F,E)` where the graph has one.

        Raises `PerceiverVLError` for a graph that cannot be run, `UsageError` for outputs that are not as configured.
        """
        names = [name for name in (self.config.tokens_name, self.config.embedding_name) if name is not None]
        pixels = pixel_values.detach().cpu().float().contiguous().numpy()
        session = self.session
        try:
            found = session.run(names, {self.config.input_name: pixels})
        except Exception as error:  # onnxruntime raises whatever a graph leads it to
            raise PerceiverVLError(f"ONNX encoder: cannot be run ({first_line(error)})") from error
        tokens, *embedding = (torch.from_numpy(np.ascontiguousarray(one)).to(pixel_values.device) for one in found)
        self._check("tokens", tokens, (len(pixels), self.config.grid_size**2, self.config.hidden_size))
        if embedding:
            self._check("embedding", embedding[0], (len(pixels), self.config.embedding_size))
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=embedding[0] if embedding else None)

    @property
    def session(self) -> Any:
        """onnxruntime's session, made when first needed. Raises `UsageError` without onnxruntime."""
        if self._session is None:
            try:
                onnxruntime = import_onnxruntime()
            except ImportError as error:
                raise UsageError("this model's vision encoder is ONNX: pip install 'perceiver-vl[encoders]'") from error
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 3
            try:
                self._session = onnxruntime.InferenceSession(
                    self.graph.cpu().numpy().tobytes(), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # onnxruntime raises whatever a damaged graph leads it to
                raise PerceiverVLError(f"ONNX encoder: not a graph that loads ({first_line(error)})") from error
        return self._session

    def _check(self, what: str, found: Tensor, wanted: tuple[int | None, ...]) -> None:
        if tuple(found.shape) != wanted:
            raise UsageError(f"ONNX encoder: its {what} have shape {tuple(found.shape)}, encoder.json says {wanted}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_session": None}  # copies and other processes open their own


def count_flops(graph: bytes, input_name: str, image_size: int) -> int | None:
    """Operations of a graph on one frame, by the shapes that come out of its convolutions and products; None without
    the packages that can tell, and for graphs that these do not follow.
    """
    try:
        return _count_flops(graph, input_name, image_size)
    except Exception:  # the packages raise whatever a graph leads them to; that it runs is known before
        return None


def _count_flops(graph: bytes, input_name: str, image_size: int) -> int | None:
    import onnx

    onnxruntime = import_onnxruntime()
    model = onnx.load_from_string(graph)
    sizes = {weight.name: list(weight.dims) for weight in model.graph.initializer}
    counted = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    names = [node.output[0] for node in counted]
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run(names, {input_name: np.zeros((1, 3, image_size, image_size), np.float32)})
    total = 0
    for node, output in zip(counted, found, strict=True):
        weight = sizes.get(node.input[1])
        if weight is None:
            return None  # a product of two things that were computed
        each = int(np.prod(weight[1:])) if node.op_type == "Conv" else weight[0] * weight[1] // output.shape[-1]
        total += 2 * each * output.size
    return total


AutoConfig.register(OnnxVisionConfig.model_type, OnnxVisionConfig, exist_ok=True)
AutoModel.register(OnnxVisionConfig, OnnxVisionModel, exist_ok=True)
