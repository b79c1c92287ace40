"""Using ONNX and onnxruntime, which are imported on first use."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def import_onnxruntime() -> Any:
    """The module; unless the environment says otherwise, without what it would report of its use to its makers."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it is first imported
    import onnxruntime

    return onnxruntime


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Without what torch's exporter says of packages that are not there, and of its own future."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
