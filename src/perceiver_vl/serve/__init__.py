"""The page and the HTTP interface over search and inference: `perceiver-vl serve`, and a client for programs."""

from typing import TYPE_CHECKING

from perceiver_vl.utils.lazy import lazy_names

if TYPE_CHECKING:
    from perceiver_vl.serve.client import Client, ServiceError

__all__ = ["Client", "ServiceError"]

__getattr__, __dir__ = lazy_names(
    __name__, {"Client": "perceiver_vl.serve.client", "ServiceError": "perceiver_vl.serve.client"}
)
