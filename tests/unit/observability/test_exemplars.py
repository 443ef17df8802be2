"""From the span that waits for a connection to the text that Prometheus reads."""

import json
from errno import ENOSPC
from math import inf
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from prometheus_client.exposition import choose_encoder
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Exemplar

from app.database.pool_events import PoolState
from app.exporter.collectors.replicas import ReplicasCollector
from app.exporter.scraper import CollectorResult, PartialFailure, Scrape
from app.observability import catalogue, multiprocess
from app.observability.exemplars import Exemplars
from app.observability.instruments import BUCKET_SECONDS
from app.observability.span_events import TracedPoolMetrics

STATE = PoolState(size=1, max_overflow=0, idle=1, used=0, waiting=0)
TRACE, SPAN = 0xABC, 0xDEF
TRACE_ID, SPAN_ID = f"{TRACE:032x}", f"{SPAN:016x}"


class Recording(NonRecordingSpan):
    def is_recording(self) -> bool:
        return True


def span(trace_id: int = TRACE, *, sampled: bool = True) -> Recording:
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    return Recording(SpanContext(trace_id, SPAN, is_remote=False, trace_flags=flags))


@pytest.fixture
def replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the metrics directory of a replica, which has a histogram of waits in two pools."""
    directory = tmp_path / "replica"
    directory.mkdir()
    monkeypatch.setattr(multiprocess, "_directory", directory)
    name = catalogue.POOL_WAIT.name
    values = MmapedDict(str(directory / "histogram_1.db"))
    for pool in ("api", "read"):
        for bound in (*BUCKET_SECONDS, inf):
            labels = {"pool": pool, "le": "+Inf" if bound == inf else str(bound)}
            key = mmap_key(name, f"{name}_bucket", list(labels), list(labels.values()), "help")
            values.write_value(key, 1.0, 0.0)
        values.write_value(mmap_key(name, f"{name}_sum", ["pool"], [pool], "help"), 3.0, 0.0)
    values.close()
    return directory


def scraped(directory: Path) -> dict[tuple[str, str], Exemplar]:
    """Return the exemplars that a scraper of OpenMetrics finds, by pool and upper bound."""
    text = export(directory, "application/openmetrics-text; version=1.0.0")
    return {
        (sample.labels["pool"], sample.labels["le"]): sample.exemplar
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.exemplar
    }


def export(directory: Path, accept: str) -> str:
    encode, _ = choose_encoder(accept)
    metrics = ReplicasCollector(directory.parent).read()
    return encode(Scrape([CollectorResult("replicas", metrics, 0.1)])).decode()


def test_wait_of_a_sampled_span_is_the_exemplar_of_its_bucket(replica: Path) -> None:
    metrics = TracedPoolMetrics("api")
    with trace.use_span(span()):
        metrics.acquired(0.003)
        metrics.acquired(20.0)
    metrics.publish(STATE)

    found = scraped(replica)

    assert {key: (exemplar.labels, exemplar.value) for key, exemplar in found.items()} == {
        ("api", "0.005"): ({"trace_id": TRACE_ID, "span_id": SPAN_ID}, 0.003),
        ("api", "+Inf"): ({"trace_id": TRACE_ID, "span_id": SPAN_ID}, 20.0),
    }


def test_span_that_is_not_sampled_leaves_no_exemplar(replica: Path) -> None:
    metrics = TracedPoolMetrics("api")
    with trace.use_span(span(sampled=False)):
        metrics.acquired(0.003)
    metrics.acquired(0.003)  # outside a span
    metrics.publish(STATE)

    assert scraped(replica) == {}
    assert list(replica.glob("*.exemplars")) == []


def test_latest_of_all_workers_counts(replica: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for slot, trace_id in (("2", 1), ("1", 2)):
        monkeypatch.setattr(multiprocess, "_slot", slot)
        exemplars = Exemplars(catalogue.POOL_WAIT, pool="api")
        exemplars.keep(0.003, f"{trace_id:032x}", SPAN_ID)
        exemplars.publish()

    assert scraped(replica)["api", "0.005"].labels["trace_id"] == f"{2:032x}"


def test_unchanged_exemplars_are_not_written_again(replica: Path) -> None:
    exemplars = Exemplars(catalogue.POOL_WAIT, pool="api")
    exemplars.keep(0.003, TRACE_ID, SPAN_ID)
    exemplars.publish()
    [path] = replica.glob("*.exemplars")
    path.unlink()

    exemplars.publish()
    assert not path.exists()

    exemplars.keep(0.003, TRACE_ID, SPAN_ID)
    exemplars.publish()
    assert path.exists()


def test_full_disk_costs_only_the_exemplars(replica: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(ENOSPC, "No space left on device")

    exemplars = Exemplars(catalogue.POOL_WAIT, pool="api")
    exemplars.keep(0.003, TRACE_ID, SPAN_ID)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fail)
        exemplars.publish()
    assert scraped(replica) == {}

    exemplars.publish()
    assert ("api", "0.005") in scraped(replica)


def test_damaged_file_is_named_and_costs_no_metric(replica: Path) -> None:
    (replica / "1_db_pool_wait_seconds_api.exemplars").write_text('{"metric": ')

    with pytest.raises(PartialFailure, match=r"replica/1_db_pool_wait_seconds_api\.exemplars") as caught:
        ReplicasCollector(replica.parent).read()

    assert [metric.name for metric in caught.value.metrics] == [catalogue.POOL_WAIT.name]


def test_text_format_has_no_exemplars(replica: Path) -> None:
    exemplars = Exemplars(catalogue.POOL_WAIT, pool="api")
    exemplars.keep(0.003, TRACE_ID, SPAN_ID)
    exemplars.publish()

    assert TRACE_ID not in export(replica, "text/plain")


def test_process_without_a_directory_writes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(multiprocess, "_directory", None)
    monkeypatch.chdir(tmp_path)
    exemplars = Exemplars(catalogue.POOL_WAIT, pool="api")
    exemplars.keep(0.003, TRACE_ID, SPAN_ID)
    exemplars.publish()

    assert list(tmp_path.iterdir()) == []
    assert json.dumps(list(exemplars._latest)) == "[0.005]"
