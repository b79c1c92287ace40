"""Videos with timed captions: what is said is there then and at no other time, and the files say the same."""

import json
from pathlib import Path

import numpy as np
import pytest

from perceiver_vl import UsageError
from perceiver_vl.data.datasets.moment_queries import read_moment_queries
from perceiver_vl.data.synthetic.moments import FRAMES_PER_SECOND, MANIFEST, MomentsWorld, write_moments_world
from perceiver_vl.data.synthetic.scene import COLOURS, split_of
from perceiver_vl.media.decode import frame_times, load_clip
from perceiver_vl.tasks.moment_baselines import trivial_figures


def test_events_are_there_in_their_windows_and_at_no_other_time() -> None:
    world = MomentsWorld(videos=2, seconds=60.0, size=64)
    frames = np.stack(list(world.stream(1))).astype(int)
    assert len(frames) == 60 * FRAMES_PER_SECOND
    times = np.arange(len(frames)) / FRAMES_PER_SECOND
    for event in world.video(1).events:
        colour = np.array(COLOURS[event.thing.colour])
        count = (np.abs(frames - colour).max(-1) < 30).sum((1, 2))
        inside = np.any([(times >= start) & (times < end) for start, end in event.windows], axis=0)
        others = [one for one in world.video(1).events if one.thing.colour == event.thing.colour and one is not event]
        alone = ~np.any(
            [(times >= start) & (times < end) for one in others for start, end in one.windows] or [[False]], 0
        )
        assert count[~inside & alone].max(initial=0) < 5
        if event.thing.motion != "blinks" and inside.sum() > 3:
            assert np.median(count[inside]) > 10


def test_videos_depend_on_their_number_alone_and_events_last_as_they_should() -> None:
    small, large = MomentsWorld(videos=3), MomentsWorld(videos=6)
    lengths, repeated = [], 0
    for index in range(3):
        assert small.annotations(index) == large.annotations(index)
        video = small.video(index)
        assert 60 <= video.seconds <= 600
        assert len(video.events) == round(video.seconds / 15)
        assert len({event.query for event in video.events}) == len(video.events)
        for event in video.events:
            assert split_of([event.thing.description]) == "train"
            repeated += len(event.windows) == 2
            for start, end in event.windows:
                assert 0 <= start < end <= video.seconds
                lengths.append(end - start)
    assert min(lengths) >= 1
    assert max(lengths) <= 20
    assert 0 < repeated < len(lengths) / 2


def test_what_is_written_is_what_is_said(tmp_path: Path) -> None:
    counts = write_moments_world(tmp_path / "world", 3, seconds=60.0, size=32)
    assert counts == {"train": 1, "validation": 1, "test": 1}
    found = read_moment_queries(tmp_path / "world" / "moments_test.jsonl")
    assert (found.format, len(found.queries)) == ("qvhighlights", 4)
    path = tmp_path / "world" / "videos" / f"{found.queries[0].video}.mp4"
    times, duration = frame_times(path)
    assert (len(times), duration) == (240, 60.0)
    wanted = np.stack(list(MomentsWorld("test", 1, seconds=60.0, size=32).stream(0)))
    assert np.abs(load_clip(path, 240).frames.astype(int) - wanted).mean() < 4
    before = path.stat().st_mtime_ns
    write_moments_world(tmp_path / "world", 3, seconds=60.0, size=32)
    assert path.stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="holds something else"):
        write_moments_world(tmp_path / "world", 3, seed=1, seconds=60.0, size=32)
    (tmp_path / "world" / MANIFEST).write_text("{")
    with pytest.raises(UsageError, match="holds something else"):
        write_moments_world(tmp_path / "world", 3, seconds=60.0, size=32)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"videos": 2}, "clips=2, held_out=1: need videos in each of"),
        ({"videos": 9, "held_out": 5}, "held_out=5"),
        ({"videos": 9, "seconds": 30.0}, "seconds=30: videos of moments last 60 to 600 s"),
        ({"videos": 9, "size": 33}, "size=33"),
    ],
)
def test_worlds_that_cannot_be(how: dict[str, float], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        write_moments_world(tmp_path / "world", **how)  # type: ignore[arg-type]
    assert not (tmp_path / "world").exists()


def test_who_knows_neither_words_nor_video_finds_little(tmp_path: Path) -> None:
    world = MomentsWorld("test", 6, seconds=120.0)
    path = tmp_path / "test.jsonl"
    path.write_text("\n".join(json.dumps(row) for index in range(6) for row in world.annotations(index)))
    figures = trivial_figures(read_moment_queries(path).queries)
    assert set(figures) == {"whole video", "middle of the video", "best fixed window"}
    assert figures["whole video"].official["R1@0.5"] == 0
    for one in figures.values():
        assert one.official["mIoU"] <= figures["best fixed window"].official["mIoU"]
        assert one.official["R1@0.5"] < 25  # also in hindsight
    assert trivial_figures([]) == {}
