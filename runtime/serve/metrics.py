"""Metrics in Prometheus' form, of this process or of all workers together."""

import os
from contextlib import suppress
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
    multiprocess,
)

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable of the folder in which workers share their numbers."""

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class ServerMetrics:
    """The server's metrics, each of them with its help text and labels."""

    def __init__(self) -> None:
        own = CollectorRegistry()
        self._own = own
        self.requests = Counter(
            "unet_requests", "Requests that were answered.", ("endpoint", "model", "status"), registry=own
        )
        self.seconds = Histogram(
            "unet_request_seconds",
            "Time from a request's header to its answer.",
            ("endpoint", "model"),
            buckets=SECONDS,
            registry=own,
        )
        self.stages = Histogram(
            "unet_stage_seconds",
            "Time of each stage of a request: receive, wait, decode, fit, transfer, infer, restore, encode.",
            ("model", "stage"),
            buckets=SECONDS,
            registry=own,
        )
        self.batches = Histogram(
            "unet_batch_size", "Images that ran together.", ("model",), buckets=BATCHES, registry=own
        )
        self.in_progress = Gauge(
            "unet_requests_in_progress",
            "Requests that wait or run.",
            multiprocess_mode="livesum",
            registry=own,
        )
        self.capacity = Gauge(
            "unet_queue_capacity",
            "Requests that may wait or run at once; further ones are answered 429.",
            multiprocess_mode="livesum",
            registry=own,
        )
        self.models = Gauge(
            "unet_model_info",
            "1 for each model that answers.",
            ("model", "sha256", "device", "precision"),
            multiprocess_mode="livemax",
            registry=own,
        )
        self.swaps = Counter("unet_model_swaps", "Model files that were replaced.", ("model", "result"), registry=own)
        if FOLDER not in os.environ:
            ProcessCollector(registry=own)
            PlatformCollector(registry=own)

    def text(self) -> bytes:
        """Return all metrics in the text format, those of all workers where there are several."""
        if FOLDER not in os.environ:
            return generate_latest(self._own)
        folder = Path(os.environ[FOLDER])
        for process in {int(path.stem.rpartition("_")[2]) for path in folder.glob("gauge_live*_*.db")}:
            if not _is_alive(process):
                with suppress(FileNotFoundError):  # another worker is at it
                    multiprocess.mark_process_dead(process, str(folder))  # type: ignore[no-untyped-call]
        merged = CollectorRegistry()
        multiprocess.MultiProcessCollector(merged, str(folder))  # type: ignore[no-untyped-call]
        return generate_latest(merged)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
