"""The engine under the index, Lance: where a table is, and what goes wrong with it, each in one line."""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perceiver_vl.utils.errors import PerceiverVLError, UsageError


class NoIndexError(UsageError):
    """There is no index where one was looked for."""


def location(index: str | Path) -> str:
    """The absolute path of a folder; the address of a place in object storage (`s3://bucket/index`) as it is."""
    place = str(index).rstrip("/") if "://" in str(index) else str(Path(index).resolve())
    try:
        place.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{place!a}: a name that is not Unicode, give another") from error
    return place


def how_to_make(index: str) -> str:
    """What to type to have an index made."""
    return f"perceiver-vl index --model MODEL --media FOLDER --out {shlex.quote(index)}"


def remedy(index: str) -> str:
    """What to type to have a damaged index mended."""
    return f"perceiver-vl index --verify --out {shlex.quote(index)}"


SAYINGS = (
    (r"NoSuchBucket", "there is no such bucket, make it or give another address"),
    (
        r"AccessDenied|Forbidden|InvalidAccessKeyId|SignatureDoesNotMatch|CredentialsNot|credential",
        "may not be read or written with the credentials of the environment, set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY",
    ),
    (r"error sending request|dns error", "the storage does not answer, see AWS_ENDPOINT_URL and the network"),
    (r"No object store provider", "no such kind of storage, give a folder or an address like s3://bucket/index"),
    (r"[Cc]onflict", "another run is writing it, wait for it to end"),
    (
        r"No space left|File too large|[Qq]uota",
        "no space is left there; what was committed is kept, make room and run it again",
    ),
    (r"Permission denied|Read-only", "may not be written, change its rights or give another place"),
    (r"Failed to parse path", "its name has characters that the engine does not take, give another"),
)


@contextmanager
def engine_errors(index: str, where: str | None = None) -> Iterator[None]:
    """What the engine raises, panics among them, as one line; of the SQL `where`, if that is what it is about."""
    try:
        yield
    except PerceiverVLError:
        raise
    except BaseException as error:
        known = ValueError | OSError | RuntimeError
        if not isinstance(error, known) and type(error).__name__ != "PanicException":
            raise
        said = " ".join(str(error).split())
        if re.search(r"Dataset at path .* was not found|Not a directory", said):
            raise NoIndexError(f"{index}: not an index, make one with {how_to_make(index)}") from error
        for pattern, meaning in SAYINGS:
            if re.search(pattern, said):
                raise UsageError(f"{index}: {meaning}") from error
        short = re.sub(r", (/\S+\.rs:\d+:\d+|/rustc/.*).*$", "", said)[:300]
        if where is not None and re.search(r"Invalid user input|SQL|[Ss]chema error|Arrow error", said):
            reason = re.sub(r"^(Invalid user input: )?(.*sql parser error: )?", "", short)
            raise UsageError(f"where={where}: {reason.rstrip(')')}") from error
        raise PerceiverVLError(f"{index}: damaged ({short}), mend it with {remedy(index)}") from error
