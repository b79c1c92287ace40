"""Scripts of this folder in several processes."""

import os
import subprocess
import sys
from pathlib import Path


def in_processes(number: int, script: str, folder: Path) -> None:
    """Run a script of this folder in so many processes, with `folder` as its argument."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [*run, str(Path(__file__).with_name(script)), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
