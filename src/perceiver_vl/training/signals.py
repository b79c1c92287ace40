"""Pre-emption: a machine that is about to be taken away says so by a signal; the run saves a checkpoint and leaves.

SIGTERM and SIGUSR1 ask for it, of one process or of all. At the end of the step all processes agree (see
`MonitoredTrainer`), save, and leave by `PreemptedError`, which the command line turns into exit code 75.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState

from perceiver_vl.utils.errors import PreemptedError, Setting

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""What asks a run to save and leave."""


class Stop(TrainerCallback):
    """Saves at the end of the step at which all processes agree to stop, and leaves by `PreemptedError`.

    asked: the signal that came to this process. agreed: whether one came to any, set by the Trainer before the
    optimizer's step. To be the last of the callbacks, so that all others have had their save.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self.agreed = self._begun = False

    def heed(self, number: int, frame: FrameType | None) -> None:
        """The handler of a signal: before the first step there is nothing to save, after the last nothing to stop."""
        self.asked = signal.Signals(number).name
        if not self._begun:
            raise PreemptedError(f"stopped by {self.asked} before the first step, to go on: ", Setting("resume", True))

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._begun = True

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_save = control.should_save or self.agreed

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self.agreed:
            return
        if dist.is_available() and dist.is_initialized():
            dist.barrier()  # a launcher that sees one process leave may end the others
        by = self.asked or "a signal to another process"
        step = state.global_step
        raise PreemptedError(f"stopped by {by} at step {step}, which is saved, to go on: ", Setting("resume", True))


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """While this lasts what it gives heeds `SIGNALS`; outside the main thread, which alone gets them, it never does."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.heed) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def outlive_a_signal(worker: int) -> None:
    """For a data-loader worker, as its `worker_init_fn`: the first of these signals does not end it.

    Pre-emption often signals every process there is. Without this the workers would die of it, and the run of their
    death, before it has saved. The second is heeded: it is the run's own, to a worker that does not end.
    """
    for number in SIGNALS:
        signal.signal(number, _heed_the_next)


def _heed_the_next(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
