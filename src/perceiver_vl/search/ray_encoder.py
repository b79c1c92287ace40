"""Media files → unit vectors and partial attentions on many machines, with Ray Data; what comes back is written by this
process.

The machines read the media and the model where this one does (a shared file system) and have the same versions of this
package and its decoder. The index is the one that a single machine makes: the same clips, in the same order, in the
same batches, except that a file that cannot be read leaves its batch short instead of being replaced by the next.

Ray starts a worker that died anew and gives it its clips again. Clips whose worker dies each time are tried once more
one by one, so that a file that brings its reader down costs itself alone.
"""

import logging
import os
import secrets
import socket
import sys
import tempfile
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

from perceiver_vl.media.decode import decoder_version
from perceiver_vl.models.budget import ComputeBudget
from perceiver_vl.models.loading import load_retriever, model_fingerprint
from perceiver_vl.search.encode import encode_files
from perceiver_vl.search.store import EncodedClip, IndexEntry, IndexSettings, SkippedFile
from perceiver_vl.utils.errors import MediaError, PerceiverVLError, UsageError, first_line

LOCAL = "local"
"""Instead of the address of a cluster: one of this machine alone, for as long as the run takes."""
BATCHES_A_TASK = 4
RETRIES = 2
"""How often clips whose worker died are given to another, before they are tried one by one."""
_STARTS = 3  # Ray gives itself 30 seconds to start here, which a busy machine may exceed
_DEADLY = "every process that read it died"

_RESULT = pa.schema(
    [
        ("number", pa.int64()),
        ("duration", pa.float64()),
        ("vector", pa.binary()),
        ("partial_attention", pa.binary()),
        ("damaged", pa.bool_()),
        ("broken", pa.string()),
        ("failed", pa.string()),  # what no other clip would survive either
    ]
)


class RayEncoder:
    """Encodes clips on the Ray cluster at `address` (`auto`, `HOST:PORT`, `ray://HOST:PORT`), or `local`.

    Each worker has a GPU if there are some (and `device` is not the CPU), else a core. If Ray runs in this process
    already, `address` is not asked.
    """

    def __init__(
        self, address: str, settings: IndexSettings, budget: ComputeBudget, batch_size: int, device: str | None
    ) -> None:
        self._address, self._settings, self._budget = address, settings, budget
        self._batch_size, self._device = batch_size, device

    def encode(self, clips: Sequence[IndexEntry], strict: bool) -> Generator[EncodedClip | SkippedFile, None, None]:
        """As `encode_files`. Clips that bring their worker down come last, and are tried again by the next run.

        Raises `UsageError` if there is no cluster at the address, `PerceiverVLError` if it is lost, or if a machine of
        it has another model or decoder.
        """
        if not clips:
            return
        with _cluster(self._address):
            left = list(range(len(clips)))
            for clips_a_task in (BATCHES_A_TASK * self._batch_size, 1):
                returned: set[int] = set()
                for row in self._run(clips, left, clips_a_task, alone=clips_a_task == 1):
                    returned.add(row["number"])
                    yield self._result(clips[row["number"]], row, strict)
                left = [number for number in left if number not in returned]
            for number in left:
                name = clips[number].file_name
                if strict:
                    raise MediaError(Path(self._settings.media, name), _DEADLY)
                yield SkippedFile(name, 0, 0, _DEADLY)

    def _run(
        self, clips: Sequence[IndexEntry], numbers: Sequence[int], clips_a_task: int, alone: bool
    ) -> Iterator[dict[str, Any]]:
        """What workers say of the clips, in order; nothing of those whose worker died each time.

        alone: nothing waits for the worker of a clip that would be lost with it, and each has but one try.
        """
        if not numbers:
            return
        tasks = [
            pa.table({"number": some, "file_name": [clips[number].file_name for number in some]})
            for some in (numbers[start : start + clips_a_task] for start in range(0, len(numbers), clips_a_task))
        ]
        places = ray.cluster_resources()
        gpu = not str(self._device).startswith("cpu") and places.get("GPU", 0) >= 1
        workers = max(1, min(len(tasks), int(places.get("GPU" if gpu else "CPU", 1))))
        how: dict[str, Any] = {"num_gpus": 1} if gpu else {"num_cpus": 1}
        try:
            with DataContext.current(_context()), warnings.catch_warnings(), _silent():
                warnings.simplefilter("ignore", RayDeprecationWarning)  # max_task_retries has no other place yet
                encoded = ray.data.from_arrow(tasks).map_batches(
                    _Worker,
                    fn_constructor_args=(self._settings, self._budget, self._batch_size, "cuda" if gpu else "cpu"),
                    batch_size=None,
                    batch_format="pyarrow",
                    compute=ActorPoolStrategy(
                        min_size=1, initial_size=workers, max_tasks_in_flight_per_actor=1 if alone else None
                    ),
                    max_task_retries=0 if alone else RETRIES,
                    **how,
                )
                for batch in encoded.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                    yield from batch.to_pylist()
        except (RayError, ConnectionError) as error:
            raise PerceiverVLError(f"ray: {first_line(error)}; what is encoded is kept, run it again") from error

    def _result(self, clip: IndexEntry, row: dict[str, Any], strict: bool) -> EncodedClip | SkippedFile:
        if row["failed"] is not None:
            raise PerceiverVLError(row["failed"])
        if row["broken"] is not None:
            if strict:
                raise MediaError(Path(self._settings.media, clip.file_name), row["broken"])
            return SkippedFile(clip.file_name, clip.size, clip.mtime_ns, row["broken"])
        vector, partial_attention = (
            np.frombuffer(row[name], dtype=np.float32) for name in ("vector", "partial_attention")
        )
        return EncodedClip(replace(clip, duration=row["duration"]), vector, partial_attention, row["damaged"])


class _Worker:
    """One process of the cluster. What is wrong with all it could do is said in each row, for Ray retries errors."""

    def __init__(self, settings: IndexSettings, budget: ComputeBudget, batch_size: int, device: str) -> None:
        self._failed: str | None = None
        try:
            _check_machine(settings)
            self._how = *load_retriever(settings.model, device, settings.dtype), settings, budget, batch_size
        except PerceiverVLError as error:
            self._failed = f"{socket.gethostname()}: {error}"

    def __call__(self, task: pa.Table) -> pa.Table:
        """Columns `number`, `file_name` → a row of `_RESULT` for each."""
        asked = task.to_pylist()
        if self._failed is None:
            try:
                return pa.Table.from_pylist(self._rows(asked), schema=_RESULT)
            except PerceiverVLError as error:
                self._failed = str(error)
            except Exception as error:  # Ray would try the same again; a GPU without memory, say, ends the run
                self._failed = f"{socket.gethostname()}: {type(error).__name__}: {first_line(error)}"
        return pa.Table.from_pylist([{"number": asked[0]["number"], "failed": self._failed}], schema=_RESULT)

    def _rows(self, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
        clips = [IndexEntry(one["file_name"], 0, 0, (), None) for one in asked]
        found: dict[str, dict[str, Any]] = {}
        for one in encode_files(*self._how, clips, strict=False):
            if isinstance(one, SkippedFile):
                found[one.file_name] = {"broken": one.reason}
            else:
                found[one.clip.file_name] = {
                    "duration": one.clip.duration,
                    "vector": one.vector.tobytes(),
                    "partial_attention": one.partial_attention.tobytes(),
                    "damaged": one.damaged,
                }
        return [found[one["file_name"]] | {"number": one["number"]} for one in asked]


def _check_machine(settings: IndexSettings) -> None:
    if model_fingerprint(settings.model) != settings.fingerprint:
        raise PerceiverVLError(f"{settings.model} is another model on this machine, copy the one that was named to it")
    if (here := decoder_version()) not in settings.decoders:
        raise PerceiverVLError(
            f"{here} decodes on this machine, not {settings.decoders[-1]}; install the same versions"
        )


def _context() -> DataContext:
    """In order; a task that fails after its retries is left out of the result; nothing is said meanwhile."""
    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.max_errored_blocks = -1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context


@contextmanager
def _silent() -> Iterator[None]:
    """Without what Ray Data logs: workers that die are a matter of course here."""
    logger = logging.getLogger("ray.data")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    """Join a cluster, or start one here, and leave or end it afterwards."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with ExitStack() as stack:
        here: dict[str, Any] = {}
        if address == LOCAL:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one into the home folder
            scratch = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
            here = {"include_dashboard": False, "_temp_dir": stack.enter_context(scratch)}
        for left in reversed(range(_STARTS if address == LOCAL else 1)):
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **here)
                break
            except Exception as error:  # Ray raises its own kinds, and bare ones
                ray.shutdown()
                if not left:
                    raise UsageError(
                        f"ray={address}: no cluster there ({first_line(error)}), start one with ray start --head, "
                        "or use local"
                    ) from error
        stack.callback(ray.shutdown)
        stack.enter_context(redirect_stdout(sys.stderr))  # Ray prints there what becomes of its workers
        yield
