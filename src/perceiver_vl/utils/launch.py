"""Training in several processes of one machine: this process is the first, the others run the same command beside it.

Small models leave most of a processor idle inside one process; two processes with half the batch each do not.
On a cluster, `torchrun -m perceiver_vl train …` does the same over many machines.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist

from perceiver_vl.utils.errors import PerceiverVLError, Setting, UsageError

_was_one_of_several = False


class LostProcessError(PerceiverVLError):
    """Another process of the same run has gone. advice: what to do about it."""

    def __init__(self, *advice: str | Setting) -> None:
        self.advice = advice
        super().__init__("another process of this run is gone; ", *advice)


@contextmanager
def beside_others(processes: int, command: Sequence[str]) -> Iterator[None]:
    """While this lasts, the process is rank 0 of `processes`; the other ranks run `perceiver-vl COMMAND`.

    Processor threads are shared out. If another rank fails, its last words are part of the error raised here.
    """
    if processes < 1:
        raise UsageError(f"processes={processes}: need at least one")
    if processes == 1:
        yield
        return
    threads = torch.get_num_threads()
    shared = max(1, threads // processes)
    environment = _environment(processes, shared)
    with ExitStack() as stack:
        others = []
        for rank in range(1, processes):
            stderr = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))
            other = subprocess.Popen(
                [sys.executable, "-m", "perceiver_vl", *command],
                env={**os.environ, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
            stack.callback(_end, other)
            others.append((other, stderr))
        before = {name: os.environ.get(name) for name in environment}
        stack.callback(_restore, before)
        os.environ.update(environment)
        torch.set_num_threads(shared)
        stack.callback(torch.set_num_threads, threads)
        stack.callback(_leave_group)
        try:
            yield
        except (RuntimeError, LostProcessError) as error:  # what gloo and NCCL raise when another rank is gone
            for rank, (other, _) in enumerate(others, start=1):
                if (code := _code_of(other)) < 0:
                    ended = f"process {rank} of {processes} was ended by {signal.Signals(-code).name}"
                    advice = ("; ", *error.advice) if isinstance(error, LostProcessError) else ()
                    raise PerceiverVLError(ended, *advice) from error
            for rank, (other, stderr) in enumerate(others, start=1):
                if code := _code_of(other):
                    stderr.seek(0)
                    last = " ".join(stderr.read().strip().splitlines()[-1:]) or f"exit code {code}"
                    message = last.removeprefix("error: ")
                    raise PerceiverVLError(f"process {rank} of {processes} failed: {message}") from error
            raise


def join_others() -> bool:
    """Become one of the processes that `torchrun` has started, where it has; whether there are others."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return False
    from accelerate import PartialState

    PartialState(cpu=not torch.accelerator.is_available())
    return True


def is_first_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def _environment(processes: int, threads: int) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
    }
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    return environment | ({"GLOO_SOCKET_IFNAME": loopback[0]} if loopback else {})


def _code_of(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a process that may be ending this moment; 0 if it is not."""
    try:
        return process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        return 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that should be ending; make it end if it is not."""
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _restore(environment: dict[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _leave_group() -> None:
    """Forget the other processes, here and in accelerate, so that what follows runs alone."""
    from accelerate.state import AcceleratorState, PartialState

    global _was_one_of_several
    if dist.is_initialized():
        _was_one_of_several = True
        dist.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


def leave_at_once(code: int = 0) -> None:
    """End this process, if it is or was one of several, without what Python does last; all that it writes is written.

    At the interpreter's own end a thread of gloo may still ask for its lock. Python then ends that thread in the middle
    of C++, and that aborts the process ("terminate called without an active exception").
    """
    if dist.is_initialized():
        dist.destroy_process_group()
    elif not _was_one_of_several:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
