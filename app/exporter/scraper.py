"""One scrape: every collector asked at once, and an answer in time whatever they do."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import NamedTuple, Protocol

from prometheus_client import Metric

from app.errors import DatabaseUnavailable
from app.observability.catalogue import COLLECTOR_DURATION, COLLECTOR_SUCCESS, Described

logger = logging.getLogger(__name__)


class Incomplete(Exception):
    """A collector could do its part only partly. `metrics` are what it has."""

    def __init__(self, reason: str, metrics: list[Metric]) -> None:
        super().__init__(reason)
        self.metrics = metrics


class Collector(Protocol):
    """One source of metrics."""

    name: str

    async def collect(self) -> list[Metric]:
        """Its metrics now. Raises DatabaseUnavailable, OSError, Incomplete."""

    def absent(self) -> list[Metric]:
        """What is to be said when it failed, or was not ready in time."""


class Part(NamedTuple):
    """What became of a collector: its metrics, how many seconds it took, and why it failed, if it did."""

    collector: str
    metrics: list[Metric]
    seconds: float
    failure: str | None = None


class Scrape:
    """The parts of one scrape. What prometheus_client calls a registry, as far as its encoders go."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts

    def collect(self) -> Iterator[Metric]:
        for part in self.parts:
            yield from part.metrics
        success, duration = family(COLLECTOR_SUCCESS), family(COLLECTOR_DURATION)
        for part in self.parts:
            labels = {"collector": part.collector}
            success.add_sample(success.name, labels, part.failure is None)
            duration.add_sample(duration.name, labels, part.seconds)
        yield from (success, duration)


class Scraper:
    """Asks the collectors. One that is not done within `deadline` seconds is left to go on, and its metrics are left
    out: a database that hangs costs the scrape the database's part. The next scrape waits for it, too, and does not ask
    again before it is done, so that never more than one question is under way."""

    def __init__(self, collectors: Sequence[Collector], deadline: float) -> None:
        self._collectors = collectors
        self._deadline = deadline
        self._running: dict[str, asyncio.Task[Part]] = {}
        self._failures: dict[str, str | None] = {}

    async def scrape(self) -> Scrape:
        tasks = [self._task(collector) for collector in self._collectors]
        await asyncio.wait(tasks, timeout=self._deadline)
        parts = [
            task.result()
            if task.done()
            else Part(collector.name, collector.absent(), self._deadline, "it was not ready in time")
            for collector, task in zip(self._collectors, tasks, strict=True)
        ]
        for part in parts:
            self._log(part)
        return Scrape(parts)

    async def close(self) -> None:
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _task(self, collector: Collector) -> asyncio.Task[Part]:
        task = self._running.get(collector.name)
        if task is None or task.done():
            task = self._running[collector.name] = asyncio.create_task(_part(collector), name=collector.name)
        return task

    def _log(self, part: Part) -> None:
        """Once, when a collector begins to fail, and when it works again."""
        if part.failure and not self._failures.get(part.collector):
            logger.warning("the collector %s fails: %s", part.collector, part.failure)
        elif self._failures.get(part.collector) and not part.failure:
            logger.info("the collector %s works again", part.collector)
        self._failures[part.collector] = part.failure


async def _part(collector: Collector) -> Part:
    started = perf_counter()
    failure = None
    try:
        metrics = await collector.collect()
    except Incomplete as error:
        metrics, failure = error.metrics, str(error)
    except (DatabaseUnavailable, OSError) as error:
        metrics, failure = collector.absent(), str(error).strip().partition("\n")[0] or type(error).__name__
    return Part(collector.name, metrics, perf_counter() - started, failure)


def family(described: Described) -> Metric:
    """An empty family of the catalogue's."""
    return Metric(described.name.removesuffix("_total"), described.help, described.kind)


def one(described: Described, value: float, **labels: str) -> Metric:
    """A family of one sample."""
    return many(described, [(labels, value)])


def many(described: Described, samples: Sequence[tuple[dict[str, str], float]]) -> Metric:
    """A family of samples: labels and value."""
    metric = family(described)
    for labels, value in samples:
        metric.add_sample(described.name, labels, value)
    return metric
