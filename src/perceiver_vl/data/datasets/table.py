"""The benchmarks by name: what to download, how it must lie, and how many records and media each split has.

Counts are those that the source named beside them publishes; None where it gives none for what is counted here.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from perceiver_vl.data.datasets import imagenet, moments, msrvtt, msvd, nlvr, pictures, questions, vqav2, web
from perceiver_vl.data.datasets.file_index import FileIndex, MediaKind, RowResult


@dataclass(frozen=True)
class Split:
    """Published counts of records (as read here) and of different media files; None: unknown.

    on_request: it shares its media with other splits, so it is read only when asked for by name.
    """

    records: int | None = None
    media: int | None = None
    on_request: bool = False


@dataclass(frozen=True)
class Benchmark:
    """A benchmark and its reader. download: where its files come from; layout: which of them are read, and the media.

    kind: what its media are. read: the files, of a split → its records, or what is skipped in place of them.
    classes: the names that the labels of its records are indices of.
    """

    name: str
    task: str
    splits: Mapping[str, Split]
    download: str
    layout: str
    read: Callable[[FileIndex], Iterator[RowResult]]
    kind: MediaKind = "video"
    classes: Callable[[FileIndex], tuple[str, ...]] | None = None


def _tgif(part: str, train: int, test: int, task: str, read: Callable[[FileIndex], Iterator[RowResult]]) -> Benchmark:
    file_name = {"frame": "frameqa"}.get(part, part)
    return Benchmark(
        f"tgif-qa-{part}",
        task,
        {"train": Split(train), "test": Split(test)},  # Jang et al. 2017 (the released version), table 1
        "the repository YunseokJANG/tgif-qa, folder dataset; GIFs as its README says",
        f"Train_{file_name}_question.csv, Test_…; tumblr_….gif (or .mp4)",
        read,
    )


_ALL = (
    Benchmark(
        "conceptual-captions",
        "captions",
        {"train": Split(3_318_333, 3_318_333), "validation": Split(15_840, 15_840)},  # the data set's page, version 1.1
        "ai.google.com/research/ConceptualCaptions; the pictures from the addresses, as with img2dataset",
        "Train_GCC-training.tsv, Validation_GCC-1.1.0-Validation.tsv; pictures named by their row from 0: "
        "train/000000012.jpg, validation/…",
        web.conceptual_captions,
        kind="image",
    ),
    Benchmark(
        "webvid",
        "captions",
        {"train": Split(), "validation": Split()},  # "2.5M" and "10.7M" (m-bain/webvid): no exact counts
        "m-bain/webvid (taken down; the tables are mirrored)",
        "results_2M_train.csv, results_2M_val.csv (or results_10M_…); VIDEOID.mp4, in folders or flat",
        web.webvid,
    ),
    Benchmark(
        "sbu",
        "captions",
        {"train": Split(1_000_000, 1_000_000)},  # Ordonez et al. 2011
        "www.cs.virginia.edu/~vicente/sbucaptions",
        "SBU_captioned_photo_dataset_urls.txt and …_captions.txt; pictures named as in their address, or by their line "
        "from 0: 000000012.jpg",
        web.sbu,
        kind="image",
    ),
    Benchmark(
        "visual-genome",
        "captions",
        {"train": Split(108_077, 108_077)},  # Krishna et al. 2017; 5.4 M phrases
        "homes.cs.washington.edu/~ranjay/visualgenome: region descriptions 1.2, images part 1 and 2",
        "region_descriptions.json; VG_100K/1.jpg, VG_100K_2/…",
        pictures.visual_genome,
        kind="image",
    ),
    Benchmark(
        "coco-captions",
        "captions",
        {"train": Split(82_783, 82_783), "validation": Split(40_504, 40_504)},  # cocodataset.org; 5 captions each
        "cocodataset.org: 2014 train and val images, 2014 train/val annotations",
        "captions_train2014.json, captions_val2014.json; COCO_train2014_….jpg",
        pictures.coco_captions,
        kind="image",
    ),
    Benchmark(
        "coco-captions-2017",
        "captions",
        {"train": Split(118_287, 118_287), "validation": Split(5_000, 5_000)},  # cocodataset.org
        "cocodataset.org: 2017 train and val images, 2017 train/val annotations",
        "captions_train2017.json, captions_val2017.json; 000000000139.jpg",
        pictures.coco_captions_2017,
        kind="image",
    ),
    Benchmark(
        "coco-karpathy",
        "retrieval",
        # Karpathy and Fei-Fei 2015; train with restval, as is usual
        {"train": Split(113_287, 113_287), "validation": Split(5_000, 5_000), "test": Split(5_000, 5_000)},
        "cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip; images of COCO 2014",
        "dataset_coco.json; COCO_train2014_….jpg, COCO_val2014_….jpg",
        pictures.coco_karpathy,
        kind="image",
    ),
    Benchmark(
        "flickr30k",
        "retrieval",
        {  # Karpathy's file; 31,783 in all by Young et al. 2014
            "train": Split(29_000, 29_000),
            "validation": Split(1_014, 1_014),
            "test": Split(1_000, 1_000),
            "all": Split(31_783, 31_783, on_request=True),
        },
        "caption_datasets.zip as for coco-karpathy; images by the form at shannon.cs.illinois.edu/DenotationGraph",
        "dataset_flickr30k.json (results_20130124.token for the split all); 1000092795.jpg",
        pictures.flickr30k,
        kind="image",
    ),
    Benchmark(
        "flickr8k",
        "retrieval",
        {  # Hodosh et al. 2013; the token file has 8,092 pictures
            "train": Split(6_000, 6_000),
            "validation": Split(1_000, 1_000),
            "test": Split(1_000, 1_000),
            "all": Split(8_092, 8_092, on_request=True),
        },
        "Flickr8k_text.zip and Flickr8k_Dataset.zip, or caption_datasets.zip as for coco-karpathy",
        "dataset_flickr8k.json, or Flickr8k.token.txt (or captions.txt) with Flickr_8k.trainImages.txt, …devImages, "
        "…testImages; without lists the split all; 1000268201_693b08cb0e.jpg",
        pictures.flickr8k,
        kind="image",
    ),
    Benchmark(
        "msrvtt",
        "retrieval",
        # Xu et al. 2016: 10,000 clips, 20 captions each
        {"train": Split(6_513, 6_513), "validation": Split(497, 497), "test": Split(2_990, 2_990)},
        "MSRVTT.zip (robots.ox.ac.uk/~maxbain/frozen-in-time/data/MSRVTT.zip), or the challenge's two archives",
        "MSRVTT_data.json, or train_val_videodatainfo.json and test_videodatainfo.json; video0.mp4",
        msrvtt.msrvtt,
    ),
    Benchmark(
        "msrvtt-1ka",
        "retrieval",
        {  # Yu et al. 2018 (JSFusion) for the test; 9k Gabeur et al. 2020, 7k Miech et al. 2019
            "train": Split(9_000, 9_000),
            "train_7k": Split(7_010, 7_010, on_request=True),
            "test": Split(1_000, 1_000),
        },
        "as msrvtt; the lists from ArrowLuo/CLIP4Clip (msrvtt_data.zip)",
        "MSRVTT_JSFUSION_test.csv, MSRVTT_train.9k.csv, MSRVTT_train.7k.csv, with MSRVTT_data.json (or the two files "
        "of msrvtt) for the training captions; video0.mp4",
        msrvtt.msrvtt_1ka,
    ),
    Benchmark(
        "msrvtt-qa",
        "question answering",
        # Xu et al. 2017
        {"train": Split(158_581, 6_513), "validation": Split(12_278, 497), "test": Split(72_821, 2_990)},
        "the repository xudejing/video-question-answering; clips as msrvtt",
        "train_qa.json, val_qa.json, test_qa.json (or the tables train.csv, val.csv, test.csv); video0.mp4",
        questions.msrvtt_qa,
    ),
    Benchmark(
        "msrvtt-mc",
        "multiple choice",
        {"test": Split(2_990, 2_990)},  # Yu et al. 2018 (JSFusion)
        "MSR_MC_test.csv of yj-yu/lsmdc, or msrvtt_mc_test.jsonl of jayleicn/ClipBERT; clips as msrvtt",
        "MSR_MC_test.csv or msrvtt_mc_test.jsonl; video0.mp4",
        msrvtt.msrvtt_multiple_choice,
    ),
    Benchmark(
        "msvd",
        "retrieval",
        # Chen and Dolan 2011, divided by Venugopalan et al. 2015
        {"train": Split(1_200, 1_200), "validation": Split(100, 100), "test": Split(670, 670)},
        "www.cs.utexas.edu/users/ml/clamp/videoDescription; lists from ArrowLuo/CLIP4Clip (msvd_data.zip)",
        "AllVideoDescriptions.txt, train_list.txt, val_list.txt, test_list.txt (or msvd_caption_test.json, …); "
        "-4wsuPCjDBc_5_15.avi",
        msvd.msvd,
    ),
    Benchmark(
        "msvd-qa",
        "question answering",
        # Xu et al. 2017
        {"train": Split(30_933, 1_200), "validation": Split(6_415, 250), "test": Split(13_157, 520)},
        "the repository xudejing/video-question-answering; clips as msvd",
        "train_qa.json, val_qa.json, test_qa.json; vid1.avi, or -4wsuPCjDBc_5_15.avi with youtube_mapping.txt",
        questions.msvd_qa,
    ),
    Benchmark(
        "didemo",
        "paragraph retrieval",
        # Hendricks et al. 2017
        {"train": Split(8_395, 8_395), "validation": Split(1_065, 1_065), "test": Split(1_004, 1_004)},
        "the repository LisaAnne/LocalizingMoments (data, and its scripts for the videos)",
        "train_data.json, val_data.json, test_data.json; videos as named there, with any extension",
        moments.didemo,
    ),
    Benchmark(
        "didemo-sentences",
        "moments",
        # Hendricks et al. 2017
        {"train": Split(33_005, 8_395), "validation": Split(4_180, 1_065), "test": Split(4_021, 1_004)},
        "as didemo",
        "as didemo",
        moments.didemo_sentences,
    ),
    Benchmark(
        "activitynet-captions",
        "paragraph retrieval",
        {  # Krishna et al. 2017; retrieval is scored on val_1 (Zhang et al. 2018)
            "train": Split(10_009, 10_009),
            "validation": Split(4_917, 4_917),
            "validation_2": Split(4_885, 4_885, on_request=True),
        },
        "cs.stanford.edu/people/ranjaykrishna/densevid/captions.zip; videos from activity-net.org",
        "train.json, val_1.json, val_2.json; v_QOlSCBRmfWY.mp4, with or without v_",
        moments.activitynet_captions,
    ),
    Benchmark(
        "activitynet-captions-sentences",
        "moments",
        {  # Krishna et al. 2017
            "train": Split(37_421, 10_009),
            "validation": Split(17_505, 4_917),
            "validation_2": Split(17_031, 4_885, on_request=True),
        },
        "as activitynet-captions",
        "as activitynet-captions",
        moments.activitynet_sentences,
    ),
    Benchmark(
        "activitynet-qa",
        "question answering",
        # Yu et al. 2019
        {"train": Split(32_000, 3_200), "validation": Split(18_000, 1_800), "test": Split(8_000, 800)},
        "the repository MILVLG/activitynet-qa, folder dataset; videos from activity-net.org",
        "train_q.json and train_a.json, val_…, test_…; v_1QIUV7WYKXg.mp4, with or without v_",
        questions.activitynet_qa,
    ),
    Benchmark(
        "lsmdc",
        "retrieval",
        # Rohrbach et al. 2017 (33 training clips come twice); the 1,000 test clips are those of the retrieval task
        {"train": Split(101_046, 101_046), "validation": Split(7_408, 7_408), "test": Split(1_000, 1_000)},
        "sites.google.com/site/describingmovies (by agreement)",
        "LSMDC16_annos_training.csv, LSMDC16_annos_val.csv, LSMDC16_challenge_1000_publictect.csv; "
        "0001_American_Beauty_00.00.51.926-00.00.54.129.avi, in folders or flat",
        moments.lsmdc,
    ),
    _tgif("action", 20_475, 2_274, "multiple choice", questions.tgif_action),
    _tgif("transition", 52_704, 6_232, "multiple choice", questions.tgif_transition),
    _tgif("frame", 39_392, 13_691, "question answering", questions.tgif_frame),
    _tgif("count", 26_843, 3_554, "counting", questions.tgif_count),
    Benchmark(
        "nextqa",
        "multiple choice",
        # Xiao et al. 2021
        {"train": Split(34_132, 3_870), "validation": Split(4_996, 570), "test": Split(8_564, 1_000)},
        "the repository doc-doc/NExT-QA, folder dataset/nextqa; videos as its README says",
        "train.csv, val.csv, test.csv; 4010069381.mp4, in folders or flat",
        questions.nextqa,
    ),
    Benchmark(
        "vqav2",
        "question answering",
        {  # Goyal et al. 2017, visualqa.org; test-dev is a part of test
            "train": Split(443_757, 82_783),
            "validation": Split(214_354, 40_504),
            "test": Split(447_793, 81_434),
            "test_dev": Split(107_394, 36_807, on_request=True),
        },
        "visualqa.org/download.html: questions and annotations v2; images of COCO 2014 and 2015",
        "v2_OpenEnded_mscoco_train2014_questions.json, v2_mscoco_train2014_annotations.json, …val2014…, "
        "v2_OpenEnded_mscoco_test2015_questions.json, …test-dev2015…; COCO_train2014_000000458752.jpg",
        vqav2.vqav2,
        kind="image",
    ),
    Benchmark(
        "nlvr2",
        "statements",
        {  # Suhr et al. 2019: test is Test-P (test1.json), test_unseen Test-U (test2.json)
            "train": Split(86_373),
            "validation": Split(6_982),
            "test": Split(6_967),
            "test_unseen": Split(6_970),
        },
        "the repository lil-lab/nlvr, folder nlvr2/data; pictures by the form in its README",
        "train.json, dev.json, test1.json, test2.json; dev-850-0-img0.png and …-img1.png, in folders or flat",
        nlvr.nlvr2,
        kind="image",
    ),
    Benchmark(
        "nlvr",
        "statements",
        # Suhr et al. 2017, one for each of six orders of the boxes
        {"train": Split(74_460, 74_460), "validation": Split(5_940, 5_940), "test": Split(5_934, 5_934)},
        "the repository lil-lab/nlvr, folder nlvr",
        "train/train.json, dev/dev.json, test/test.json; dev/images/2/dev-1572-0-0.png to …-5.png",
        nlvr.nlvr,
        kind="image",
    ),
    Benchmark(
        "imagenet",
        "classification",
        {"train": Split(1_281_167, 1_281_167), "validation": Split(50_000, 50_000)},  # Russakovsky et al. 2015
        "image-net.org: ILSVRC2012, the validation pictures moved into folders by class",
        "train/n01440764/….JPEG, val/n01440764/….JPEG; any other folder of that form is read too",
        imagenet.imagenet,
        kind="image",
        classes=imagenet.class_names,
    ),
)

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
