import asyncio
import logging

import pytest
from prometheus_client import Metric

from app.errors import DatabaseUnavailable
from app.exporter.scraper import CollectorResult, PartialFailure, Scraper, single
from app.observability.catalogue import SERVER_MAX_CONNECTIONS, SERVER_UP


class FakeCollector:
    """A collector that finishes when `may_finish` is set, and then raises `error` if there is one."""

    def __init__(self, name: str = "server", error: Exception | None = None) -> None:
        self.name = name
        self.error = error
        self.may_finish = asyncio.Event()
        self.may_finish.set()
        self.runs = 0

    async def collect(self) -> list[Metric]:
        self.runs += 1
        await self.may_finish.wait()
        if self.error:
            raise self.error
        return [single(SERVER_UP, 1), single(SERVER_MAX_CONNECTIONS, 100)]

    def fallback(self) -> list[Metric]:
        return [single(SERVER_UP, 0)]


async def scrape(scraper: Scraper) -> dict[str, float]:
    """Return the samples by name. The name of a metric about a collector is followed by the collector's name."""
    return {
        sample.name + sample.labels.get("collector", ""): sample.value
        for metric in (await scraper.scrape()).collect()
        for sample in metric.samples
    }


async def test_collector_has_success_and_duration_metrics() -> None:
    samples = await scrape(Scraper([FakeCollector("server")], deadline=60))

    assert samples["db_server_up"] == samples["headroom_collector_successserver"] == 1
    assert 0 < samples["headroom_collector_duration_secondsserver"] < 60


@pytest.mark.parametrize("error", [DatabaseUnavailable("gone"), OSError("refused")])
async def test_failing_collector_does_not_affect_the_others(error: Exception) -> None:
    samples = await scrape(Scraper([FakeCollector("server", error), FakeCollector("other")], deadline=60))

    assert samples["headroom_collector_successserver"] == 0
    assert samples["headroom_collector_successother"] == 1


async def test_defect_of_a_collector_is_logged_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    scraper = Scraper([FakeCollector("server", KeyError("a column")), FakeCollector("other")], deadline=60)

    for _ in range(2):
        samples = await scrape(scraper)

    assert (samples["db_server_up"], samples["headroom_collector_successserver"]) == (1, 0)
    assert samples["headroom_collector_successother"] == 1
    [record] = caplog.records
    assert record.getMessage() == "collector server failed: KeyError: 'a column'"
    assert record.exc_info is not None


async def test_partial_failure_exports_the_metrics_it_has() -> None:
    error = PartialFailure("torn", [single(SERVER_MAX_CONNECTIONS, 7)])
    samples = await scrape(Scraper([FakeCollector(error=error)], deadline=60))

    assert samples["db_server_max_connections"] == 7
    assert samples["headroom_collector_successserver"] == 0


async def test_late_collector_is_replaced_by_its_fallback_and_not_restarted() -> None:
    collector = FakeCollector()
    collector.may_finish.clear()
    scraper = Scraper([collector], deadline=0.05)

    assert await scrape(scraper) == {
        "db_server_up": 0,
        "headroom_collector_successserver": 0,
        "headroom_collector_duration_secondsserver": 0.05,
    }
    await scrape(scraper)
    assert collector.runs == 1

    collector.may_finish.set()
    assert (await scrape(scraper))["db_server_up"] == 1
    assert collector.runs == 1, "the scrape waits for the run in progress"
    await scrape(scraper)
    assert collector.runs == 2


async def test_concurrent_scrapes_share_one_run() -> None:
    collector = FakeCollector()
    collector.may_finish.clear()
    scraper = Scraper([collector], deadline=60)
    both = asyncio.gather(scrape(scraper), scrape(scraper))
    await asyncio.sleep(0)
    collector.may_finish.set()

    assert [samples["db_server_up"] for samples in await both] == [1, 1]
    assert collector.runs == 1


async def test_failure_and_recovery_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "app.exporter.scraper")
    collector = FakeCollector(error=OSError("refused"))
    scraper = Scraper([collector], deadline=60)
    for _ in range(3):
        await scraper.scrape()
    collector.error = None
    for _ in range(2):
        await scraper.scrape()

    assert [record.getMessage() for record in caplog.records] == [
        "collector server failed: refused",
        "collector server recovered",
    ]


def test_collector_result_without_failure_is_a_success() -> None:
    assert CollectorResult("server", [], 0.1).failure is None
