"""Heads that answer from a fixed set, or with a number: questions about clips and images, and classes (paper 4.3).

Shapes: B batch, T frames, L text tokens, M inputs, N latents, D width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput, can_return_tuple

from perceiver_vl.layers.perceiver import EncoderRecord
from perceiver_vl.layers.zero_linear import ZeroLinear
from perceiver_vl.models.budget import FULL_BUDGET, ComputeBudget, EarlyExitBudget
from perceiver_vl.models.early_exit import ExitsInTurn, leave_when_sure
from perceiver_vl.models.perceiver_vl.configuration import PerceiverVLConfig
from perceiver_vl.models.perceiver_vl.decoder import ClassQuery, query_decoder
from perceiver_vl.models.perceiver_vl.encoder import InputArray
from perceiver_vl.models.perceiver_vl.heads import BaseAnswers
from perceiver_vl.models.perceiver_vl.modeling import (
    AskedOutputs,
    PerceiverVLModel,
    PerceiverVLPreTrainedModel,
    states_of,
)
from perceiver_vl.models.perceiver_vl.vision_cache import VisionCache
from perceiver_vl.utils.errors import UsageError


@dataclass
class PerceiverVLAnswerOutput(ModelOutput):
    """`loss ()` when labels are given; `logits (B,num_labels)`; the rest if asked for (`AskedOutputs`)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class TextAnswerHead(nn.Module):
    """Answers as texts: their likelihood is a cosine over a learned temperature, after one norm and one projection of
    what is asked and of what might be answered (Uni-Perceiver, Zhu et al. 2022, 3.1).
    """

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def features(self, states: Tensor) -> Tensor:
        """`(…,D)` → directions `(…,D)`."""
        return F.normalize(self.projection(self.norm(states)), dim=-1)

    def forward(self, answer: Tensor, labels: Tensor) -> Tensor:
        """`(B,D)`, directions of labels `(K,D)` → `(B,K)`."""
        return self.logit_scale.exp().clamp(max=100.0) * self.features(answer) @ labels.T


class AnswerHead(nn.Module):
    """Linear and tanh, then linear, norm, GELU, linear: the released code's heads of answers and of classes.

    adds: to what a base says, nothing at first.
    """

    def __init__(self, config: PerceiverVLConfig, adds: bool = False) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.expand = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.norm = nn.LayerNorm(2 * config.hidden_size)
        self.classifier = (ZeroLinear if adds else nn.Linear)(2 * config.hidden_size, config.num_labels)

    def forward(self, answer: Tensor) -> Tensor:
        """`(B,D)` → `(B,num_labels)`."""
        return self.classifier(F.gelu(self.norm(self.expand(torch.tanh(self.dense(answer))))))


def beside(vision: InputArray, rows: Tensor, text: InputArray) -> InputArray:
    """The input array of each text `(B,M_t,D)` and its clip: the row `rows (B,)` int64 of `vision (V,M_v,D)`.

    So a clip that several texts ask about is decoded and embedded once. A cache of clips knows itself which texts are
    about which: its `rows` are those of as many texts for each clip, in its order.
    """
    if (cache := vision.vision_cache) is not None:
        return replace(text, vision_base=cache.base_of(len(text)), vision_cache=cache)
    base = None if vision.vision_base is None else vision.vision_base[rows]
    both = replace(text, vision_base=base, frames=vision.frames)
    assert vision.vision is not None
    assert vision.vision_mask is not None
    return replace(both, vision=vision.vision[rows], vision_mask=vision.vision_mask[rows])


class _AnsweringModel(PerceiverVLPreTrainedModel):
    """Latents → one vector, by a learned query through the decoder or by their mean → one logit a label.

    Over pretrained encoders, the latents add to what these alone say of a question and a clip (`BaseAnswers`).
    """

    is_asked = False

    _keys_to_ignore_on_load_unexpected = [r"^(vtm|mlm|mpm|contrastive|base_matching|base_answers|caption_)"]

    def __init__(self, config: PerceiverVLConfig) -> None:
        super().__init__(config)
        self.perceiver_vl = PerceiverVLModel(config)
        if config.answers_from == "query":
            self.decoder = query_decoder(config)
            self.answer_query = ClassQuery(config)
        if config.answers_as_text and config.problem_type == "regression":
            raise UsageError("answers_as_text=True: of answers that are words, a number is none of some")
        has_base = self.is_asked and config.has_vision_base
        self.base_answers = BaseAnswers(config) if has_base else None
        self.answer_head = TextAnswerHead(config) if config.answers_as_text else AnswerHead(config, adds=has_base)
        self._kept_labels: tuple[Any, Tensor] | None = None
        self.post_init()

    def answer_among(self, labels: Sequence[str], tokenizer: Any) -> None:
        """From now on answer with one of these texts, trained or not: of a model with `answers_as_text`. Raises
        `UsageError` for another one, and for fewer than two labels or two that are the same.
        """
        if not self.config.answers_as_text:
            raise UsageError("answers_as_text=False: this model knows the answers it was trained on alone")
        if isinstance(labels, str) or len(labels) < 2 or len(set(labels)) < len(labels):
            raise UsageError(f"labels={labels!r}: need at least two different texts")
        self.config.id2label = dict(enumerate(labels))
        self.config.label2id = {label: number for number, label in enumerate(labels)}
        self.config.label_token_ids = label_token_ids(labels, tokenizer, self.config.max_text_length)

    def label_directions(self) -> Tensor:
        """Directions of the texts of all labels `(K,D)`, by the text stream: made anew with gradients, else kept as
        long as weights and labels stay what they are. Raises `UsageError` where labels have no texts.
        """
        ids = self.config.label_token_ids
        if len(ids) != self.config.num_labels:
            raise UsageError("label_token_ids: not those of the labels, call answer_among(labels, tokenizer)")
        state = [(id(weight), weight._version) for weight in self.parameters()]
        state_now = self.device, self.dtype, self.training, tuple(map(tuple, ids)), tuple(state)
        if not torch.is_grad_enabled() and self._kept_labels is not None and self._kept_labels[0] == state_now:
            return self._kept_labels[1]
        rows = [torch.tensor(row, device=self.device) for row in ids]
        words = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        real = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        latents = self.perceiver_vl.encode(self.perceiver_vl.embed_inputs(words, real))
        found: Tensor = self.answer_head.features(latents.mean(1))  # type: ignore[operator]
        if not torch.is_grad_enabled():
            self._kept_labels = state_now, found
        return found

    def answer_inputs(
        self, inputs: InputArray, budget: ComputeBudget = FULL_BUDGET, record: EncoderRecord | None = None
    ) -> Tensor:
        """An input array that is embedded already (`PerceiverVLModel.embed_inputs`) → `logits (B,num_labels)`; with an
        `EarlyExitBudget` those of the block after which each example left.
        """
        if isinstance(budget, EarlyExitBudget):
            return self._leave_early(inputs, budget)
        latents = self.perceiver_vl.encode(inputs, budget, record)
        return self._logits(latents, inputs.vision_base, inputs.text_base)

    def exits_in_turn(self, inputs: InputArray, budget: ComputeBudget = FULL_BUDGET) -> ExitsInTurn:
        """What is said after one block, after two, … (`models.early_exit`)."""
        vision_base, text_base = inputs.vision_base, inputs.text_base
        turn = self.perceiver_vl.encode_in_turn(inputs, budget)
        places: Tensor | None = None
        while True:
            try:
                latents = next(turn) if places is None else turn.send(places)
            except StopIteration:
                return
            places = yield self._logits(latents, vision_base, text_base)
            if places is not None and vision_base is not None and text_base is not None:
                vision_base, text_base = vision_base[places], text_base[places]

    def _leave_early(self, inputs: InputArray, budget: EarlyExitBudget) -> Tensor:
        exits, given = self.config.blocks_of(budget), len(budget.thresholds)
        if self.config.problem_type == "regression":
            raise UsageError("early exit: a model that counts says no probability, give it a budget of blocks")
        if given != exits:
            raise UsageError(f"early exit: {given} thresholds for a model of {exits} blocks, solve them again")
        logits, taken = leave_when_sure(self.exits_in_turn(inputs, budget), budget.thresholds)
        tokens = 0 if inputs.text is None else inputs.text.shape[1]
        budget.taken.extend((exit + 1, tokens) for exit in taken.tolist())
        return logits

    def _logits(self, latents: Tensor, vision_base: Tensor | None, text_base: Tensor | None) -> Tensor:
        mean = self.config.answers_from == "mean_latents"
        asked = latents.mean(1) if mean else self.decode(self.answer_query(len(latents)), latents)[:, 0]
        if isinstance(self.answer_head, TextAnswerHead):
            return self.answer_head(asked, self.label_directions())
        logits: Tensor = self.answer_head(asked)
        if self.base_answers is None:
            return logits
        assert vision_base is not None
        assert text_base is not None
        return logits + self.base_answers(vision_base, text_base)

    def _output(
        self, inputs: InputArray, budget: ComputeBudget, labels: Tensor | None, record: EncoderRecord | None
    ) -> PerceiverVLAnswerOutput:
        logits = self.answer_inputs(inputs, budget, record)
        loss = None if labels is None else answer_loss(logits, labels, self.config.problem_type)
        return PerceiverVLAnswerOutput(loss=loss, logits=logits, **states_of(record))


class PerceiverVLForQuestionAnswering(_AnsweringModel):
    """Open-ended questions over a set of answers (`config.num_labels`, named by `config.id2label`).

    With `config.problem_type="regression"` and one label it answers with a number: TGIF-QA's repetition count, which
    the benchmark's own code trains by squared error and rounds.
    The released code has no decoder here (`answers_from="mean_latents"`); the paper's query for this task is in its
    appendix, ours is one learned vector, as for VTM.
    """

    is_asked = True

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frame_mask: Tensor | None = None,
        labels: Tensor | None = None,
        budget: ComputeBudget | None = None,
        vision_cache: VisionCache | None = None,
        **asked: Unpack[AskedOutputs],
    ) -> PerceiverVLAnswerOutput:
        """Question `input_ids (B,L)` and clip `pixel_values (B,T,3,H,W)` → `logits (B,num_labels)`.

        `labels`: the right answers, int64 `(B,)` (cross-entropy; -100 for one that has no label), or scores in [0, 1]
        of every answer, float `(B,num_labels)` (binary cross-entropy summed over the answers, as for VQAv2's soft
        targets); with `problem_type="regression"` the numbers `(B,)` (squared error). `vision_cache`: in the place of
        `pixel_values`, as of `PerceiverVLModel.forward`.
        """
        budget, record = budget or FULL_BUDGET, self.record(vision_cache, **asked)
        given = input_ids, attention_mask, pixel_values, frame_mask
        return self._output(self.perceiver_vl.embed_inputs(*given, budget, vision_cache), budget, labels, record)


class PerceiverVLForImageClassification(_AnsweringModel):
    """Classes of images, and of clips."""

    main_input_name = "pixel_values"

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        frame_mask: Tensor | None = None,
        labels: Tensor | None = None,
        budget: ComputeBudget | None = None,
        **asked: Unpack[AskedOutputs],
    ) -> PerceiverVLAnswerOutput:
        """`pixel_values (B,T,3,H,W)` → `logits (B,num_labels)`; `labels` as for question answering."""
        budget, record = budget or FULL_BUDGET, self.record(**asked)
        inputs = self.perceiver_vl.embed_inputs(None, None, pixel_values, frame_mask, budget)
        return self._output(inputs, budget, labels, record)


def label_token_ids(labels: Sequence[str], tokenizer: Any, most: int) -> list[list[int]]:
    """The words of each label, at most so many."""
    return [list(ids)[:most] for ids in tokenizer(list(labels))["input_ids"]]


def answer_loss(logits: Tensor, labels: Tensor, problem_type: str | None = None) -> Tensor:
    """What `logits (B,num_labels)` miss of `labels`.

    One right answer each, int64 `(B,)`: mean cross-entropy over those that have one (a label of -100 says: none), 0 if
    none has. Soft scores `(B,num_labels)`: binary cross-entropy, summed over the answers and averaged over the batch.
    Numbers `(B,)` with `problem_type="regression"` (and one label): mean squared error.
    """
    if problem_type == "regression":
        return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
    if labels.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype)) * logits.shape[-1]
    total = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    return total / (labels != -100).sum().clamp(min=1)
