"""`perceiver_vl.pipeline`: media found by words and questions answered, as the models and the index say."""

import copy
import gc
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import perceiver_vl
from perceiver_vl import (
    ComputeBudget,
    MediaError,
    PerceiverVLError,
    PerceiverVLForQuestionAnswering,
    PerceiverVLForRetrieval,
    PerceiverVLProcessor,
    UsageError,
    load_frames,
)
from perceiver_vl.data.synthetic.writing import write_world
from perceiver_vl.inference import clips as reading
from perceiver_vl.inference.pipelines import QuestionAnsweringPipeline, RetrievalPipeline
from perceiver_vl.media.decode import load_clip
from perceiver_vl.models.perceiver_vl import PerceiverVLPreTrainedModel
from perceiver_vl.models.perceiver_vl.retrieval import combined_scores
from perceiver_vl.search import Searcher, build_index
from tiny import tiny_config, tiny_processor

QUERIES = ["a red circle", "a blue star moves left", "something blinks"]
QUESTIONS = ["what colour is the circle", "what moves", "is the star blue"]
ANSWERS = {0: "red", 1: "blue", 2: "yes", 3: "no"}


def save(kind: type[PerceiverVLPreTrainedModel], folder: Path, **changes: Any) -> Path:
    processor = tiny_processor((QUERIES + QUESTIONS) * 2)
    torch.manual_seed(0)
    config = tiny_config(vocab_size=len(processor.tokenizer), initializer_range=0.4, id2label=ANSWERS, **changes)
    kind(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def retrieval_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(PerceiverVLForRetrieval, tmp_path_factory.mktemp("retrieval"))


@pytest.fixture(scope="session")
def answering_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(PerceiverVLForQuestionAnswering, tmp_path_factory.mktemp("answering"))


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with five clips and a photograph."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder / "world", clips=5, held_out=1, captions_per_clip=1)
    clips = folder / "clips"
    clips.mkdir()
    for path in (folder / "world" / "clips").rglob("*.mp4"):
        shutil.copy(path, clips / f"{path.parent.name}-{path.name}")
    photograph = np.random.default_rng(0).integers(256, size=(30, 40, 3), dtype=np.uint8)
    Image.fromarray(photograph).save(clips / "photograph.png")
    return clips


@pytest.fixture
def find(retrieval_model: Path) -> RetrievalPipeline:
    return perceiver_vl.pipeline("retrieval", retrieval_model, device="cpu")


@pytest.fixture
def ask(answering_model: Path) -> QuestionAnsweringPipeline:
    return perceiver_vl.pipeline("question-answering", answering_model, device="cpu")


# Retrieval


def test_a_folder_is_searched_as_its_index_would_be(
    find: RetrievalPipeline, retrieval_model: Path, clips: Path, tmp_path: Path
) -> None:
    build_index(retrieval_model, clips, tmp_path / "index", device="cpu")
    searcher = Searcher(tmp_path / "index", device="cpu")
    for rerank in (True, False):
        found = find(QUERIES, clips, top_k=4, rerank=rerank, shortlist=5)
        assert len(found) == len(QUERIES)
        for query, results in zip(QUERIES, found, strict=True):
            hits = searcher.search(query, top_k=4, shortlist=5, rerank="combined" if rerank else "none").hits
            assert [result["score"] for result in results] == pytest.approx([hit.score for hit in hits], abs=5e-3)
            by_file = {result["file"]: result for result in results}
            for hit in hits:  # the index stores its latents in half precision
                result = by_file[str(hit.path)]
                assert result["score"] == pytest.approx(hit.score, abs=5e-3)
                assert result["multi_score"] == pytest.approx(hit.multi_score, abs=1e-4)
                assert (result["mixed_score"] is None) == (hit.mixed_score is None)
                if hit.mixed_score is not None:
                    assert result["mixed_score"] == pytest.approx(hit.mixed_score, abs=5e-3)


def test_one_query_gives_one_list(find: RetrievalPipeline, clips: Path) -> None:
    (several,) = find([QUERIES[0]], clips, top_k=3)
    one = find(QUERIES[0], clips, top_k=3)
    assert one == several
    assert len(one) == 3
    scores = [result["score"] for result in one]
    assert scores == sorted(scores, reverse=True)
    assert len(find(QUERIES[0], clips)) == 5
    assert len(find(QUERIES[0], clips, top_k=100)) == 6


def test_media_come_in_every_form(find: RetrievalPipeline, clips: Path) -> None:
    clip, photograph = sorted(clips.glob("*.mp4"))[0], clips / "photograph.png"
    frames = load_frames(clip, 4)
    picture = Image.open(photograph)
    media = [
        clip,
        str(clip),
        frames,
        torch.from_numpy(frames).permute(0, 3, 1, 2),
        [Image.fromarray(frame) for frame in frames],
        photograph,
        picture,
        np.asarray(picture),
    ]
    results = {result["index"]: result for result in find(QUERIES[0], media, top_k=8)}
    assert [results[index]["file"] for index in range(8)] == [
        *[str(clip), str(clip), None, None, None],
        *[str(photograph), None, None],
    ]
    scores = [results[index]["multi_score"] for index in range(8)]
    assert scores[1:5] == pytest.approx([scores[0]] * 4, abs=1e-5)
    assert scores[6:] == pytest.approx([scores[5]] * 2, abs=1e-5)
    assert scores[0] != pytest.approx(scores[5], abs=1e-3)


def test_the_budget_is_the_models(find: RetrievalPipeline, clips: Path) -> None:
    clip, budget = sorted(clips.glob("*.mp4"))[0], ComputeBudget(frames=2, latents=3, cross_attentions=1)
    (result,) = find(QUERIES[0], [clip], rerank=False, budget=budget)
    words, pixels = find.processor(text=QUERIES[0]), find.processor(videos=[clip], num_frames=2)
    text = find.model.get_text_features(**words, budget=budget)
    vision = find.model.get_vision_features(**pixels, budget=budget)
    assert result["score"] == pytest.approx((text * vision).sum().item(), abs=1e-5)
    assert result["score"] != pytest.approx(find(QUERIES[0], [clip], rerank=False)[0]["score"], abs=1e-3)
    with pytest.raises(UsageError, match="budget latents=99"):
        find(QUERIES[0], [clip], budget=ComputeBudget(latents=99))


def test_the_mixed_scores_are_those_of_the_latents(find: RetrievalPipeline, clips: Path) -> None:
    files = sorted(clips.iterdir())
    with torch.inference_mode():
        vision = torch.cat([find.model.encode_vision(**find.processor(videos=[file])) for file in files])
        for query in QUERIES:
            text = find.model.encode_text(**find.processor(text=query))
            multi = (find.model.pool_text(text) @ find.model.pool_vision(vision).T)[0]
            mixed = find.model.match(vision, text.expand(len(files), -1, -1))
            scores = combined_scores(find.model.logit_scale * multi, mixed)
            results = find(query, clips, top_k=len(files))
            assert [Path(result["file"]) for result in results] == [files[i] for i in scores.argsort(descending=True)]
            places = [files.index(Path(result["file"])) for result in results]
            for name, wanted in (("multi_score", multi), ("mixed_score", mixed), ("score", scores)):
                assert [result[name] for result in results] == pytest.approx(wanted[places].tolist(), abs=1e-5)


def test_nothing_as_large_as_its_latents_is_kept_of_a_clip(
    find: RetrievalPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge, held = find.model.merge_matches, []

    def watched_merge(*sides: torch.Tensor) -> torch.Tensor:
        held.append(tensor_bytes())
        return merge(*sides)

    monkeypatch.setattr(find.model, "merge_matches", watched_merge)
    for clips in (64, 128):
        find(QUERIES[0], [np.full((1, 16, 16, 3), grey, np.uint8) for grey in range(clips)])
    few, many = held
    config = find.model.config
    of_latents = config.num_latents * config.hidden_size * torch.float32.itemsize
    assert (many - few) / 64 < of_latents / 2


def tensor_bytes() -> int:
    """What all tensors take, weights excepted."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor and thing.device.type == "cpu"]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_a_half_precision_model_finds_much_the_same(find: RetrievalPipeline, clips: Path) -> None:
    halved = RetrievalPipeline(copy.deepcopy(find.model).to(torch.bfloat16), find.processor)
    wanted = {result["file"]: result for result in find(QUERIES[0], clips, top_k=10)}
    for result in halved(QUERIES[0], clips, top_k=10):
        assert result["multi_score"] == pytest.approx(wanted[result["file"]]["multi_score"], abs=0.05)
        assert result["mixed_score"] == pytest.approx(wanted[result["file"]]["mixed_score"], abs=0.1)


def test_a_broken_file_of_a_folder_is_left_out_and_of_a_list_refused(
    find: RetrievalPipeline, clips: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "clips"
    shutil.copytree(clips, folder)
    broken = folder / "broken.mp4"
    broken.write_bytes(b"not a clip")
    with pytest.warns(UserWarning, match=r"^1 of 7 files cannot be read and are left out, the first: .*broken\.mp4: "):
        found = find(QUERIES[0], folder, top_k=10)
    assert [result | {"index": 0} for result in found] == [
        {**result, "file": str(folder / Path(result["file"]).name), "index": 0}
        for result in find(QUERIES[0], clips, top_k=10)
    ]
    with pytest.raises(MediaError, match=r"broken\.mp4"):
        find(QUERIES[0], [folder / "photograph.png", broken])
    only_broken = tmp_path / "only_broken"
    only_broken.mkdir()
    shutil.copy(broken, only_broken)
    with pytest.raises(PerceiverVLError, match="none of the 1 files can be read"):
        find(QUERIES[0], only_broken)


@pytest.mark.parametrize(
    ("queries", "media", "options", "message"),
    [
        ("a star", [], {}, r"media=\[\]"),
        ("a star", 3, {}, "media of type int"),
        ("a star", "no/such/folder", {}, "no such folder"),
        ("a star", None, {"top_k": 0}, "top_k=0"),
        ("a star", None, {"shortlist": 0}, "shortlist=0"),
        ([], None, {}, r"text=\[\]"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    queries: Any, media: Any, options: dict[str, int], message: str, find: RetrievalPipeline, clips: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        find(queries, clips if media is None else media, **options)


# Question answering


def test_answers_are_the_models_with_their_probabilities(
    ask: QuestionAnsweringPipeline, answering_model: Path, clips: Path
) -> None:
    clip = sorted(clips.glob("*.mp4"))[0]
    model = PerceiverVLForQuestionAnswering.from_pretrained(answering_model).eval()
    processor = PerceiverVLProcessor.from_pretrained(answering_model)
    several = ask(clip, QUESTIONS, top_k=10)
    assert len(several) == len(QUESTIONS)
    for question, answers in zip(QUESTIONS, several, strict=True):
        wanted = model(**processor(text=question, videos=[clip])).logits[0].softmax(-1).tolist()
        assert {one["answer"]: one["score"] for one in answers} == pytest.approx(
            dict(zip(ANSWERS.values(), wanted, strict=True)), abs=1e-5
        )
        assert [one["score"] for one in answers] == pytest.approx(sorted(wanted, reverse=True), abs=1e-5)
    assert differs(several[0], several[1])
    (best,) = ask(clip, QUESTIONS[0], top_k=1)
    assert best["answer"] == several[0][0]["answer"]
    assert best["score"] == pytest.approx(several[0][0]["score"], abs=1e-5)


def differs(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> bool:
    return [one["score"] for one in left] != pytest.approx([one["score"] for one in right], abs=1e-4)


def test_answers_that_do_not_exclude_each_other_have_their_own_probabilities(clips: Path, tmp_path: Path) -> None:
    save(PerceiverVLForQuestionAnswering, tmp_path, problem_type="multi_label_classification")
    ask = perceiver_vl.pipeline("question-answering", tmp_path, device="cpu")
    clip = sorted(clips.glob("*.mp4"))[0]
    logits = ask.model(**ask.processor(text=QUESTIONS[0], videos=[clip])).logits[0]
    answers = ask(clip, QUESTIONS[0])
    assert [one["score"] for one in answers] == pytest.approx(sorted(logits.sigmoid().tolist(), reverse=True), abs=1e-5)


def test_an_image_or_an_array_can_be_asked_about(ask: QuestionAnsweringPipeline, clips: Path) -> None:
    photograph = clips / "photograph.png"
    picture = Image.open(photograph)
    wanted = ask(photograph, QUESTIONS[0])
    for form in (str(photograph), picture, np.asarray(picture), np.asarray(picture)[None]):
        for one, other in zip(ask(form, QUESTIONS[0]), wanted, strict=True):
            assert one["answer"] == other["answer"]
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)


class FramesOnDemand(list[Image.Image]):
    """A clip that counts how often a frame of it is taken."""

    taken = 0

    def __getitem__(self, place: Any) -> Any:
        self.taken += 1
        return super().__getitem__(place)


def test_many_questions_read_the_clip_once(ask: QuestionAnsweringPipeline, clips: Path) -> None:
    frames = [Image.fromarray(frame) for frame in load_frames(sorted(clips.glob("*.mp4"))[0], 4)]
    clip = FramesOnDemand(frames)
    answers = ask(clip, QUESTIONS * 30, top_k=1)
    assert clip.taken == 4
    assert len(answers) == 90
    for first, again in zip(answers[:3], answers[-3:], strict=True):
        assert first[0]["score"] == pytest.approx(again[0]["score"], abs=1e-5)


def test_what_cannot_be_answered_is_refused(ask: QuestionAnsweringPipeline, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no such file"):
        ask(tmp_path / "nothing.mp4", QUESTIONS[0])
    with pytest.raises(UsageError, match="top_k=0"):
        ask(clips / "photograph.png", QUESTIONS[0], top_k=0)
    with pytest.raises(UsageError, match=r"text=\[\]"):
        ask(clips / "photograph.png", [])


def test_only_some_of_the_answers_are_asked_for(ask: QuestionAnsweringPipeline, clips: Path) -> None:
    clip = sorted(clips.glob("*.mp4"))[0]
    everything = {one["answer"]: one["score"] for one in ask(clip, QUESTIONS[0])}
    some = {one["answer"]: one["score"] for one in ask(clip, QUESTIONS[0], choices=["no", "blue"])}
    both = everything["no"] + everything["blue"]
    assert some == pytest.approx({name: everything[name] / both for name in ("no", "blue")}, abs=1e-5)
    with pytest.raises(UsageError, match="choice 'green': not one of the 4 answers"):
        ask(clip, QUESTIONS[0], choices=["red", "green"])


def test_a_model_that_counts_says_a_number(clips: Path, tmp_path: Path) -> None:
    save(PerceiverVLForQuestionAnswering, tmp_path, problem_type="regression", num_labels=1)
    ask = perceiver_vl.pipeline("question-answering", tmp_path, device="cpu")
    clip = sorted(clips.glob("*.mp4"))[0]
    (answer,) = ask(clip, QUESTIONS[0])
    number = ask.model(**ask.processor(text=QUESTIONS[0], videos=[clip])).logits.item()
    assert answer["score"] == pytest.approx(number, abs=1e-5)
    assert answer["answer"] == str(min(max(round(number), 1), 10))


def test_a_question_is_about_some_seconds_of_a_clip(ask: QuestionAnsweringPipeline, clips: Path) -> None:
    clip = sorted(clips.glob("*.mp4"))[0]
    whole, part = ask(clip, QUESTIONS[0]), ask(clip, QUESTIONS[0], start=0.25, end=0.5)
    assert [one["score"] for one in whole] != pytest.approx([one["score"] for one in part], abs=1e-5)
    size = (16, 16)
    frames = load_frames(clip, 4, start=0.25, end=0.5, size=size)
    assert ask(frames, QUESTIONS[0])[0]["score"] == pytest.approx(part[0]["score"], abs=1e-5)
    with pytest.raises(UsageError, match="seconds of a file, but a ndarray was given"):
        ask(frames, QUESTIONS[0], start=1.0)


# Multiple choice


@pytest.mark.parametrize("question", [None, "what does the circle do"])
def test_the_choices_are_the_models(retrieval_model: Path, clips: Path, question: str | None) -> None:
    choose = perceiver_vl.pipeline("multiple-choice", retrieval_model, device="cpu")  # any model that matches can
    clip = sorted(clips.glob("*.mp4"))[0]
    found = choose(clip, QUERIES, question)
    pixels = choose.processor(videos=[clip])
    if question is None:
        words = choose.processor(text=QUERIES)
    else:
        words = choose.processor.tokenizer(
            [question] * 3, QUERIES, padding=True, truncation=True, max_length=8, return_tensors="pt"
        )
    logits = choose.model(words["input_ids"][None], words["attention_mask"][None], **pixels).logits[0]
    wanted = dict(zip(QUERIES, logits.softmax(-1).tolist(), strict=True))
    assert {one["answer"]: one["score"] for one in found} == pytest.approx(wanted, abs=1e-5)
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    for too_few in ("a red circle", ["a red circle"]):
        with pytest.raises(UsageError, match="need a list of at least two"):
            choose(clip, too_few, question)


# Which model


def test_a_pipeline_needs_a_model_of_its_task(retrieval_model: Path, answering_model: Path, tmp_path: Path) -> None:
    tasks = "'retrieval', 'moments', 'question-answering', 'multiple-choice' or 'captioning'"
    with pytest.raises(UsageError, match=rf"^task='translation': choose {tasks}$"):
        perceiver_vl.pipeline("translation", retrieval_model)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="give a model trained for question answering"):
        perceiver_vl.pipeline("question-answering", retrieval_model)
    with pytest.raises(UsageError, match="give a model trained for retrieval"):
        perceiver_vl.pipeline("retrieval", answering_model)
    with pytest.raises(UsageError, match="no such folder"):
        perceiver_vl.pipeline("retrieval", tmp_path / "nothing")
    assert callable(perceiver_vl.pipeline)


# Long clips and data types


def test_every_frame_at_a_rate_is_read_as_if_at_once(ask: QuestionAnsweringPipeline, clips: Path) -> None:
    clip = sorted(clips.glob("*.mp4"))[0]
    frames = load_clip(clip, fps=2.0, size=(16, 16)).frames
    assert 1 < len(frames) <= ask.model.config.max_frames
    inputs = ask.processor(videos=[frames], num_frames=len(frames))
    words = ask.processor(text=QUESTIONS)
    with torch.inference_mode():
        cache = ask.model.cache_vision(**inputs)
        wanted = ask.model(words["input_ids"], words["attention_mask"], vision_cache=cache).logits.softmax(-1)
        (uncached,) = ask.model(words["input_ids"][:1], words["attention_mask"][:1], **inputs).logits.softmax(-1)
    torch.testing.assert_close(wanted[0], uncached)
    for found, of_question in zip(ask(clip, QUESTIONS, fps=2.0), wanted, strict=True):
        for answer in found:
            of_answer = of_question[ask.model.config.label2id[answer["answer"]]].item()
            assert answer["score"] == pytest.approx(of_answer, abs=1e-5)


def test_a_rate_is_of_a_file(ask: QuestionAnsweringPipeline) -> None:
    with pytest.raises(UsageError, match=r"^fps=1: of a file, but a ndarray was given$"):
        ask(np.zeros((2, 16, 16, 3), np.uint8), QUESTIONS[0], fps=1)


def test_frames_that_a_damaged_file_lacks_are_masked(
    ask: QuestionAnsweringPipeline, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = sorted(clips.glob("*.mp4"))[0]
    frames = load_clip(clip, fps=2.0, size=(16, 16)).frames
    wanted = ask(frames, QUESTIONS[0], budget=ComputeBudget(frames=len(frames)))
    monkeypatch.setattr(reading, "sampled_count", lambda *_, **__: len(frames) + 1)
    found = ask(clip, QUESTIONS[0], fps=2.0)
    assert [answer["answer"] for answer in found] == [answer["answer"] for answer in wanted]
    assert [answer["score"] for answer in found] == pytest.approx([answer["score"] for answer in wanted], abs=1e-5)


def test_a_pipeline_runs_in_the_dtype_asked_for(retrieval_model: Path, clips: Path) -> None:
    find = perceiver_vl.pipeline("retrieval", retrieval_model, "cpu", dtype="int8")
    assert len(find(QUERIES[0], clips, top_k=3)) == 3
    with pytest.raises(UsageError, match=r"^dtype=int4: choose from"):
        perceiver_vl.pipeline("retrieval", retrieval_model, dtype="int4")


def test_metadata_that_cannot_be_read_can_be_passed_over(find: RetrievalPipeline, clips: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clips, tmp_path / "clips"))
    (folder / "metadata.jsonl").write_text('{"nothing": 1}\n')
    with pytest.raises(UsageError, match="or ignore the file with metadata='none'"):
        find("a red circle", folder)
    assert len(find("a red circle", folder, top_k=9, metadata="none")) == 6
