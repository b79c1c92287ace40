"""Captions of photographs: COCO, the Karpathy splits of COCO and Flickr, Flickr8k's own files, Visual Genome."""

from collections.abc import Iterator
from pathlib import Path

from perceiver_vl.data.datasets.file_index import FileIndex, MissingAnnotationsError, RowResult
from perceiver_vl.data.datasets.rows import Row, json_file, json_rows, lines, table_rows
from perceiver_vl.utils.errors import UsageError


def coco_captions(files: FileIndex) -> Iterator[RowResult]:
    """COCO 2014: a list of images, and one of captions with the image's id."""
    yield from _coco(files, files.file(f"captions_{files.part('val')}2014.json"))


def coco_captions_2017(files: FileIndex) -> Iterator[RowResult]:
    """COCO 2017: the same pictures, divided anew."""
    yield from _coco(files, files.file(f"captions_{files.part('val')}2017.json"))


def _coco(files: FileIndex, path: Path) -> Iterator[RowResult]:
    content = json_file(path)
    texts: dict[str, list[str]] = {}
    for row in content.rows("annotations"):
        texts.setdefault(row.text("image_id"), []).append(row.text("caption"))
    for row in content.rows("images"):
        name = row.text("id")
        yield files.record(row, (row.text("file_name"),), texts=tuple(texts.get(name, ())), example_id=name)


def coco_karpathy(files: FileIndex) -> Iterator[RowResult]:
    """Karpathy's splits of COCO; training takes `restval` with it, as is usual (113,287 pictures)."""
    yield from _karpathy(files, files.file("dataset_coco.json"))


def flickr30k(files: FileIndex) -> Iterator[RowResult]:
    """Flickr30k: Karpathy's splits; `all` reads the set's own token file, which has none."""
    if files.split == "all":
        yield from _tokens(files, files.file("results_20130124.token"), None)
    else:
        yield from _karpathy(files, files.file("dataset_flickr30k.json"))


def flickr8k(files: FileIndex) -> Iterator[RowResult]:
    """Flickr8k: Karpathy's file, or the set's own captions with its three lists; `all` needs the captions alone."""
    if files.split == "all":
        yield from _flickr8k_captions(files, None)
    elif files.has("dataset_flickr8k.json"):
        yield from _karpathy(files, files.file("dataset_flickr8k.json"))
    else:
        part = files.part("dev")
        if not files.has(f"Flickr_8k.{part}Images.txt"):
            raise MissingAnnotationsError(
                f"{files.folder}: neither dataset_flickr8k.json nor Flickr_8k.{part}Images.txt"
            )
        yield from _flickr8k_captions(files, files.file(f"Flickr_8k.{part}Images.txt"))


def _flickr8k_captions(files: FileIndex, names: Path | None = None) -> Iterator[RowResult]:
    path = files.file("Flickr8k.token.txt", "captions.txt")
    if path.name == "Flickr8k.token.txt":
        yield from _tokens(files, path, names)
    else:
        captions = ((row, row.text("image"), row.text("caption")) for row in table_rows(path, ("image", "caption")))
        yield from _by_picture(files, captions, names)


def _tokens(files: FileIndex, path: Path, names: Path | None) -> Iterator[RowResult]:
    """`1000092795.jpg#0`, a tab, the caption."""
    rows = table_rows(path, ("name", "caption"), delimiter="\t", header=False)
    captions = ((row, row.text("name").partition("#")[0], row.text("caption")) for row in rows)
    yield from _by_picture(files, captions, names)


def _by_picture(files: FileIndex, captions: Iterator[tuple[Row, str, str]], names: Path | None) -> Iterator[RowResult]:
    """One record for each picture; those that `names` lists, one a line, if it is given."""
    texts: dict[str, tuple[Row, list[str]]] = {}
    for row, name, caption in captions:
        texts.setdefault(name, (row, []))[1].append(caption)
    if names is not None:
        listed = [(Row(f"{names} row {number}", {}), name) for number, name in lines(names)]
        texts = {name: (row, texts[name][1] if name in texts else []) for row, name in listed}
    for name, (row, sentences) in texts.items():
        yield files.record(row, (name,), texts=tuple(sentences))


def _karpathy(files: FileIndex, path: Path) -> Iterator[RowResult]:
    parts = {"train": ("train", "restval"), "validation": ("val",), "test": ("test",)}[files.split]
    for row in json_file(path).rows("images"):
        if row.text("split") in parts:
            texts = tuple(sentence.text("raw") for sentence in row.rows("sentences"))
            name = row.text("cocoid" if "cocoid" in row.values else "imgid")
            yield files.record(row, (row.text("filename"),), texts=texts, example_id=name)


def visual_genome(files: FileIndex) -> Iterator[RowResult]:
    """Visual Genome: the phrases about all regions of a picture, as captions of the whole."""
    for row in json_rows(files.file("region_descriptions.json")):
        regions = list(row.rows("regions"))
        if "id" not in row.values and "image_id" not in row.values:
            raise UsageError(f"{row.where}: neither id nor image_id")
        name = row.text("id" if "id" in row.values else "image_id")
        texts = tuple(region.text("phrase") for region in regions)
        yield files.record(row, (name,), texts=texts, example_id=name)
