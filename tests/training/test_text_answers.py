"""Answers as texts: trained from a recipe, continued with other answers, and asked among texts that were never
trained.
"""

from pathlib import Path

import pytest
import torch

from perceiver_vl import PerceiverVLForQuestionAnswering, UsageError, pipeline
from perceiver_vl.training import train
from perceiver_vl.training.recipe import read_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TINY = ["model.hidden_size=32", "model.num_blocks=2", "model.num_latents=4", "model.num_text_latents=4"]
SHORT = ["training.max_steps=2", "training.eval_steps=1", "training.save_steps=2", "training.use_cpu=true"]
SHORT += ["training.per_device_train_batch_size=4", "training.report_to=none", "training.warmup_steps=0"]
DATA = ["data.train.world.clips=24", "data.validation.world.clips=6"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "answers"
    own = [*TINY, *SHORT, *DATA, "model.answers_as_text=true", f"output={folder}"]
    train(read_recipe(RECIPES / "world_questions.yaml", own), progress=False)
    return folder


def test_a_recipe_trains_answers_as_texts(trained: Path) -> None:
    model = PerceiverVLForQuestionAnswering.from_pretrained(trained)
    assert model.config.answers_as_text
    assert len(model.config.label_token_ids) == model.config.num_labels > 2
    assert model.answer_head.logit_scale.ndim == 0


def test_any_texts_may_be_asked_among(trained: Path) -> None:
    picture = torch.randint(256, (64, 64, 3), dtype=torch.uint8).numpy()
    ask = pipeline("question-answering", trained)
    own = ask(picture, "what colour is it?", top_k=3)
    found = ask(picture, "what colour is it?", choices=["a shade of mauve", "no colour"])
    assert {one["answer"] for one in found} == {"a shade of mauve", "no colour"}
    assert sum(one["score"] for one in found) == pytest.approx(1.0, abs=1e-5)
    assert ask(picture, "what colour is it?", top_k=3) == own  # its own answers are as before
    with pytest.raises(UsageError, match="need at least two different texts"):
        ask(picture, "what colour is it?", choices=["one"])


def test_another_run_goes_on_with_other_answers(trained: Path, tmp_path: Path) -> None:
    own = [*SHORT, *DATA, f"initialise.model={trained}", f"output={tmp_path / 'other'}"]
    own += ["data.train.world.seed=5", "data.train.world.clips=9"]
    text = (RECIPES / "world_questions.yaml").read_text(encoding="utf-8")
    short = tmp_path / "recipe.yaml"
    before, after = text.index("model:\n"), text.index("evaluation:")
    short.write_text(text[:before] + text[after:], encoding="utf-8")
    train(read_recipe(short, own), progress=False)
    model = PerceiverVLForQuestionAnswering.from_pretrained(tmp_path / "other")
    assert model.config.answers_as_text
    assert len(model.config.label_token_ids) == model.config.num_labels
