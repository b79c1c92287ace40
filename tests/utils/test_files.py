"""Files that are written whole, under whatever name."""

from pathlib import Path

from perceiver_vl.utils.files import shortened, write_text


def test_names_as_long_as_they_can_be_are_written(tmp_path: Path) -> None:
    name = "日" * 80 + ".abcdefghijk"  # 252 bytes
    write_text(tmp_path / name, "words")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_long_names_are_cut_within_their_bytes_and_stay_apart() -> None:
    one, other = "日" * 90 + "a.mp4", "日" * 90 + "b.mp4"
    for name in (one, other):
        short = shortened(name, 100)
        assert len(short.encode()) <= 100
        assert short.startswith("日" * 20)
        assert short.endswith(".mp4")
    assert shortened(one, 100) != shortened(other, 100)
    assert shortened("a.mp4", 5) == "a.mp4"
