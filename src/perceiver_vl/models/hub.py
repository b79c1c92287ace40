"""The hub of Hugging Face, asked once: where there is no network, its own client asks again for most of a minute."""

import os
import socket
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants

_SECONDS = 5.0  # for a connection


def hub_options(name: str | os.PathLike[str]) -> dict[str, Any]:
    """What `from_pretrained` is to be told of a name: that nothing is asked of a hub that does not answer."""
    return {} if Path(name).exists() or hub_answers() else {"local_files_only": True}


def hub_hint(name: str | os.PathLike[str]) -> str:
    """What to do about a name that could not be loaded."""
    if Path(name).exists() or hub_answers():
        return "name a folder or a hub model"
    why = f"{constants.ENDPOINT} does not answer (HF_ENDPOINT says which hub is asked)"
    why = "HF_HUB_OFFLINE keeps the hub from being asked" if constants.HF_HUB_OFFLINE else why
    return f"{why} and it was not downloaded before; name a folder or a hub model"


def hub_answers() -> bool:
    """Whether the hub can be connected to; what a proxy reaches is not known, and counts as so."""
    proxied = any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"))
    return not constants.HF_HUB_OFFLINE and (proxied or _connects(constants.ENDPOINT))


@lru_cache
def _connects(endpoint: str) -> bool:
    address = urlsplit(endpoint)
    try:
        socket.create_connection((address.hostname, address.port or 443), _SECONDS).close()
    except OSError:
        return False
    return True
