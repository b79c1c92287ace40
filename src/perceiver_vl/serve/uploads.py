"""Examples that somebody uploads: limited in bytes, decoded by a process of their own, and deleted.

Shapes: T frames, E retrieval vector.
"""

import asyncio
import contextlib
import errno
import json
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perceiver_vl.media.sampling import Frames
from perceiver_vl.search.rows import Vectors
from perceiver_vl.serve.problems import ProblemError
from perceiver_vl.serve.settings import UploadLimits

PREFIX = "up-"
"""What the ids of uploads begin with; those of clips are hexadecimal digits alone."""


@dataclass(frozen=True)
class Upload:
    """An example as it is kept: its frames `(T,H,W,3)` at the model's size, and its unit vector `(E,)`."""

    id: str
    frames: Frames
    vector: Vectors
    duration: float | None
    expires: float

    @property
    def kind(self) -> str:
        """video or image."""
        return "image" if self.duration is None else "video"


class Uploads:
    """The last uploads, for some time."""

    def __init__(self, limits: UploadLimits) -> None:
        self.limits = limits
        self._kept: OrderedDict[str, Upload] = OrderedDict()
        self._lock = threading.Lock()  # the worker looks, too
        self._decoding = asyncio.Semaphore(limits.at_once)

    def __len__(self) -> int:
        with self._lock:
            self._forget()
            return len(self._kept)

    def get(self, name: str) -> Upload:
        """Raises `ProblemError` (404) for one that is not, or not any more."""
        with self._lock:
            self._forget()
            found = self._kept.get(name)
        if found is None:
            raise ProblemError(404, f"{name}: no such upload, or no longer kept; upload it again")
        return found

    def keep(self, frames: Frames, vector: Vectors, duration: float | None) -> Upload:
        """Under a new name, in the place of the oldest."""
        expires = time.time() + self.limits.kept_seconds
        upload = Upload(PREFIX + secrets.token_hex(12), frames, vector, duration, expires)
        with self._lock:
            self._kept[upload.id] = upload
            while len(self._kept) > self.limits.kept:
                self._kept.popitem(last=False)
        return upload

    def _forget(self) -> None:
        now = time.time()
        for name in [name for name, one in self._kept.items() if one.expires < now]:
            del self._kept[name]

    async def decode(
        self, body: AsyncIterator[bytes], declared: int | None, num_frames: int, size: tuple[int, int]
    ) -> tuple[Frames, float | None]:
        """A body → at most so many frames `(T,H,W,3)` at `size`, and the duration. What was written is deleted.

        Raises `ProblemError`: 413 for too many bytes, 422 for what is no media file or beyond its limits, 503 where the
        process that decodes is killed, 507 where there is no room.
        """
        most = self.limits.most_bytes
        too_much = ProblemError(413, f"an upload of more than {most} bytes, at most {most} are taken")
        if declared is not None and declared > most:
            raise too_much
        with tempfile.TemporaryDirectory(prefix="perceiver-vl-upload-") as folder:
            path, written = Path(folder, "upload"), 0
            try:
                with path.open("wb") as file:
                    async for part in body:
                        written += len(part)
                        if written > most:
                            raise too_much
                        file.write(part)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise ProblemError(507, "no room for the upload, make some or try a smaller file") from error
                raise
            async with self._decoding:
                return await self._decode(path, num_frames, size)

    async def _decode(self, path: Path, num_frames: int, size: tuple[int, int]) -> tuple[Frames, float | None]:
        limits = self.limits
        patience = 10 + 3 * limits.most_seconds  # where the machine has other work to do
        numbers = [num_frames, *size, limits.most_seconds, limits.most_memory]
        words = [sys.executable, "-m", "perceiver_vl.serve.decode_upload", str(path), "upload", *map(str, numbers)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        process = await asyncio.create_subprocess_exec(
            *words,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            said, _ = await asyncio.wait_for(process.communicate(), patience)
        except TimeoutError:
            raise ProblemError(422, f"upload: takes more than {patience} s to decode") from None
        finally:
            if process.returncode is None:  # also where whoever waits has gone
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode == -signal.SIGKILL:  # by the system, short of memory, or by somebody
            raise ProblemError(503, "upload: what decoded it was ended from outside, try again", {"Retry-After": "1"})
        head, _, data = said.partition(b"\n")
        try:
            about: dict[str, Any] = json.loads(head)
        except ValueError:
            reason = f"cannot be decoded within {limits.most_seconds} s and {limits.most_memory >> 20} MiB"
            raise ProblemError(422, f"upload: {reason}") from None
        if "error" in about:
            raise ProblemError(422, about["error"])
        return np.frombuffer(data, np.uint8).reshape(about["shape"]), about["duration"]
