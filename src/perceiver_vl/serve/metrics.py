"""What `/metrics` tells, for Prometheus."""

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one service, in a registry of their own, so that two in a process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        at = self.registry
        ProcessCollector(registry=at)  # memory, processor time, open files
        self.requests = Counter(
            "perceiver_vl_requests", "Requests, by route and status", ["method", "route", "status"], registry=at
        )
        self.request_seconds = Histogram(
            "perceiver_vl_request_seconds", "From request to answer", ["route"], buckets=_SECONDS, registry=at
        )
        self.stage_seconds = Histogram(
            "perceiver_vl_stage_seconds", "By stage of an answer", ["stage"], buckets=_SECONDS, registry=at
        )
        self.queue = Gauge("perceiver_vl_queue_length", "Jobs that wait for the model", registry=at)
        self.queue_seconds = Histogram(
            "perceiver_vl_queue_seconds", "Longest wait of a batch", ["kind"], buckets=_SECONDS, registry=at
        )
        self.batch_size = Histogram(
            "perceiver_vl_batch_size", "Jobs done at once", ["kind"], buckets=_SIZES, registry=at
        )
        self.cache = Counter("perceiver_vl_cache", "What caches had and had not", ["cache", "result"], registry=at)
        self.refused = Counter("perceiver_vl_refused", "Requests refused, by reason", ["reason"], registry=at)
        self.clips = Gauge("perceiver_vl_index_rows", "Rows of an index", ["index", "table"], registry=at)
        self.version = Gauge("perceiver_vl_index_version", "Version of an index that is served", ["index"], registry=at)
        self.refresh_failures = Counter(
            "perceiver_vl_refresh_failures", "Newer versions that cannot be opened", registry=at
        )
        self.model = Info("perceiver_vl_model", "The model that is served", registry=at)
        self.uploads = Gauge("perceiver_vl_uploads", "Examples that are kept", registry=at)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self.registry)


__all__ = ["CONTENT_TYPE", "Metrics"]
