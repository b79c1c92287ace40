"""The model card: what it says is so, and the code that it shows runs."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from perceiver_vl import (
    PerceiverVLForCaptioning,
    PerceiverVLForImageClassification,
    PerceiverVLForImagesAndTextClassification,
    PerceiverVLForMultipleChoice,
    PerceiverVLForPreTraining,
    PerceiverVLForQuestionAnswering,
    PerceiverVLForRetrieval,
    PerceiverVLModel,
    UsageError,
)
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.caption_words import ends_of
from perceiver_vl.training import train
from perceiver_vl.training.recipe import read_recipe
from perceiver_vl.training.reporting.model_card import write_model_card
from tiny import tiny_config, tiny_processor, tiny_recipe

CAPTIONS = ["a red circle and a blue star", "what colour is the circle"] * 2
PIPELINE_TAGS = {
    PerceiverVLModel: "feature-extraction",
    PerceiverVLForRetrieval: "feature-extraction",
    PerceiverVLForPreTraining: "feature-extraction",
    PerceiverVLForQuestionAnswering: "visual-question-answering",
    PerceiverVLForImageClassification: "image-classification",
    PerceiverVLForMultipleChoice: "visual-question-answering",
    PerceiverVLForImagesAndTextClassification: "visual-question-answering",
    PerceiverVLForCaptioning: "image-to-text",
}


def run_snippet(card: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the one Python block of a card in its folder → what it prints."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", card.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(card.parent)
    exec(compile(code, str(card), "exec"), {})
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", PIPELINE_TAGS)
def test_the_card_of_a_folder_says_what_is_in_it_and_no_more(
    kind: type[PerceiverVLPreTrainedModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    processor = tiny_processor(CAPTIONS)
    words = {"vocab_size": len(processor.tokenizer), **ends_of(processor.tokenizer)}
    model = kind(tiny_config(**words, id2label={0: "red", 1: "blue", 2: "green"}))
    model.save_pretrained(tmp_path / "shapes", max_shard_size="50KB")
    processor.save_pretrained(tmp_path / "shapes")
    (tmp_path / "shapes" / "README.md").write_text("an older card", encoding="utf-8")
    path = write_model_card(tmp_path / "shapes")
    assert path == tmp_path / "shapes" / "README.md"
    assert not [other.name for other in path.parent.iterdir() if other.name.startswith(".")]
    card = ModelCard.load(path)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == PIPELINE_TAGS[kind]
    assert "perceiver-vl" in card.data.tags
    assert card.data.license is card.data.eval_results is card.data.metrics is None
    assert f"| parameters | {model.num_parameters():,} |" in card.text
    assert f"`{kind.__name__}`" in card.text
    assert "# shapes" in card.text
    assert "cross_attentions=1" in card.text
    assert "## Training" not in card.text
    assert "## Validation" not in card.text
    assert str(tmp_path) not in path.read_text(encoding="utf-8")
    printed = run_snippet(path, monkeypatch, capsys)
    if kind in (PerceiverVLForQuestionAnswering, PerceiverVLForImageClassification):
        assert printed.strip() in ("red", "blue", "green")
    elif kind is PerceiverVLForCaptioning:
        assert printed.count("\n") == 1  # who has learned nothing may have nothing to say
    else:
        assert printed.strip()


def test_a_training_run_writes_its_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "runs" / "shapes"
    clips = {
        "train": {"world": {"clips": 24, "size": 16}},
        "validation": {"split": "validation", "world": {"clips": 6}},
    }
    changes = {"data": clips, "objectives": {"vtm": 1, "mlm": 0, "vtc": 0.5}, "training": {"max_steps": 2}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(tiny_recipe(output, **changes)), encoding="utf-8")
    result = train(read_recipe(recipe), progress=False)
    assert result.retrieval is not None

    card = ModelCard.load(output / "README.md")
    assert card.data.model_name == "shapes"
    figures = {
        (figure.task_type, figure.metric_name): (figure.metric_value, figure.dataset_name, figure.dataset_split)
        for figure in card.data.eval_results
    }
    assert len(figures) == len(card.data.eval_results) == 2 * 3 * len(result.retrieval.streams)
    for stream in result.retrieval.streams:
        found = figures["text-to-video-retrieval", f"R@5 ({stream.stream})"]
        assert found == (pytest.approx(stream.text_to_video.r5, abs=0.01), "perceiver-vl-world", "validation")
        row = next(line for line in card.text.splitlines() if line.startswith(f"| {stream.stream} |"))
        recalls = stream.video_to_text
        assert [float(cell) for cell in row.strip("| ").split("|")[5:]] == pytest.approx(
            [recalls.r1, recalls.r5, recalls.r10, recalls.median_rank], abs=0.051
        )
    for said in (
        "2 steps",
        "| starts from | random weights |",
        "24 clips of perceiver-vl's generated world, 16 pixels, seed 0",
        "`vtm=1.0`",
        "`vtc=0.5`",
        f"Retrieval of 6 clips by {result.retrieval.captions} captions",
        "| chance | 16.7 | 83.3 | 100.0 |",
    ):
        assert said in card.text, said
    assert "mlm=" not in card.text
    assert str(tmp_path) not in (output / "README.md").read_text(encoding="utf-8")
    assert "tensor" in run_snippet(output / "README.md", monkeypatch, capsys)


def test_a_card_needs_a_whole_model(tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="no weights"):
        write_model_card(tmp_path)
    assert not (tmp_path / "README.md").exists()
