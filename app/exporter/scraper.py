"""One scrape: run every collector at the same time, and answer at the deadline without the collectors that are late."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import NamedTuple, Protocol

from prometheus_client import Metric

from app.errors import DatabaseUnavailable, first_line
from app.observability.catalogue import COLLECTOR_DURATION, COLLECTOR_SUCCESS, MetricSpec

logger = logging.getLogger(__name__)


class PartialFailure(Exception):
    """A collector obtained only some of its metrics, which are in `metrics`."""

    def __init__(self, reason: str, metrics: list[Metric]) -> None:
        super().__init__(reason)
        self.metrics = metrics


class Collector(Protocol):
    """One source of metrics. `name` is the value of the label `collector` of the metrics about it."""

    name: str

    async def collect(self) -> list[Metric]:
        """Return the current metrics. Raise DatabaseUnavailable, OSError or PartialFailure."""

    def fallback(self) -> list[Metric]:
        """Return the metrics to export instead if `collect()` failed or is late."""


class CollectorResult(NamedTuple):
    """The result of one collector: its metrics, its duration in seconds, and the reason if it failed.

    `defect` is an exception that the collector should not raise.
    """

    collector: str
    metrics: list[Metric]
    seconds: float
    failure: str | None = None
    defect: Exception | None = None


class Scrape:
    """The results of one scrape. prometheus_client's encoders accept it in place of a registry."""

    def __init__(self, results: Sequence[CollectorResult]) -> None:
        self.results = results

    def collect(self) -> Iterator[Metric]:
        """Return the metrics of every collector, then the metrics about the collectors."""
        for result in self.results:
            yield from result.metrics
        labelled = [({"collector": result.collector}, result) for result in self.results]
        yield family(COLLECTOR_SUCCESS, [(labels, result.failure is None) for labels, result in labelled])
        yield family(COLLECTOR_DURATION, [(labels, result.seconds) for labels, result in labelled])


class Scraper:
    """Runs the collectors, each one at most once at a time.

    A collector that takes more than `deadline` seconds keeps running, and its fallback is exported: a database that
    hangs costs only the database's metrics. The next scrape waits for the same run instead of starting another one.
    """

    def __init__(self, collectors: Sequence[Collector], deadline: float) -> None:
        self._collectors = collectors
        self._deadline = deadline
        self._running: dict[str, asyncio.Task[CollectorResult]] = {}
        self._failures: dict[str, str | None] = {}

    async def scrape(self) -> Scrape:
        """Run the collectors and return their results, within the deadline."""
        tasks = [self._task(collector) for collector in self._collectors]
        await asyncio.wait(tasks, timeout=self._deadline)
        late = f"not finished within {self._deadline:g} s"
        results = [
            task.result()
            if task.done()
            else CollectorResult(collector.name, collector.fallback(), self._deadline, late)
            for collector, task in zip(self._collectors, tasks, strict=True)
        ]
        for result in results:
            self._log_change(result)
        return Scrape(results)

    async def close(self) -> None:
        """Cancel the collectors that are still running."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _task(self, collector: Collector) -> asyncio.Task[CollectorResult]:
        task = self._running.get(collector.name)
        if task is None or task.done():
            task = self._running[collector.name] = asyncio.create_task(_run(collector), name=collector.name)
        return task

    def _log_change(self, result: CollectorResult) -> None:
        """Log the first failure of a collector in a row, and its recovery."""
        failed_before = self._failures.get(result.collector)
        if result.failure and not failed_before:
            logger.warning("collector %s failed: %s", result.collector, result.failure, exc_info=result.defect)
        elif failed_before and not result.failure:
            logger.info("collector %s recovered", result.collector)
        self._failures[result.collector] = result.failure


async def _run(collector: Collector) -> CollectorResult:
    started = perf_counter()
    failure, defect = None, None
    try:
        metrics = await collector.collect()
    except PartialFailure as error:
        metrics, failure = error.metrics, str(error)
    except (DatabaseUnavailable, OSError) as error:
        metrics, failure = collector.fallback(), first_line(error)
    except Exception as error:  # noqa: BLE001 - a defect of one collector must not cost the metrics of the others
        metrics, failure, defect = collector.fallback(), f"{type(error).__name__}: {first_line(error)}", error
    return CollectorResult(collector.name, metrics, perf_counter() - started, failure, defect)


def single(spec: MetricSpec, value: float, **labels: str) -> Metric:
    """Return a metric with one sample."""
    return family(spec, [(labels, value)])


def family(spec: MetricSpec, samples: Sequence[tuple[dict[str, str], float]]) -> Metric:
    """Return a metric with samples: pairs of labels and value."""
    metric = Metric(spec.name.removesuffix("_total"), spec.help, spec.kind)
    for labels, value in samples:
        metric.add_sample(spec.name, labels, value)
    return metric
