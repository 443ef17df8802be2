"""Metrics of a worker process: its release, start time, CPU time and memory."""

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

_MEMORY_FILE = Path("/proc/self/statm")  # Linux only; without it, the memory gauge is absent
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ProcessMetrics:
    """Records a worker start, and publishes the worker's CPU time and memory. Create it when the worker starts."""

    def __init__(self, version: str) -> None:
        self._cpu = 0.0
        STARTS.inc()
        START_TIME.set(time.time())
        BUILD.labels(version, platform.python_version()).set(1)

    def publish(self) -> None:
        """Update CPU time and memory. The CPU counter continues from the previous worker of the same slot."""
        cpu = time.process_time()
        CPU.inc(cpu - self._cpu)
        self._cpu = cpu
        with suppress(FileNotFoundError):
            resident_pages = int(_MEMORY_FILE.read_text().split()[1])
            MEMORY.set(resident_pages * _PAGE_BYTES)
