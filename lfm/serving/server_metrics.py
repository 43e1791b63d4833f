"""What a server tells Prometheus, over all its workers.

Workers share a folder of counters (PROMETHEUS_MULTIPROC_DIR, which the supervisor sets before any worker starts).
"""

import os
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

REQUESTS = Counter("lfm_requests", "Requests answered.", ["path", "status"])
LATENCY = Histogram("lfm_request_seconds", "From a request's first byte to its answer.", ["path"], buckets=SECONDS)
IMAGES = Counter("lfm_images", "Images classified.")
IN_FLIGHT = Gauge("lfm_requests_in_flight", "Requests being worked on or waiting.", multiprocess_mode="livesum")
BATCH = Histogram("lfm_batch_images", "Images of one pass through the model.", buckets=(1, 2, 4, 8, 16, 32, 64))


def exposition() -> tuple[bytes, str]:
    """The page for Prometheus, and its content type."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
    for path in Path(folder).glob("gauge_live*.db"):  # a killed worker's requests are in flight no more
        pid = path.stem.rpartition("_")[2]
        if not Path(f"/proc/{pid}").exists():
            mark_process_dead(int(pid))
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return generate_latest(registry), CONTENT_TYPE_LATEST
