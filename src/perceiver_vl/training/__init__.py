"""Training: a recipe in, a `from_pretrained` folder out.

`setup` is what a run begins with, `run` is the run. `losses` has the objectives, `objectives` their weighted sum.
`trainers` has a Trainer of Hugging Face for each thing that can be learned, on top of `recipe_trainer` (what they
share), `monitored_trainer` (what each step is watched for) and `checkpoint_trainer` (checkpoints that are whole or not
there).
"""

from typing import TYPE_CHECKING

from perceiver_vl.utils.lazy import lazy_names

if TYPE_CHECKING:
    from perceiver_vl.training.run import TrainingResult, train

__all__ = ["TrainingResult", "train"]

__getattr__, __dir__ = lazy_names(
    __name__, {"TrainingResult": "perceiver_vl.training.run", "train": "perceiver_vl.training.run"}
)
