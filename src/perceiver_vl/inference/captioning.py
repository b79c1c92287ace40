"""What a clip shows, in words, and answers to questions about it in the model's own words."""

import math
from collections.abc import Sequence
from typing import Any, Unpack

import torch

from perceiver_vl.inference.clips import ClipOptions, Medium, cached_clip, frames_of, load_medium
from perceiver_vl.layers.causal import Inputs
from perceiver_vl.models.budget import FULL_BUDGET
from perceiver_vl.models.perceiver_vl.caption_words import say
from perceiver_vl.models.perceiver_vl.captioning import CaptioningModel
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.models.perceiver_vl.vision_cache import VisionCache
from perceiver_vl.utils.errors import PerceiverVLError, UsageError

_QUESTIONS_AT_ONCE = 64


class CaptioningPipeline:
    """Says what is in a clip or an image; or answers questions about it, where the model was trained on some."""

    def __init__(self, model: CaptioningModel, processor: PerceiverVLProcessor) -> None:
        self.model, self.processor = model, processor

    @torch.inference_mode()
    def __call__(
        self,
        clip: Medium | VisionCache,
        questions: str | Sequence[str] | None = None,
        *,
        beams: int = 1,
        max_new_tokens: int | None = None,
        **how: Unpack[ClipOptions],
    ) -> Any:
        """A `caption` and its `score`, the geometric mean of the probabilities of its words; of a question its `answer`
        and that; of several questions a list of these.

        `beams`: how many captions are followed at a time, 1 is greedy. `max_new_tokens`: None, up to the end of the
        position table. `clip`, `how`: as for questions (`QuestionAnsweringPipeline`); a model that attends to the
        frames themselves samples some, whatever is long. Raises `UsageError` for values that cannot be, `MediaError`
        for a file that cannot be read, `PerceiverVLError` for a model whose weights are no numbers.
        """
        asked = [""] if questions is None else [questions] if isinstance(questions, str) else list(questions)
        if questions is not None and not all(one.strip() for one in asked):
            raise UsageError("question '': say what to ask, or leave it out for a caption")
        prefix = self._prefix(clip, how)
        said = []
        for first in range(0, len(asked), _QUESTIONS_AT_ONCE):
            some = asked[first : first + _QUESTIONS_AT_ONCE]
            rows = prefix.rows(torch.zeros(len(some), dtype=torch.long, device=prefix.mask.device))
            said += say(self.model, self.processor.tokenizer, rows, some, beams=beams, max_new_tokens=max_new_tokens)
        if not all(math.isfinite(one.score) for one in said):
            raise PerceiverVLError("the model's words have no finite probabilities: train it again")
        name = "caption" if questions is None else "answer"
        found = [{name: one.text, "score": one.score} for one in said]
        return found if isinstance(questions, Sequence) and not isinstance(questions, str) else found[0]

    def _prefix(self, clip: Medium | VisionCache, how: ClipOptions) -> Inputs:
        """What is seen of the clip, once for all that is said."""
        if self.model.config.caption_prefix == "latents" or isinstance(clip, VisionCache):
            with cached_clip(self.model, self.processor, clip, **how) as cache:
                return self.model.encode_prefix(vision_cache=cache, budget=cache.budget)
        if unknown := sorted(how.keys() - ClipOptions.__annotations__.keys()):
            raise TypeError(f"got an unexpected keyword argument {unknown[0]!r}")
        for name in ("fps", "spill"):
            if how.get(name) is not None:
                raise UsageError(
                    f"{name}={how.get(name)}: this model attends to the frames themselves (caption_prefix=frames), not "
                    "to all of a long clip; leave it out, and some are sampled"
                )
        budget = how.get("budget", FULL_BUDGET)
        self.model.config.check_budget(budget)
        number = frames_of(self.processor, budget)
        frames = load_medium(clip, self.model, self.processor, number, how.get("start"), how.get("end"))
        inputs = self.processor(videos=[frames], num_frames=number).to(self.model.device)
        return self.model.encode_prefix(**inputs, budget=budget)
