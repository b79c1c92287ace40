"""Training: a recipe in, a `from_pretrained` folder out.

`start` is what a run begins with, `run` is the run; `trainers` has a Trainer of Hugging Face for each thing that can be
learned, on top of `vitals` (what each step is watched for) and `saving` (checkpoints that are whole or not there).
"""

from perceiver_vl.training.run import TrainingResult, checked_arguments, examples_of, sampler_for, train

__all__ = ["TrainingResult", "checked_arguments", "examples_of", "sampler_for", "train"]
