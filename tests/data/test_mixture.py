"""Mixtures: one source and one modality a batch, as often as the weights say, and the same batches every time."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader

from perceiver_vl import MediaError, UsageError
from perceiver_vl.data.batching import EpochSampler, TrainingExamples
from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.mixture import Mixture, MixtureSampler, any_clip, make_pools, make_sampler, telling_places
from perceiver_vl.data.records import Record
from perceiver_vl.data.shards.reading import ShardedDataset
from perceiver_vl.data.shards.writing import write_shards
from perceiver_vl.data.sources import CachedDataset, FolderDataset, is_damaged
from perceiver_vl.data.synthetic.collection import World
from perceiver_vl.data.synthetic.tasks import PairWorld, QuestionWorld
from perceiver_vl.data.synthetic.writing import write_world
from perceiver_vl.media.sampling import Frames


class Numbered:
    """`videos` clips and then `images` pictures of the colour of their number; those of `broken` cannot be read.

    Clip i has i % 7 + 1 frames and a caption of 1 to 11 words.
    """

    def __init__(self, videos: int, images: int = 0, broken: set[int] | None = None, name: str = "") -> None:
        self.videos, self.images, self.broken, self.name = videos, images, broken or set(), name

    def __len__(self) -> int:
        return self.videos + self.images

    def record(self, index: int) -> Record:
        name = f"{self.name}{index}.{'mp4' if index < self.videos else 'jpg'}"
        return Record(name, Path(name), tuple(" ".join(["word"] * (1 + (index + more) % 11)) for more in range(3)))

    def frame_count(self, index: int) -> int:
        return index % 7 + 1

    def frames(self, index: int, num_frames: int, rng: np.random.Generator | None = None) -> Frames:
        if index in self.broken:
            raise MediaError(self.record(index).file_name, "damaged")
        count = min(num_frames, self.frame_count(index)) if index < self.videos else 1
        return np.full((count, 8, 8, 3), index % 256 if rng is None else rng.integers(256), np.uint8)


class Sharded(Numbered):
    """The same in shards of five."""

    def groups(self) -> list[range]:
        return [range(start, min(start + 5, len(self))) for start in range(0, len(self), 5)]


def sampler(
    sources: list[Any], batch: int = 4, weights: list[float | None] | None = None, seed: int = 0, bucket: int = 0
) -> MixtureSampler:
    mixture = Mixture(sources)
    pools, _ = make_pools(mixture, weights or [None] * len(sources), batch)
    return MixtureSampler(mixture, pools, batch, seed, bucket, num_frames=4)


def batches(drawn: MixtureSampler, epoch: int) -> list[list[int]]:
    """The batches of an epoch, as indices into the mixture."""
    drawn.set_epoch(epoch)
    items = list(drawn)
    assert len(items) == len(drawn)
    return [
        [item % len(drawn.mixture) for item in items[start : start + drawn.batch]]
        for start in range(0, len(items), drawn.batch)
    ]


def kind(drawn: MixtureSampler, index: int) -> tuple[int, str]:
    number, _ = drawn.mixture.locate(index)
    return number, Path(drawn.mixture.record(index).file_name).suffix


# --- What is in a batch ---------------------------------------------------------------------------------------------


@given(
    videos=st.integers(4, 30),
    images=st.integers(4, 30),
    more=st.integers(4, 30),
    bucket=st.sampled_from([0, 3]),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 3),
)
def test_a_batch_is_of_one_source_and_one_modality_and_holds_no_clip_twice(
    videos: int, images: int, more: int, bucket: int, seed: int, epoch: int
) -> None:
    drawn = sampler([Numbered(videos, images), Sharded(more)], seed=seed, bucket=bucket)
    for batch in batches(drawn, epoch):
        assert len({kind(drawn, index) for index in batch}) == 1
        assert len(set(batch)) == 4


def test_images_and_videos_alternate() -> None:
    drawn = sampler([Numbered(40, 40)])
    for epoch in range(3):
        kinds = [kind(drawn, batch[0]) for batch in batches(drawn, epoch)]
        assert all(one != other for one, other in pairwise(kinds))


def test_sources_come_as_often_as_their_weights_say_at_any_time() -> None:
    drawn = sampler([Numbered(40), Numbered(400), Numbered(50, 50)], weights=[1, 2, 5])
    for epoch in range(3):
        numbers = [kind(drawn, batch[0])[0] for batch in batches(drawn, epoch)]
        assert len(numbers) == 10 + 100 + 12 + 12
        for until in range(1, len(numbers) + 1):
            counts = Counter(numbers[:until])
            assert all(abs(counts[source] - until * share / 8) <= 2.5 for source, share in ((0, 1), (1, 2), (2, 5)))


def test_all_processes_are_at_the_same_source_and_modality() -> None:
    drawn = sampler([Numbered(40, 20), Numbered(30)], batch=6)
    ranks = [list(BatchSamplerShard(BatchSampler(drawn, 2, drop_last=True), 3, rank)) for rank in range(3)]
    assert [len(rank) for rank in ranks] == [len(drawn) // 6] * 3
    for batch in zip(*ranks, strict=True):
        indices = [item % len(drawn.mixture) for part in batch for item in part]
        assert len(set(indices)) == 6
        assert len({kind(drawn, index) for index in indices}) == 1


def test_without_weights_every_clip_comes_once_an_epoch() -> None:
    drawn = sampler([Numbered(12), Numbered(20, 8)])
    for epoch in range(3):
        assert sorted(index for batch in batches(drawn, epoch) for index in batch) == list(range(40))


def test_a_large_source_is_gone_through_over_several_epochs_and_a_small_one_several_times() -> None:
    drawn = sampler([Numbered(8), Numbered(80)], weights=[1, 1])  # 22 batches an epoch
    seen = [[index for batch in batches(drawn, epoch) for index in batch] for epoch in range(2)]
    assert set(Counter(index for index in seen[0] if index < 8).values()) == {5, 6}
    large = [index for epoch in seen for index in epoch if index >= 8]
    assert len(large) == 88
    assert set(large[:80]) == set(range(8, 88))
    keys = Counter(item for epoch in range(4) for item in (drawn.set_epoch(epoch), *drawn)[1:])
    assert max(keys.values()) == 1  # seen again, a clip is drawn for anew


def test_what_is_too_little_for_a_batch_is_left_out_and_named() -> None:
    pools, left = make_pools(Mixture([Numbered(9, 3)]), [None], 4)
    assert [(pool.kind, len(pool.clips)) for pool in pools] == [("videos", 9)]
    assert [problem.file_name for problem in left] == ["9.jpg", "10.jpg", "11.jpg"]
    assert {problem.reason for problem in left} == {"one of 3 images, too few for a batch of 4"}
    with pytest.raises(UsageError, match=r"batch of 4 clips[^\n]+data\.train\[1\] has 3 videos and 2 images"):
        make_pools(Mixture([Numbered(9), Numbered(3, 2)]), [None, None], 4)


def test_clips_without_captions_are_left_out_and_named(tmp_path: Path) -> None:
    records = [Record(f"{i}.mp4", tmp_path / f"{i}.mp4", ("a dog",) if i else ()) for i in range(5)]
    pools, left = make_pools(Mixture([FolderDataset(records, (8, 8))]), [None], 2)
    assert [pool.clips.tolist() for pool in pools] == [[1, 2, 3, 4]]
    assert [(problem.file_name, problem.reason) for problem in left] == [("0.mp4", "no caption")]


def test_of_generated_clips_only_so_many_are_drawn_as_tell_what_all_are() -> None:
    """Three million questions would take half an hour to draw."""
    many = 3_000_000
    questions, pairs = QuestionWorld("image", clips=many, size=16), PairWorld(clips=many, size=16)
    pools, left = make_pools(Mixture([Numbered(9), questions, pairs]), [1, 1, 1], 4, any_clip)
    assert [(len(pool.clips), pool.kind) for pool in pools] == [(9, "videos"), (many, "images"), (many, "images")]
    assert not left
    mixture = Mixture([Numbered(9), QuestionWorld("image", clips=90_000, size=16), Numbered(5)])
    places = np.array([3, 8, *range(9, 9 + 90_000, 2), 90_010])
    told = telling_places(mixture, places)
    assert (told[:2].tolist(), told[-1], len(told)) == ([3, 8], 90_010, 20_003)
    assert np.array_equal(told[2:-1], places[2:20_002])
    assert np.array_equal(telling_places(Numbered(9), np.arange(9)), np.arange(9))


def test_a_task_that_cannot_do_with_generated_questions_goes_through_them() -> None:
    questions = QuestionWorld("image", clips=200, size=16)
    usable = [number for number in range(200) if questions.record(number).kind == "number"]
    pools, left = make_pools(Mixture([questions]), [None], 4, lambda one: None if one.kind == "number" else "no number")
    assert pools[0].clips.tolist() == usable
    assert len(left) == 200 - len(usable)


# --- In which order -------------------------------------------------------------------------------------------------


def test_one_source_of_videos_keeps_the_order_it_always_had() -> None:
    mixture = Mixture([World(clips=50, size=16)])
    pools, left = make_pools(mixture, [None], 8)
    plain = make_sampler(mixture, pools, 8, 3, 0, 4)
    assert isinstance(plain, EpochSampler)
    assert not left
    drawn = MixtureSampler(mixture, pools, 8, 3)
    for epoch in range(3):
        plain.set_epoch(epoch)
        drawn.set_epoch(epoch)
        assert list(plain) == (50 * epoch + np.random.default_rng([3, epoch]).permutation(50)).tolist()
        assert list(drawn) == list(plain)[:48]


def test_shards_are_read_few_at_a_time() -> None:
    mixture = Mixture([Sharded(200)])
    pools, _ = make_pools(mixture, [None], 4)
    drawn = make_sampler(mixture, pools, 4, 0, 0, 4)
    assert isinstance(drawn, MixtureSampler)
    order = [index for batch in batches(drawn, 1) for index in batch]
    assert sorted(order) == list(range(200))
    places = {shard: [place for place, index in enumerate(order) if index // 5 == shard] for shard in range(40)}
    most = max(sum(min(at) <= place <= max(at) for at in places.values()) for place in range(200))
    assert most <= 16 < 40


def test_real_shards_give_what_their_folder_gives(tmp_path: Path) -> None:
    write_world(tmp_path / "world", clips=14, num_frames=4, size=16, held_out=1)
    folder = read_folder(tmp_path / "world", split="train")
    write_shards(folder, tmp_path / "shards", samples_per_shard=3, workers=1)
    sources = [FolderDataset(folder.records, (16, 16)), ShardedDataset(tmp_path / "shards", (16, 16), "train")]
    drawn = [sampler([source, Numbered(8, name="other")], weights=[3, 1]) for source in sources]
    for epoch in range(2):
        sources_of_batches = [[kind(one, batch[0]) for batch in batches(one, epoch)] for one in drawn]
        assert sources_of_batches[0] == sources_of_batches[1]
    assert len({index for batch in batches(drawn[1], 0) for index in batch if index < 12}) == 12
    for item in (3, 20 + 5, 40 + 7):
        one, other = (TrainingExamples(each.mixture, 2, "random", 0)[item] for each in drawn)
        assert (one.text, one.frames.tobytes()) == (other.text, other.frames.tobytes())


def padding(drawn: MixtureSampler) -> tuple[float, float]:
    """Shares of frames and of letters that are padding, in one epoch."""
    examples = TrainingExamples(drawn.mixture, 4, "uniform", drawn.seed, pools=[pool.clips for pool in drawn.pools])
    drawn.set_epoch(1)
    made = [examples[item] for item in drawn]
    groups = [made[start : start + drawn.batch] for start in range(0, len(made), drawn.batch)]
    shares = []
    for lengths in (
        [[len(e.frames) for e in group] for group in groups],
        [[len(e.text) for e in group] for group in groups],
    ):
        shares.append(1 - sum(map(sum, lengths)) / sum(len(group) * max(group) for group in lengths))
    return shares[0], shares[1]


def test_buckets_leave_little_to_pad_and_lose_no_clip() -> None:
    plain, sorted_ = (sampler([Numbered(400, 100)], 8, bucket=bucket) for bucket in (0, 20))
    (frames, letters), (fewer_frames, fewer_letters) = padding(plain), padding(sorted_)
    assert fewer_frames < 0.2 * frames
    assert fewer_letters < 0.5 * letters
    assert sorted(map(tuple, map(sorted, batches(plain, 0)))) != sorted(map(tuple, map(sorted, batches(sorted_, 0))))
    for drawn in (plain, sorted_):
        seen = [index for batch in batches(drawn, 0) for index in batch]
        assert len(set(seen)) == len(seen) == 496


def test_batches_of_a_bucket_come_in_any_order_and_so_do_their_clips() -> None:
    drawn = sampler([Numbered(400)], 8, bucket=50)
    lengths = [[drawn.mixture.frame_count(index) or 0 for index in batch] for batch in batches(drawn, 0)]
    means = [sum(min(4, length) for length in batch) / 8 for batch in lengths]
    assert means != sorted(means)
    assert any(batch != sorted(batch) for batch in lengths)


# --- The same again -------------------------------------------------------------------------------------------------


MIXED: list[Any] = [Numbered(21, 9, {3, 4, 22}, "a"), Sharded(30, name="b"), World(clips=10, size=16)]


def loaded(workers: int, epochs: int = 2, skipped: int = 0, bucket: int = 2) -> list[Any]:
    """(key, caption, frames, problems) of every example, as the Trainer's data loader gives them."""
    drawn = sampler(MIXED, 4, [1, 2, 1], seed=5, bucket=bucket)
    pools = [pool.clips for pool in drawn.pools]
    examples = TrainingExamples(drawn.mixture, 3, "random", 5, pools=pools)
    loader = prepare_data_loader(
        DataLoader(examples, batch_size=4, sampler=drawn, num_workers=workers, collate_fn=list, drop_last=True),
        put_on_device=False,
    )
    found = []
    for epoch in range(skipped // len(loader), epochs):
        some = skip_first_batches(loader, skipped % len(loader)) if epoch == skipped // len(loader) else loader
        some.set_epoch(epoch)
        for batch in some:
            found += [(e.key, e.text, e.frames.shape, e.frames.tobytes(), e.problems, e.tried) for e in batch]
    return found


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_examples(workers: int) -> None:
    assert loaded(workers) == loaded(0)


@pytest.mark.parametrize("bucket", [0, 2])
def test_a_resume_in_the_middle_of_an_epoch_goes_on_with_the_same_examples(bucket: int) -> None:
    whole = loaded(0, bucket=bucket)
    for skipped in (3, len(whole) // 8, len(whole) // 8 + 5):
        assert loaded(0, skipped=skipped, bucket=bucket) == whole[4 * skipped :]


def test_another_seed_gives_other_batches() -> None:
    assert len({tuple(map(tuple, batches(sampler([Numbered(40, 20)], seed=seed), 0))) for seed in range(4)}) == 4


# --- Broken clips, and sources as they are --------------------------------------------------------------------------


def test_a_broken_clip_is_replaced_by_one_of_its_own_kind() -> None:
    mixture = Mixture([Numbered(3, 3, {2, 5}, "a"), Numbered(3, name="b")])
    pools, _ = make_pools(mixture, [None, None], 2)
    examples = TrainingExamples(mixture, 2, "uniform", 0, pools=[pool.clips for pool in pools])
    assert [examples[item].tried for item in range(9)] == [(0,), (1,), (2, 0), (3,), (4,), (5, 3), (6,), (7,), (8,)]
    assert [problem.file_name for item in range(9) for problem in examples[item].problems] == ["a2.mp4", "a5.jpg"]


def test_a_source_gives_at_most_its_own_number_of_frames() -> None:
    mixture = Mixture([World(clips=2, size=16), World(clips=2, size=16, seed=1), World(clips=2, size=16)], [1, None, 9])
    assert [len(mixture.frames(index, 4)) for index in range(6)] == [1, 1, 4, 4, 4, 4]
    assert np.array_equal(mixture.frames(1, 4), World(clips=2, size=16).frames(1, 1))
    counted = Mixture([Numbered(7), Numbered(7)], [3, None])
    assert [counted.frame_count(index) for index in range(14)] == [1, 2, 3, 3, 3, 3, 3, 1, 2, 3, 4, 5, 6, 7]
    assert [mixture.frame_count(index) for index in range(6)] == [1, 1, None, None, 9, 9]


def test_a_mixture_of_folders_and_the_world_decodes_what_it_says(tmp_path: Path) -> None:
    write_world(tmp_path, clips=3, num_frames=4, size=16)
    folder, world = FolderDataset(read_folder(tmp_path).records, (16, 16)), World(clips=2, size=16)
    mixture = Mixture([folder, world])
    assert len(mixture) == 5
    assert [mixture.record(index) for index in range(5)] == [
        *(folder.record(index) for index in range(3)),
        *(world.record(index) for index in range(2)),
    ]
    assert np.array_equal(mixture.frames(1, 2), folder.frames(1, 2))
    assert np.array_equal(mixture.frames(4, 2), world.frames(1, 2))
    assert (mixture.frame_count(0), mixture.frame_count(3)) == (4, None)
    assert not any(mixture.is_damaged(index) for index in range(5))


def test_a_clip_that_lacks_frames_is_known_as_damaged_once_it_was_read(tmp_path: Path) -> None:
    write_world(tmp_path, clips=3, num_frames=8, size=32, held_out=1)
    record = read_folder(tmp_path).records[0]
    record.path.write_bytes(_spoilt(record.path.read_bytes()))
    clips = FolderDataset([record], (16, 16))
    assert not is_damaged(clips, 0)
    examples = TrainingExamples(clips, 8, "uniform", 0)
    example = examples[0]
    assert example.damaged == record.file_name
    assert example.problems == ()
    assert is_damaged(Mixture([CachedDataset(clips)]), 0)


def _spoilt(video: bytes) -> bytes:
    """A file whose later frames are noise: the head, which says where they are, stays."""
    start = video.index(b"mdat") + 4
    size = int.from_bytes(video[start - 8 : start - 4], "big") - 8
    half = start + size // 2
    return video[:half] + bytes(start + size - half) + video[start + size :]
