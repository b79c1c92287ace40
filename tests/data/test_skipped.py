"""When too many files are broken, and the list of them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceiver_vl import PerceiverVLError
from perceiver_vl.data.records import SkippedSample
from perceiver_vl.data.skipped import (
    FEWEST_TRIED,
    ReadTracker,
    check_failures,
    check_listed,
    read_skipped,
    write_skipped,
)

FIRST = SkippedSample("a.mp4", "damaged")


def stops(broken: int, tried: int, total: int, most: float) -> bool:
    try:
        check_failures(broken, tried, total, most, FIRST)
    except PerceiverVLError:
        return True
    return False


def test_the_message_says_how_many_and_names_one() -> None:
    with pytest.raises(PerceiverVLError, match=r"^30 of 100 clips [^\n]+max_failed_fraction=0.1[^\n]+a.mp4: damaged$"):
        check_failures(30, 100, 100, 0.1, FIRST)
    with pytest.raises(PerceiverVLError, match=r"^5 of 20 clips"):
        check_listed([FIRST] * 5, 15, 0.1)
    check_listed([], 15, 0.0)


def test_a_share_is_judged_when_all_were_tried_and_early_when_there_is_no_doubt() -> None:
    assert not stops(10, 100, 100, 0.1)
    assert stops(11, 100, 100, 0.1)
    assert not stops(11, 100, 1000, 0.1)
    assert stops(20, 20, 1000, 0.1)
    assert stops(1, 20, 1000, 0.0)
    assert not stops(20, 20, 20, 1.0)
    assert not stops(FEWEST_TRIED - 1, FEWEST_TRIED - 1, FEWEST_TRIED - 1, 0.1)


@given(seed=st.integers(0, 200))
def test_a_job_with_few_broken_files_is_not_stopped_by_a_bad_beginning(seed: int) -> None:
    failing = np.random.default_rng(seed).permutation(np.arange(400) < 20)  # 5 %
    assert not any(stops(int(failing[:tried].sum()), tried, 400, 0.1) for tried in range(1, 401))


def test_different_clips_are_counted_once() -> None:
    tried = ReadTracker(10)
    for _ in range(3):
        tried.add({"problems": [FIRST], "damaged": ["b.mp4"], "tried": [1, 2, 5], "failed": [1], "other": 0})
    tried.add({"problems": [], "damaged": [], "tried": [], "failed": []})
    assert (tried.counts(), tried.problems, tried.damaged) == ((1, 3), {FIRST}, {"b.mp4"})


def test_the_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    problems = [FIRST, SkippedSample("ä b\u2028.mp4", 'said "no"')]
    write_skipped(tmp_path / "skipped.jsonl", problems)
    assert read_skipped(tmp_path / "skipped.jsonl") == problems
    assert len((tmp_path / "skipped.jsonl").read_bytes().splitlines()) == 2
    write_skipped(tmp_path / "skipped.jsonl", [])
    assert read_skipped(tmp_path / "skipped.jsonl") == read_skipped(tmp_path / "none.jsonl") == []
