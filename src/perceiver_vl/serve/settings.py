"""How the service runs: what the command line says, checked before anything is loaded."""

import os
import secrets
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from perceiver_vl.serve.worker import QueueSettings
from perceiver_vl.utils.errors import UsageError

TOKEN_VARIABLE = "PERCEIVER_VL_TOKEN"
_LEAST_TOKEN = 16


@dataclass(frozen=True)
class UploadLimits:
    """Of an upload: its bytes; seconds of processor time and bytes of memory of the process that decodes it; how many
    may be decoded at once; how many are kept, and for how long. Its pixels are limited as those of any file.
    """

    most_bytes: int = 64 << 20
    most_seconds: int = 20
    most_memory: int = 2 << 30
    at_once: int = 2
    kept: int = 64
    kept_seconds: float = 3600.0


@dataclass(frozen=True)
class ServeSettings:
    """`indexes`: folders or addresses. `token`: what every request must show; None: nothing, on this machine alone.
    `names`: host names by which it may be called, beside this machine's own. `roots`: folders whose files may be
    served, too, as links in the media folders lead there. `rate`: requests a second of a client, 0: any number.
    """

    indexes: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    model: Path | None = None
    ask_model: Path | None = None
    token: str | None = None
    names: tuple[str, ...] = ()
    behind_proxy: bool = False
    certificate: Path | None = None
    key: Path | None = None
    roots: tuple[Path, ...] = ()
    rate: float = 50.0
    burst: float = 200.0
    can_index: bool = True
    refresh_seconds: float = 2.0
    vision_cache_bytes: int = 512 << 20
    threads: int | None = None
    queue: QueueSettings = field(default_factory=QueueSettings)
    uploads: UploadLimits = field(default_factory=UploadLimits)

    @property
    def secure(self) -> bool:
        """Whether people reach it by https."""
        return self.certificate is not None or self.behind_proxy

    def check(self) -> None:
        """Raise `UsageError` for what is not safe, or cannot work."""
        if not self.indexes:
            raise UsageError("indexes: none to serve, name one at least")
        if (self.certificate is None) != (self.key is None):
            raise UsageError("TLS needs both files: --tls-certificate FILE --tls-key FILE")
        for file in (self.certificate, self.key):
            if file is not None and not file.is_file():
                raise UsageError(f"{file}: no such file")
        if self.token is None and (self.behind_proxy or not is_loopback(self.host)):
            raise UsageError(f"host={self.host}: others can reach it, so it needs a token")
        if not is_loopback(self.host) and not self.secure:
            raise UsageError(
                f"host={self.host}: others can read along, give --tls-certificate and --tls-key, or say --behind-proxy "
                "where a proxy does that"
            )
        if self.token is not None and len(self.token) < _LEAST_TOKEN:
            raise UsageError(f"the token has {len(self.token)} characters, need at least {_LEAST_TOKEN}")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def find_token(host: str, token_file: Path | None, behind_proxy: bool = False) -> tuple[str | None, bool]:
    """The token from a file, the environment (`PERCEIVER_VL_TOKEN`), or where others can reach the host a new one; and
    whether it is new, so that it must be said. None: no token is asked for.
    """
    if token_file is not None:
        try:
            return token_file.read_text(encoding="utf-8").strip(), False
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{token_file}: cannot be read, write the token into it") from error
    if token := os.environ.get(TOKEN_VARIABLE, "").strip():
        return token, False
    if is_loopback(host) and not behind_proxy:
        return None, False
    return secrets.token_urlsafe(24), True
