"""The clips that all tests of shards pack."""

from pathlib import Path

import pytest

from perceiver_vl.data.synthetic.writing import write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clips of training, one of validation, one of test."""
    folder = tmp_path_factory.mktemp("shards") / "world"
    write_world(folder, clips=12, held_out=1, captions_per_clip=2, num_frames=6, size=32)
    return folder
