"""One scrape of several collectors, of which some are slow, and some fail."""

import asyncio
import logging

import pytest
from prometheus_client import Metric

from app.errors import DatabaseUnavailable
from app.exporter.scraper import Incomplete, Part, Scraper, one
from app.observability.catalogue import SERVER_MAX_CONNECTIONS, SERVER_UP


class Fake:
    """A collector that waits until it may go on, and then fails if it was told to."""

    def __init__(self, name: str = "server", error: Exception | None = None) -> None:
        self.name = name
        self.error = error
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.asked = 0

    async def collect(self) -> list[Metric]:
        self.asked += 1
        await self.may_go_on.wait()
        if self.error:
            raise self.error
        return [one(SERVER_UP, 1), one(SERVER_MAX_CONNECTIONS, 100)]

    def absent(self) -> list[Metric]:
        return [one(SERVER_UP, 0)]


async def scrape(scraper: Scraper) -> dict[str, float]:
    """The samples by name and, if it is the exporter's about itself, collector."""
    return {
        sample.name + sample.labels.get("collector", ""): sample.value
        for metric in (await scraper.scrape()).collect()
        for sample in metric.samples
    }


async def test_every_collector_reports_its_success_and_its_duration() -> None:
    samples = await scrape(Scraper([Fake("server")], deadline=5))

    assert samples["db_server_up"] == samples["headroom_collector_successserver"] == 1
    assert 0 < samples["headroom_collector_duration_secondsserver"] < 5


@pytest.mark.parametrize("error", [DatabaseUnavailable("gone"), OSError("refused")])
async def test_one_that_fails_costs_its_own_part_only(error: Exception) -> None:
    samples = await scrape(Scraper([Fake("server", error), Fake("other")], deadline=5))

    assert samples["headroom_collector_successserver"] == 0
    assert samples["headroom_collector_successother"] == 1


async def test_one_that_did_its_part_only_partly_failed_and_gives_what_it_has() -> None:
    samples = await scrape(Scraper([Fake(error=Incomplete("torn", [one(SERVER_MAX_CONNECTIONS, 7)]))], deadline=5))

    assert samples["db_server_max_connections"] == 7
    assert samples["headroom_collector_successserver"] == 0


async def test_one_that_hangs_is_left_out_at_the_deadline_and_is_not_asked_twice() -> None:
    collector = Fake()
    collector.may_go_on.clear()
    scraper = Scraper([collector], deadline=0.05)

    assert await scrape(scraper) == {
        "db_server_up": 0,
        "headroom_collector_successserver": 0,
        "headroom_collector_duration_secondsserver": 0.05,
    }
    await scrape(scraper)
    assert collector.asked == 1

    collector.may_go_on.set()
    assert (await scrape(scraper))["db_server_up"] == 1
    assert collector.asked == 1, "what was under way is what is waited for"
    await scrape(scraper)
    assert collector.asked == 2


async def test_scrapes_at_the_same_time_share_the_work() -> None:
    collector = Fake()
    collector.may_go_on.clear()
    scraper = Scraper([collector], deadline=5)
    both = asyncio.gather(scrape(scraper), scrape(scraper))
    await asyncio.sleep(0)
    collector.may_go_on.set()

    assert [samples["db_server_up"] for samples in await both] == [1, 1]
    assert collector.asked == 1


async def test_a_failure_is_logged_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "app.exporter.scraper")
    collector = Fake(error=OSError("refused"))
    scraper = Scraper([collector], deadline=5)
    for _ in range(3):
        await scraper.scrape()
    collector.error = None
    for _ in range(2):
        await scraper.scrape()

    assert [record.getMessage() for record in caplog.records] == [
        "the collector server fails: refused",
        "the collector server works again",
    ]


async def test_an_error_of_ours_is_not_taken_for_a_failure_of_the_source() -> None:
    with pytest.raises(KeyError):
        await Scraper([Fake(error=KeyError("ours"))], deadline=5).scrape()


def test_a_part_says_what_became_of_it() -> None:
    assert Part("server", [], 0.1).failure is None
