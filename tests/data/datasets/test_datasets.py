"""Benchmarks from their official files: the truncated originals where there are some, else small files of that form."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceiver_vl import PerceiverVLError, UsageError
from perceiver_vl.data.datasets.read import read_benchmark, read_splits
from perceiver_vl.data.datasets.table import BENCHMARKS
from perceiver_vl.data.datasets.vqav2 import majority_answers
from perceiver_vl.data.records import Record
from perceiver_vl.media.files import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS

SHARED = (Path(__file__).resolve().parents[3] / ".." / "shared").resolve()
OFFICIAL = SHARED / "data" / "official_formats"
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason="no folder shared/ beside the repository")
ONE_LINE = r"^[^\n]+$"

SAMPLES = [  # benchmark, folder of its truncated originals, rows of each split
    ("conceptual-captions", "conceptual_captions", {"validation": 50}),
    ("webvid", "webvid", {"validation": 9}),
    ("flickr8k", "flickr_karpathy", {"train": 40, "validation": 10, "test": 10}),
    ("flickr8k", "flickr8k", {"all": 40}),
    ("msrvtt", "msrvtt", {"train": 19, "validation": 5, "test": 5}),
    ("msrvtt-1ka", "msrvtt", {"train": 60, "train_7k": 60, "test": 59}),
    ("msrvtt-qa", "msrvtt_qa", {"validation": 60, "test": 60}),
    ("msvd", "msvd", {"test": 30}),
    ("msvd-qa", "msvd_qa", {"train": 50, "validation": 50, "test": 50}),
    ("didemo", "didemo", {"validation": 40, "test": 37}),
    ("didemo-sentences", "didemo", {"validation": 40, "test": 40}),
    ("activitynet-captions", "activitynet_captions", {"train": 40, "validation": 40, "validation_2": 40}),
    ("activitynet-captions-sentences", "activitynet_captions", {"train": 147, "validation": 139, "validation_2": 138}),
    ("activitynet-qa", "activitynet_qa", {"validation": 60, "test": 60}),
    ("tgif-qa-action", "tgif_qa", {"train": 40, "test": 40}),
    ("tgif-qa-transition", "tgif_qa", {"test": 40}),
    ("tgif-qa-frame", "tgif_qa", {"test": 40}),
    ("tgif-qa-count", "tgif_qa", {"train": 40, "test": 40}),
    ("nextqa", "nextqa", {"validation": 40, "test": 40}),
    ("vqav2", "vqav2", {"train": 3}),
    ("nlvr2", "nlvr2", {"validation": 50, "test": 50}),
    ("nlvr", "nlvr", {"validation": 180}),
]


def write(folder: Path, files: dict[str, Any]) -> None:
    """Write annotations: a string as it is, a list of strings as lines, anything else as JSON; bytes as a medium."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, list) and content and all(isinstance(line, str) for line in content):
            path.write_text("\n".join(content) + "\n", encoding="utf-8")
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def media(*names: str) -> dict[str, bytes]:
    return dict.fromkeys(names, b"media")


def with_media_of_every_row(name: str, source: Path, folder: Path) -> Path:
    """A copy of the annotations, with a file beside them for each medium that they name."""
    shutil.copytree(source, folder)
    kind = ".mp4" if BENCHMARKS[name].kind == "video" else ".jpg"
    extensions = VIDEO_EXTENSIONS | IMAGE_EXTENSIONS
    for part in read_splits(name, folder, on_request=True).values():
        for problem in part.skipped:
            known = Path(problem.file_name).suffix.lower() in extensions
            write(folder / "media", media(problem.file_name if known else problem.file_name + kind))
    return folder


# --- The official files, truncated ------------------------------------------------------------------------------------


@needs_shared_data
@pytest.mark.parametrize(("name", "source", "rows"), SAMPLES)
def test_every_row_of_the_official_files_is_read(name: str, source: str, rows: dict[str, int], tmp_path: Path) -> None:
    assert {split: part.rows for split, part in read_splits(name, OFFICIAL / source, on_request=True).items()} == rows
    folder = with_media_of_every_row(name, OFFICIAL / source, tmp_path / "data")
    for split, part in read_splits(name, folder, on_request=True).items():
        if (name, split[:5]) == ("msrvtt-1ka", "train"):  # the sample has the list, and the captions of other clips
            assert {problem.reason for problem in part.skipped} == {"no caption"}
            continue
        assert part.skipped == []
        assert len(part.records) == rows[split]
        for record in part.records:
            assert record.split == (None if split == "all" else split)
            assert record.path == folder / record.file_name
            assert record.path.is_file()
            assert record.texts or record.question or record.choices
            assert all((*record.texts, *record.answers, *record.choices))
            assert record.label is None or not record.choices or record.label < len(record.choices)


@needs_shared_data
def test_no_official_file_is_left_without_a_reader() -> None:
    others = {"gqa", "qvhighlights", "snli_ve", "tgif", "youcook2"}  # of these sets no task is made
    read = {source for _, source, _ in SAMPLES}
    assert {path.name for path in OFFICIAL.iterdir()} == read | others


@pytest.fixture
def sample(tmp_path: Path) -> Callable[[str, str], dict[str, Record]]:
    """The records of a benchmark from its truncated originals, by example_id or else by name."""

    def records(name: str, split: str) -> dict[str, Record]:
        if not SHARED.is_dir():
            pytest.skip("no folder shared/ beside the repository")
        source = next(source for known, source, rows in SAMPLES if known == name and split in rows)
        folder = with_media_of_every_row(name, OFFICIAL / source, tmp_path / f"{name}-{split}")
        found = read_benchmark(name, folder, split=split).records
        return {record.example_id or record.file_name: record for record in found}

    return records


def test_what_the_first_rows_say(sample: Callable[[str, str], dict[str, Record]]) -> None:
    first = sample("conceptual-captions", "validation")["0"]
    assert first.texts == ("author : a life in photography -- in pictures",)
    assert first.file_name == "media/validation/000000000.jpg"
    assert sample("webvid", "validation")["5641526"].texts == ("Horse grazing - seperated on green screen",)
    photo = sample("flickr8k", "train")["0"]
    assert photo.texts[0] == "A group of four children wearing pajamas have a pillow fight ."
    assert len(photo.texts) == 5
    clip = sample("msrvtt-1ka", "test")["ret2"]
    assert (clip.file_name, clip.texts) == ("media/video7020.mp4", ("a woman creating a fondant baby and flower",))
    assert sample("msrvtt", "train")["video7020"].texts[0] == "a person is preparing some art"
    question = sample("msrvtt-qa", "test")["170859"]
    assert (question.file_name, question.question, question.answers) == (
        "media/video7010.mp4",
        "what is the video doing",
        ("regard",),
    )
    assert sample("msvd-qa", "train")["1"].question == "what is a small animal chewing on?"
    assert sample("msvd", "test")["eyhzdC936uk_15_27"].texts[0] == "a boy playing with dog."
    action = sample("tgif-qa-action", "test")["ACTION4"]
    assert (action.choices[4], action.label) == ("flap wings", 4)
    assert sample("tgif-qa-transition", "test")["TRANS24"].label == 0
    frame = sample("tgif-qa-frame", "test")["FRAMEQA9405"]
    assert (frame.answers, frame.kind) == (("machine",), "location")
    assert sample("tgif-qa-count", "test")["COUNT46"].answers == ("10",)
    causal = sample("nextqa", "validation")["4010069381_6"]
    assert (causal.choices[0], causal.label, causal.kind) == ("roll the handle", 0, "CH")
    asked = sample("activitynet-qa", "test")["v_1QIUV7WYKXg_3"]
    assert (asked.question, asked.answers, asked.kind) == ("is the athlete wearing trousers", ("no",), "yes/no")
    seen = sample("vqav2", "train")["458752000"]
    assert seen.file_name == "media/COCO_train2014_000000458752.jpg"
    assert seen.answers[:4] == ("net", "net", "net", "netting")
    assert len(seen.answers) == 10


def test_pairs_and_permutations(sample: Callable[[str, str], dict[str, Record]]) -> None:
    pairs = sample("nlvr2", "validation")
    pair = pairs["dev-850-0-0"]
    assert (pair.file_name, pair.second_file_name) == ("media/dev-850-0-img0.jpg", "media/dev-850-0-img1.jpg")
    assert pair.second_path is not None
    assert pair.second_path.is_file()
    assert pair.label == 0
    assert {record.label for record in pairs.values()} == {0, 1}
    orders = {name: record for name, record in sample("nlvr", "validation").items() if name.startswith("dev-1572-0-")}
    assert sorted(orders) == [f"dev-1572-0-{order}" for order in range(6)]
    assert {(record.texts, record.label) for record in orders.values()} == {
        (("Each grey box contains atleast one yellow object touching the edge",), 1)
    }
    assert {(record.question, record.answers) for record in orders.values()} == {
        ("Each grey box contains atleast one yellow object touching the edge", ("true",))
    }


def test_paragraphs_are_in_time_order_and_sentences_keep_their_seconds(
    sample: Callable[[str, str], dict[str, Record]],
) -> None:
    name = "v_ehGHCYKzyZ8"
    (text,) = sample("activitynet-captions", "train")[name].texts
    assert text.startswith("The video starts with a title logo sequence. A man and woman are in a living room")
    assert "  " not in text
    last = sample("activitynet-captions-sentences", "train")[name]
    assert (last.start, last.end, last.texts) == (56.47, 61.72, ("The woman ends with a final title logo sequence.",))
    moment = sample("didemo-sentences", "test")["1"]
    assert (moment.start, moment.end) == (20.0, 25.0)  # segment 4 was marked most often, of five seconds
    assert moment.texts == ("someone kicks the bug towards some rocks.",)


@needs_shared_data
def test_the_media_may_lie_elsewhere_behind_a_link(tmp_path: Path) -> None:
    for name, source, pictures, split, count in (
        ("vqav2", "vqav2", "vqa_mini", "train", 3),
        ("nlvr2", "nlvr2", "nlvr2_mini", None, 16),
        ("nlvr", "nlvr", "nlvr", "validation", None),
        ("msrvtt", "msrvtt", "msrvtt_keyframes", None, 29),
        ("flickr8k", "flickr_karpathy", "flickr8k", None, 60),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "annotations").symlink_to(OFFICIAL / source)
        (folder / "media").symlink_to(SHARED / "data" / pictures)
        records = read_benchmark(name, folder, split=split).records
        assert len(records) == count if count else records
        assert all(record.file_name.startswith("media/") and record.path.is_file() for record in records)


# --- Formats of which there is no original here -----------------------------------------------------------------------

COCO = {
    "images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg"}],
    "annotations": [{"image_id": 9, "id": 1, "caption": "a dog "}, {"image_id": 9, "id": 2, "caption": "one dog"}],
}
KARPATHY = {
    "images": [
        {"filename": f"{split}.jpg", "split": split, "imgid": place, "cocoid": 9, "sentences": [{"raw": "a dog ."}]}
        for place, split in enumerate(("train", "restval", "val", "test"))
    ],
    "dataset": "coco",
}
MSRVTT_VIDEOS = {
    "videos": [{"video_id": "video1", "split": "train"}, {"video_id": "video2", "split": "validate"}],
    "sentences": [{"video_id": "video1", "caption": "one"}, {"video_id": "video2", "caption": "two"}],
}
MSRVTT_TEST = {
    "videos": [{"video_id": "video3", "split": "test"}],
    "sentences": [{"video_id": "video3", "caption": "three"}, {"video_id": "video3", "caption": "drei"}],
}
CHOICES = "key\tvid_key\ta1\ta2\ta3\ta4\ta5\tanswer\nMC1\tmsr7\tone\ttwo\tthree\tfour\tfive\t3\n"
VQA = {
    "v2_OpenEnded_mscoco_train2014_questions.json": {
        "questions": [{"image_id": 9, "question": "a dog?", "question_id": 90}]
    },
    "v2_mscoco_train2014_annotations.json": {
        "annotations": [
            {
                "question_id": 90,
                "answer_type": "yes/no",
                "multiple_choice_answer": "yes",
                "answers": [{"answer": "no", "answer_id": 1}, {"answer": "yes", "answer_id": 2}],
            }
        ]
    },
    "v2_OpenEnded_mscoco_test-dev2015_questions.json": {
        "questions": [{"image_id": 1, "question": "a cat?", "question_id": 10}]
    },
}
LAYOUTS: list[tuple[str, dict[str, Any], list[str], dict[str, tuple[str, tuple[str, ...]]]]] = [
    # benchmark, annotations, media, and of each split the first record's file and texts
    (
        "coco-captions",
        {"annotations/captions_train2014.json": COCO},
        ["train2014/COCO_train2014_000000000009.jpg"],
        {"train": ("train2014/COCO_train2014_000000000009.jpg", ("a dog", "one dog"))},
    ),
    (
        "coco-captions-2017",
        {"captions_val2017.json": COCO},
        ["COCO_train2014_000000000009.png"],
        {"validation": ("COCO_train2014_000000000009.png", ("a dog", "one dog"))},
    ),
    (
        "coco-karpathy",
        {"dataset_coco.json": KARPATHY},
        ["train.jpg", "restval.jpg", "val.jpg", "test.jpg"],
        {
            "train": ("train.jpg", ("a dog .",)),
            "validation": ("val.jpg", ("a dog .",)),
            "test": ("test.jpg", ("a dog .",)),
        },
    ),
    (
        "flickr30k",
        {"results_20130124.token": ["1.jpg#0\tone", '1.jpg#1\t"two" , they said']},
        ["flickr30k-images/1.jpg"],
        {"all": ("flickr30k-images/1.jpg", ("one", '"two" , they said'))},
    ),
    (
        "flickr8k",
        {
            "captions.txt": ["image,caption", "1.jpg,one", '2.jpg,"two, and"', "2.jpg,three"],
            "Flickr_8k.devImages.txt": ["2.jpg"],
        },
        ["Images/1.jpg", "Images/2.jpg"],
        {"validation": ("Images/2.jpg", ("two, and", "three")), "all": ("Images/1.jpg", ("one",))},
    ),
    (
        "conceptual-captions",
        {"Train_GCC-training.tsv": ['a "dog\thttp://x/1', "two\thttp://x/2"]},
        ["train/00000/000000000.jpg", "train/00000/000000001.jpg", "validation/000000000.jpg"],
        {"train": ("train/00000/000000000.jpg", ('a "dog',))},
    ),
    (
        "webvid",
        {"results_2M_train.csv": ["videoid,name,page_idx,page_dir,duration", '12,"dogs, two",1,027701_027750,PT1S']},
        ["videos/027701_027750/12.mp4"],
        {"train": ("videos/027701_027750/12.mp4", ("dogs, two",))},
    ),
    (
        "sbu",
        {
            "SBU_captioned_photo_dataset_urls.txt": ["http://static.flickr.com/2723/4385_b0.jpg", "http://x/y.jpg"],
            "SBU_captioned_photo_dataset_captions.txt": ["one", "two"],
        },
        ["images/4385_b0.jpg", "images/000000001.jpg"],
        {"train": ("images/4385_b0.jpg", ("one",))},
    ),
    (
        "visual-genome",
        {"region_descriptions.json": [{"id": 7, "regions": [{"phrase": "a dog"}, {"phrase": "its tail"}]}]},
        ["VG_100K_2/7.jpg"],
        {"train": ("VG_100K_2/7.jpg", ("a dog", "its tail"))},
    ),
    (
        "msrvtt",
        {"train_val_videodatainfo.json": MSRVTT_VIDEOS, "test_videodatainfo.json": MSRVTT_TEST},
        ["TrainValVideo/video1.mp4", "TrainValVideo/video2.mp4", "TestVideo/video3.avi"],
        {
            "train": ("TrainValVideo/video1.mp4", ("one",)),
            "validation": ("TrainValVideo/video2.mp4", ("two",)),
            "test": ("TestVideo/video3.avi", ("three", "drei")),
        },
    ),
    (
        "msrvtt-1ka",
        {
            "train_val_videodatainfo.json": MSRVTT_VIDEOS,
            "test_videodatainfo.json": MSRVTT_TEST,
            "MSRVTT_train.9k.csv": ["video_id", "video3", "video2"],
            "MSRVTT_train.7k.csv": ["video_id", "video1"],
        },
        ["video1.mp4", "video2.mp4", "video3.mp4"],
        {"train": ("video3.mp4", ("three", "drei")), "train_7k": ("video1.mp4", ("one",))},
    ),
    ("msrvtt-mc", {"MSR_MC_test.csv": CHOICES}, ["video7.mp4"], {"test": ("video7.mp4", ())}),
    (
        "msrvtt-mc",
        {"msrvtt_mc_test.jsonl": ['{"qid": 1, "clip_name": "video7", "answer": 3, "options": ["a", "b", "c", "d"]}']},
        ["video7.mp4"],
        {"test": ("video7.mp4", ())},
    ),
    (
        "msvd",
        {
            "AllVideoDescriptions.txt": ["# English", "-4w_5_15 a dog runs", "-4w_5_15 one dog", "x_1_2 two"],
            "train_list.txt": ["-4w_5_15"],
            "test_list.txt": ["x_1_2"],
        },
        ["YouTubeClips/-4w_5_15.avi", "YouTubeClips/x_1_2.avi"],
        {
            "train": ("YouTubeClips/-4w_5_15.avi", ("a dog runs", "one dog")),
            "test": ("YouTubeClips/x_1_2.avi", ("two",)),
        },
    ),
    (
        "msvd-qa",
        {
            "train_qa.json": [{"answer": "nut", "id": 0, "question": "what is it?", "video_id": 1}],
            "youtube_mapping.txt": ["-4w_5_15 vid1"],
        },
        ["-4w_5_15.avi"],
        {"train": ("-4w_5_15.avi", ())},
    ),
    (
        "msrvtt-qa",
        {"val_qa.json": [{"answer": "couch", "id": 5, "question": "what?", "video_id": 6513, "category_id": 14}]},
        ["video6513.mp4"],
        {"validation": ("video6513.mp4", ())},
    ),
    (
        "lsmdc",
        {
            "LSMDC16_annos_training.csv": [
                '1_A_00.01.02.170-00.01.03.675\t00.01\t00.02\t00.01\t00.02\tSOMEONE says "so.',
                "1_A_00.01.02.170-00.01.03.675\t00.01\t00.02\t00.01\t00.02\tHe goes.",
            ],
            "LSMDC16_challenge_1000_publictect.csv": ["1_B_00.00.00.000-00.00.01.000\t1\t2\t1\t2\tShe stays."],
        },
        ["1_A/1_A_00.01.02.170-00.01.03.675.avi", "1_B_00.00.00.000-00.00.01.000.mp4"],
        {
            "train": ("1_A/1_A_00.01.02.170-00.01.03.675.avi", ('SOMEONE says "so.', "He goes.")),
            "test": ("1_B_00.00.00.000-00.00.01.000.mp4", ("She stays.",)),
        },
    ),
    (
        "didemo",
        {
            "train_data.json": [
                {"video": "a@N0_1.mov", "description": "then", "times": [[2, 2], [2, 3]], "annotation_id": 1},
                {"video": "a@N0_1.mov", "description": "first", "times": [[0, 0], [5, 5], [0, 0]], "annotation_id": 2},
            ]
        },
        ["a@N0_1.mp4"],
        {"train": ("a@N0_1.mp4", ("first then",))},
    ),
    (
        "nlvr2",
        {"train.json": ['{"sentence": "Two.", "label": "True", "identifier": "train-1-2-0", "directory": "5"}']},
        ["images/train/5/train-1-2-img0.png", "images/train/5/train-1-2-img1.png"],
        {"train": ("images/train/5/train-1-2-img0.png", ("Two.",))},
    ),
    (
        "vqav2",
        VQA,
        ["train2014/COCO_train2014_000000000009.jpg", "test2015/COCO_test2015_000000000001.jpg"],
        {
            "train": ("train2014/COCO_train2014_000000000009.jpg", ()),
            "test_dev": ("test2015/COCO_test2015_000000000001.jpg", ()),
        },
    ),
    (
        "imagenet",
        {},
        ["train/n2/a.JPEG", "train/n1/a.JPEG", "val/n2/b.JPEG"],
        {"train": ("train/n1/a.JPEG", ()), "validation": ("val/n2/b.JPEG", ())},
    ),
]


@pytest.mark.parametrize(("name", "annotations", "files", "first"), LAYOUTS)
def test_official_layouts(
    name: str,
    annotations: dict[str, Any],
    files: list[str],
    first: dict[str, tuple[str, tuple[str, ...]]],
    tmp_path: Path,
) -> None:
    write(tmp_path, annotations | media(*files))
    parts = read_splits(name, tmp_path, on_request=True)
    assert {
        split: (part.records[0].file_name, part.records[0].texts) for split, part in parts.items()
    } == first  # no other split is there
    for split, part in parts.items():
        assert part.skipped == []
        found = read_benchmark(name, tmp_path, split=split)
        assert found.records == part.records
        assert all(record.path == tmp_path / record.file_name for record in found.records)


def test_every_benchmark_is_tried() -> None:
    assert {name for name, *_ in SAMPLES} | {name for name, *_ in LAYOUTS} == set(BENCHMARKS)
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name
        assert benchmark.kind in ("video", "image")
        assert set(benchmark.splits) & {"train", "test"}


def test_karpathys_training_split_takes_restval(tmp_path: Path) -> None:
    write(tmp_path, {"dataset_coco.json": KARPATHY} | media("train.jpg", "restval.jpg", "val.jpg", "test.jpg"))
    names = [record.file_name for record in read_benchmark("coco-karpathy", tmp_path, split="train").records]
    assert names == ["train.jpg", "restval.jpg"]


def test_classes_have_the_numbers_of_the_sorted_training_folders(tmp_path: Path) -> None:
    write(tmp_path, media("train/n2/a.JPEG", "train/n1/a.JPEG", "val/n2/b.JPEG"))
    found = read_benchmark("imagenet", tmp_path, split="validation")
    assert found.classes == ("n1", "n2")
    assert [record.label for record in found.records] == [1]
    write(tmp_path, media("val/n3/b.JPEG"))
    with pytest.raises(UsageError, match=r"^[^\n]*n3[^\n]*a class that train has too"):
        read_benchmark("imagenet", tmp_path, split="validation")


def test_the_answers_of_vqav2_are_those_of_the_ten_and_the_one_of_most(tmp_path: Path) -> None:
    write(tmp_path, VQA | media("COCO_train2014_000000000009.jpg"))
    (record,) = read_benchmark("vqav2", tmp_path, split="train").records
    assert (record.answers, record.kind, record.example_id) == (("no", "yes"), "yes/no", "90")
    given = VQA["v2_mscoco_train2014_annotations.json"]
    alone = {"annotations": [{"question_id": 91, "answers": [{"answer": word} for word in ("a", "b", "b")]}]}
    write(tmp_path, {"v2_mscoco_train2014_annotations.json": given, "v2_mscoco_val2014_annotations.json": alone})
    assert majority_answers(tmp_path) == ["yes", "b"]


# --- Splits -----------------------------------------------------------------------------------------------------------


def test_splits_have_many_names_and_those_on_request_are_read_by_name(tmp_path: Path) -> None:
    files = {
        "val_1.json": {"v_a": {"timestamps": [[0, 1]], "sentences": ["one"]}},
        "val_2.json": {"v_a": {"timestamps": [[0, 1]], "sentences": ["two"]}},
    }
    write(tmp_path, files | media("a.mp4"))
    for split in (None, "val", "dev", "validation"):
        (record,) = read_benchmark("activitynet-captions", tmp_path, split=split).records
        assert (record.split, record.texts) == ("validation", ("one",))
    (record,) = read_benchmark("activitynet-captions", tmp_path, split="validation_2").records
    assert record.texts == ("two",)
    with pytest.raises(UsageError, match=r"^split=holdout: activitynet-captions has train, validation, validation_2$"):
        read_benchmark("activitynet-captions", tmp_path, split="holdout")
    with pytest.raises(UsageError, match=r"^[^\n]*no train\.json; see perceiver-vl data list activitynet-captions$"):
        read_benchmark("activitynet-captions", tmp_path, split="train")


def test_an_unknown_benchmark_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^msrvtt_qa: unknown benchmark, did you mean msrvtt-qa\?[^\n]*$"):
        read_benchmark("msrvtt_qa", tmp_path)
    with pytest.raises(UsageError, match=r"no such folder"):
        read_benchmark("msrvtt", tmp_path / "nowhere")
    for name in BENCHMARKS:
        with pytest.raises(UsageError, match=ONE_LINE) as refused:
            read_benchmark(name, tmp_path)
        assert f"data list {name}" in str(refused.value)


# --- Media that are not there, or not to be told apart ----------------------------------------------------------------

TWO = [{"answer": "a", "id": n, "question": "what?", "video_id": video} for n, video in enumerate((1, 2, 2))]


def test_missing_media_are_named_once_and_the_rest_is_read(tmp_path: Path) -> None:
    write(tmp_path, {"test_qa.json": TWO} | media("video1.mp4"))
    found = read_benchmark("msrvtt-qa", tmp_path)
    assert [record.file_name for record in found.records] == ["video1.mp4"]
    assert [(problem.file_name, problem.reason) for problem in found.skipped] == [
        ("video2", "named in the annotations but not there")
    ]
    with pytest.raises(PerceiverVLError, match=r"^[^\n]*video2: named in the annotations but not there[^\n]*$"):
        read_benchmark("msrvtt-qa", tmp_path, strict=True)
    (tmp_path / "video1.mp4").unlink()
    with pytest.raises(PerceiverVLError, match=r"^[^\n]*no usable record of msrvtt-qa, the first: video1[^\n]*$"):
        read_benchmark("msrvtt-qa", tmp_path)


def test_both_pictures_of_a_pair_are_looked_for(tmp_path: Path) -> None:
    rows = ['{"sentence": "Two.", "label": "False", "identifier": "dev-1-2-0"}']
    write(tmp_path, {"dev.json": rows} | media("dev-1-2-img1.png", "other.png"))
    part = read_splits("nlvr2", tmp_path)["validation"]
    assert [problem.file_name for problem in part.skipped] == ["dev-1-2-img0"]
    (tmp_path / "dev-1-2-img1.png").unlink()
    part = read_splits("nlvr2", tmp_path)["validation"]
    assert [problem.file_name for problem in part.skipped] == ["dev-1-2-img0", "dev-1-2-img1"]
    assert part.rows == 1


def test_two_files_that_could_be_meant_are_a_problem_unless_one_has_the_very_name(tmp_path: Path) -> None:
    write(tmp_path, {"test_qa.json": TWO[:1]} | media("a/video1.mp4", "b/video1.webm"))
    (problem,) = read_splits("msrvtt-qa", tmp_path)["test"].skipped
    assert "a/video1.mp4" in problem.reason
    assert "b/video1.webm" in problem.reason
    rows = [{"video": "x.mov", "description": "one", "times": [[0, 0]], "annotation_id": 1}]
    write(tmp_path, {"test_data.json": rows} | media("x.mov", "x.mp4"))
    assert [record.file_name for record in read_benchmark("didemo", tmp_path).records] == ["x.mov"]


def test_two_annotation_files_of_one_name_are_refused_unless_one_is_nearer(tmp_path: Path) -> None:
    write(tmp_path, {"a/test_qa.json": TWO, "b/test_qa.json": TWO} | media("video1.mp4", "video2.mp4"))
    with pytest.raises(UsageError, match=r"^[^\n]*both a/test_qa\.json and b/test_qa\.json, keep one of them$"):
        read_benchmark("msrvtt-qa", tmp_path)
    write(tmp_path, {"test_qa.json": TWO[:1]})
    assert len(read_benchmark("msrvtt-qa", tmp_path).records) == 1


def test_pictures_of_another_split_are_not_taken_for_rows_of_this_one(tmp_path: Path) -> None:
    write(tmp_path, {"Train_GCC-training.tsv": ["one\thttp://x"]} | media("validation/0.jpg", "0.jpg"))
    assert read_splits("conceptual-captions", tmp_path)["train"].records == []
    write(tmp_path, media("train/0.jpg"))
    assert [record.file_name for record in read_benchmark("conceptual-captions", tmp_path).records] == ["train/0.jpg"]


def test_hidden_files_are_passed_over_and_a_link_that_leads_back_ends(tmp_path: Path) -> None:
    write(tmp_path, {"test_qa.json": TWO[:1]} | media(".video1.mp4", ".trash/video1.mp4", "clips/video1.mp4"))
    (tmp_path / "clips" / "back").symlink_to(tmp_path)
    assert [record.file_name for record in read_benchmark("msrvtt-qa", tmp_path).records] == ["clips/video1.mp4"]


@given(
    stem=st.text("ab.@-_ é0", min_size=1, max_size=12).filter(lambda stem: not stem.startswith(".") and stem.strip()),
    extension=st.sampled_from(sorted(VIDEO_EXTENSIONS)),
)
def test_a_name_is_found_with_any_extension(
    stem: str, extension: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, stem = tmp_path_factory.mktemp("names"), stem.strip()
    rows = [{"video": f"{stem}.mov", "description": "one", "times": [[0, 0]], "annotation_id": 1}]
    write(folder, {"test_data.json": rows} | media(f"clips/{stem}{extension}"))
    if ".." in stem.split("/"):
        return
    assert [record.file_name for record in read_benchmark("didemo", folder).records] == [f"clips/{stem}{extension}"]


# --- Rows that are not as the format says -----------------------------------------------------------------------------

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("msrvtt-qa", {"test_qa.json": "{"}, "test_qa.json: not JSON"),
    ("msrvtt-qa", {"test_qa.json": {"a": 1}}, "test_qa.json: a dict, need a list"),
    ("msrvtt-qa", {"test_qa.json": [TWO[0], 7]}, "test_qa.json row 2: a int"),
    ("msrvtt-qa", {"test_qa.json": [TWO[0], {"id": 1}]}, "test_qa.json row 2: video_id=None"),
    ("msrvtt-qa", {"test_qa.json": [TWO[0] | {"answer": None}]}, "row 1: answer=None, need a string"),
    ("msrvtt-qa", {"test_qa.json": [TWO[0] | {"video_id": "/../../x"}]}, "row 1: video/../../x: leads out"),
    ("msrvtt-qa", {"test.csv": "video,question\n1,what\n"}, "test.csv: no column answer, qid"),
    ("msrvtt-qa", {"test.csv": "video,question,answer,qid\n1,what,a\n"}, "test.csv row 1: more or fewer values"),
    ("msrvtt-qa", {"test.csv": "video,question,answer,qid\n1,what,a,1,2\n"}, "test.csv row 1: more or fewer values"),
    ("webvid", {"results_2M_val.csv": "videoid,name\n../etc,one\n"}, "results_2M_val.csv row 1: ../etc: leads out"),
    ("webvid", {"results_2M_val.csv": "videoid,name\n/etc/x,one\n"}, "results_2M_val.csv row 1: /etc/x: an absolute"),
    ("webvid", {"results_2M_val.csv": "videoid,name\n,one\n"}, "results_2M_val.csv row 1: an empty name"),
    ("webvid", {"results_2M_val.csv": b"videoid,name\n1,\xff\xfe\n"}, "results_2M_val.csv: cannot be read as a table"),
    ("didemo", {"test_data.json": [{"video": "a", "description": "b", "times": [[1]]}]}, "row 1: times="),
    ("didemo", {"test_data.json": [{"video": "a", "description": "b", "times": []}]}, "row 1: times=[]"),
    ("activitynet-captions", {"train.json": {"v": {"timestamps": [], "sentences": ["a"]}}}, "v: sentences="),
    ("activitynet-captions", {"train.json": {"v": 7}}, "train.json: v: timestamps=None"),
    ("activitynet-qa", {"val_q.json": [{"question_id": "x"}], "val_a.json": []}, "row 1: question_id=x: not in val_a"),
    ("tgif-qa-count", {"Test_count_question.csv": "gif_name\tquestion\tanswer\tvid_id\na\tb\tx\tc\n"}, "answer='x'"),
    ("nlvr2", {"dev.json": '{"sentence": "a", "label": "yes", "identifier": "dev-1-2-0"}\n'}, "row 1: label='yes'"),
    ("nlvr2", {"dev.json": "\n[1]\n"}, "dev.json row 2: a list"),
    ("msrvtt-mc", {"MSR_MC_test.csv": CHOICES.replace("\t3\n", "\t5\n")}, "answer='5', need a choice from 0 to 4"),
    ("msvd", {"AllVideoDescriptions.txt": "alone\n", "train_list.txt": "a\n"}, "AllVideoDescriptions.txt row 1"),
    ("lsmdc", {"LSMDC16_annos_val.csv": "clip\tsentence\n"}, "LSMDC16_annos_val.csv row 1: more or fewer"),
    ("visual-genome", {"region_descriptions.json": [{"regions": []}]}, "row 1: neither id nor image_id"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "files", "named"), BAD)
def test_a_malformed_row_is_one_line_that_says_where(
    name: str, files: dict[str, Any], named: str, tmp_path: Path
) -> None:
    write(tmp_path, files)
    with pytest.raises(UsageError, match=ONE_LINE) as refused:
        read_benchmark(name, tmp_path)
    assert named in str(refused.value)


def test_a_caption_that_is_empty_does_not_stop_the_rest(tmp_path: Path) -> None:
    write(tmp_path, {"results_2M_val.csv": "videoid,name\n1,\n2,two\n"} | media("1.mp4", "2.mp4"))
    found = read_benchmark("webvid", tmp_path)
    assert [record.texts for record in found.records] == [("two",)]
    assert [(problem.file_name, problem.reason) for problem in found.skipped] == [("1.mp4", "no caption")]
