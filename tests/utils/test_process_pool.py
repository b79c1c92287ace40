"""Jobs in several processes: all are done, and one that kills its process costs only itself."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from perceiver_vl.utils.process_pool import run_in_processes


def square(number: int) -> int:
    return number * number


def square_or_die(number: int) -> int:
    if number == 3:
        os._exit(1)
    return number * number


def square_or_raise(number: int) -> int:
    if number == 3:
        raise OSError(28, "No space left on device")
    return number * number


def say_who_and_wait(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(120)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_done(workers: int) -> None:
    assert sorted(run_in_processes(square, range(20), workers)) == [(number, number**2) for number in range(20)]
    assert list(run_in_processes(square, [], workers)) == []


def test_a_job_that_kills_its_process_is_named_and_the_others_are_done() -> None:
    found = dict(run_in_processes(square_or_die, range(8), 2))
    assert found == {number: None if number == 3 else number**2 for number in range(8)}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_job_raises_is_raised_here(workers: int, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        list(run_in_processes(square_or_raise, range(1000), workers))


def test_it_can_be_ended_early() -> None:
    results = run_in_processes(square, range(1000), 2)
    next(results)
    results.close()
    assert list(results) == []


def test_no_process_outlives_one_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from test_process_pool import *; "
        "list(run_in_processes(say_who_and_wait, [Path(sys.argv[1])] * 2, 2))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parent)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not any(is_alive(int(one.name)) for one in tmp_path.iterdir()))


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(600):
        if true():
            return
        time.sleep(0.1)
    pytest.fail("waited for a minute")
