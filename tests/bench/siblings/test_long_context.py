"""Copying and reading with a Perceiver AR: what the figures are of."""

from pathlib import Path

import pytest
import torch

from perceiver_vl import UsageError
from perceiver_vl.bench.siblings.long_context import (
    LATENTS,
    TOKENS,
    SeveralBytes,
    copying,
    measure_long_context,
    split_text,
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "more").mkdir()
    (tmp_path / "b.md").write_bytes(b"abcd" * 500)
    (tmp_path / "more" / "a.txt").write_bytes(b"wxyz" * 500)
    (tmp_path / "c.bin").write_bytes(b"\0" * 9000)
    return tmp_path


def test_the_second_half_is_the_first() -> None:
    sequences = copying(512, 3, torch.Generator().manual_seed(0))
    assert torch.equal(sequences[:, 256:], sequences[:, :256])
    assert sequences.unique().tolist() == list(range(TOKENS))


def test_text_is_that_of_text_files_and_its_end_the_test(text: Path) -> None:
    training, test = split_text(text, most=256)
    assert torch.cat([training, test]).tolist() == list(b"abcd" * 500 + b"\n" + b"wxyz" * 500)
    assert len(test) == max(4001 // 10, 256 + LATENTS)


def test_text_that_repeats_is_read(text: Path) -> None:
    """Every byte tells the next: a model that reads at all is below the frequencies of bytes."""
    report = measure_long_context(text, copy_steps=0, contexts=(128,), steps=25)
    assert report.copied is None
    assert [(one.context, one.embedded) for one in report.read] == [(128, 1), (128, 4)]
    assert report.guesser > 2
    assert max(one.bits for one in report.read) < report.guesser


def test_without_a_folder_of_texts_the_package_reads_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = measure_long_context(copy_steps=0, contexts=(128,), embedded=(1,), steps=1)
    assert report.text_bytes > 100_000


def test_a_byte_is_embedded_with_those_before_it() -> None:
    embed = SeveralBytes(8, 3, 1.0)
    ids = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(0))
    found, tables = embed(ids), embed.tables
    for place in range(9):
        summed = sum(tables[back](ids[:, place - back]) for back in range(min(3, place + 1)))
        torch.testing.assert_close(found[:, place], summed)


def test_copying_is_measured_on_fresh_sequences(text: Path) -> None:
    copied = measure_long_context(text, copy_context=256, copy_steps=2, contexts=(128,), steps=1).copied
    assert copied is not None
    assert copied.context == 256
    assert copied.guesser == 100 / TOKENS
    assert 0 <= copied.accuracy < 20  # two steps teach nothing
    assert 0 <= copied.generated <= 100


def test_what_cannot_be_measured_is_refused(text: Path) -> None:
    with pytest.raises(UsageError, match="no such folder, name one of text files"):
        measure_long_context(text / "none")
    with pytest.raises(UsageError, match="4001 bytes of text, need 8320 for a context of 4096"):
        measure_long_context(text)
    with pytest.raises(UsageError, match="contexts=100: need 128 bytes or more"):
        measure_long_context(text, contexts=(100,))
    with pytest.raises(UsageError, match="embedded=0,4: need 1 byte or more"):
        measure_long_context(text, contexts=(128,), embedded=(0, 4))
    with pytest.raises(UsageError, match="copy_context=130: need an even number of 256"):
        measure_long_context(text, copy_context=130, contexts=(128,))
