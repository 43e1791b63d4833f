"""What the machine does while a step runs."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

SAMPLE_SECONDS = 10.0


class SystemSampler:
    """Samples CPU, memory, disk, network and GPU with MLflow's monitors, in a thread, until it is stopped.

    Args:
        log: takes values and the number of the sample.
        seconds: between samples; a shorter step has none.
    """

    def __init__(self, log: Callable[[Mapping[str, float], int], None], seconds: float = SAMPLE_SECONDS) -> None:
        self._log, self._seconds = log, seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="system metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no further sample."""
        self._over.set()
        self._thread.join(self._seconds)

    def _work(self) -> None:
        if self._over.wait(self._seconds):
            return
        monitors = _monitors()
        began, count = time.monotonic(), 0
        while True:
            for monitor in monitors:
                monitor.collect_metrics()
            values = {f"system/{k}": float(v) for m in monitors for k, v in m.aggregate_metrics().items()}
            try:
                self._log(values, count)
            except Exception:  # a disk that is full: the step itself will meet it, and say so
                return
            for monitor in monitors:
                monitor.clear_metrics()
            count += 1
            if self._over.wait(max(0.0, began + count * self._seconds - time.monotonic())):
                return


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        return [*found, GPUMonitor()]
    except Exception:  # MLflow's own way to say that there is no GPU
        return found
