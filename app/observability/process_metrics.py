"""What a worker is and takes: its release, since when it serves, its processor time and its memory."""

import os
import platform
import time
from contextlib import suppress
from pathlib import Path

from app.observability import catalogue
from app.observability.instruments import counter, gauge

STARTS = counter(catalogue.WORKER_STARTS)
START_TIME = gauge(catalogue.WORKER_START_TIME)
CPU = counter(catalogue.WORKER_CPU)
MEMORY = gauge(catalogue.WORKER_MEMORY)
BUILD = gauge(catalogue.BUILD_INFO)

_MEMORY_FILE = Path("/proc/self/statm")  # Linux has it; where it is missing, so is the gauge
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ProcessMetrics:
    """Made in the worker, when it begins to serve."""

    def __init__(self, version: str) -> None:
        self._cpu = 0.0
        STARTS.inc()
        START_TIME.set(time.time())
        BUILD.labels(version, platform.python_version()).set(1)

    def publish(self) -> None:
        """Bring the metrics up to date. The counter goes on where the worker's predecessor stopped."""
        cpu = time.process_time()
        CPU.inc(cpu - self._cpu)
        self._cpu = cpu
        with suppress(FileNotFoundError):
            resident_pages = int(_MEMORY_FILE.read_text().split()[1])
            MEMORY.set(resident_pages * _PAGE_BYTES)
