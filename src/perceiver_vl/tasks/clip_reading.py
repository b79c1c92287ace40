"""The clips of a split in batches, decoded ahead of the model, and what could not be read of them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from perceiver_vl.data.records import SkippedSample
from perceiver_vl.data.skipped import check_failures
from perceiver_vl.data.sources import VideoDataset, is_damaged
from perceiver_vl.models.perceiver_vl.processing import PerceiverVLProcessor
from perceiver_vl.utils.distributed import ProcessGroup
from perceiver_vl.utils.errors import MediaError


class ClipReader:
    """The readable clips of a source in batches, decoded ahead of the model by two threads."""

    def __init__(
        self,
        processor: PerceiverVLProcessor,
        source: VideoDataset,
        num_frames: int,
        batch_size: int,
        device: torch.device,
        strict: bool,
        max_failed_fraction: float,
        shared: bool,
    ) -> None:
        self.processor, self.source, self.num_frames, self.batch_size = processor, source, num_frames, batch_size
        self.device, self.strict, self.max_failed_fraction, self.group = (
            device,
            strict,
            max_failed_fraction,
            ProcessGroup(shared),
        )
        self.readable = list(range(len(source)))
        self.problems: list[SkippedSample] = []
        self._failed: dict[int, SkippedSample] = {}

    def read(self) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Batches of (indices, `pixel_values (B,T,3,H,W)`, `frame_mask (B,T)`), those that fall to this process."""
        starts = range(0, len(self.readable), self.batch_size)
        batches = self.group.share([self.readable[start : start + self.batch_size] for start in starts])
        tried = len(self.source) - len(self.readable)
        with ThreadPoolExecutor(2) as pool:
            ahead = [pool.submit(self._load, index) for index in batches[0]] if batches else []
            for number, batch in enumerate(batches):
                loaded = [future.result() for future in ahead]
                if number + 1 < len(batches):
                    ahead = [pool.submit(self._load, index) for index in batches[number + 1]]
                good = [(index, frames) for index, frames in zip(batch, loaded, strict=True) if frames is not None]
                tried += len(batch)
                # Others may have fewer broken ones: stop early only where they cannot make up for these
                found = [*self.problems, *self._failed.values()]
                self._check_failures(found, len(self.source) if self.group.processes > 1 else tried)
                if good:
                    inputs = self.processor(videos=[frames for _, frames in good], num_frames=self.num_frames)
                    inputs = inputs.to(self.device)
                    yield [index for index, _ in good], inputs["pixel_values"], inputs["frame_mask"]

    def settle(self) -> None:
        """Once all processes have read their batches: what has failed is not tried again, by any of them."""
        failed = {
            index: problem for found in self.group.of_all(lambda: self._failed) for index, problem in found.items()
        }
        self.readable = [index for index in self.readable if index not in failed]
        self.problems += [failed[index] for index in sorted(failed)]
        self._failed = {}
        self._check_failures(self.problems, len(self.source))

    def damaged(self) -> list[str]:
        """The files that lacked frames, as those processes know that have read them."""
        mine = {index for index in self.readable if is_damaged(self.source, index)}
        found = set().union(*self.group.of_all(lambda: mine))
        return [self.source.record(index).file_name for index in sorted(found)]

    def _check_failures(self, problems: list[SkippedSample], tried: int) -> None:
        first = problems[0] if problems else None
        check_failures(len(problems), tried, len(self.source), self.max_failed_fraction, first)

    def _load(self, index: int) -> Any:
        try:
            return self.source.frames(index, self.num_frames)
        except MediaError as error:
            if self.strict:
                raise
            self._failed[index] = SkippedSample(self.source.record(index).file_name, error.reason)
            return None
