import os
import time
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from app.exporter.collectors.replicas import ReplicasCollector
from app.exporter.scraper import PartialFailure
from app.observability import multiprocess

Samples = dict[tuple[str, str, str], float]


def write(directory: Path, worker: int, *, used: float, requests: float = 0, heartbeat: bool = True) -> None:
    """Write the files of a worker."""
    directory.mkdir(exist_ok=True)
    for file, kind, name, value in (
        ("gauge_liveall", "connections", "connections", used),
        ("counter", "requests", "requests_total", requests),
    ):
        values = MmapedDict(str(directory / f"{file}_{worker}.db"))
        values.write_value(mmap_key(kind, name, ["pool"], ["api"], "help"), value, 0)
        values.close()
    if heartbeat:
        (directory / f"{worker}.alive").touch()


def scrape(directory: Path) -> Samples:
    return samples(ReplicasCollector(directory).read())


def samples(metrics: list[Metric]) -> Samples:
    return {
        (sample.name, sample.labels["replica"], sample.labels.get("worker", "")): sample.value
        for family in metrics
        for sample in family.samples
    }


def test_workers_of_all_replicas_are_merged(tmp_path: Path) -> None:
    write(tmp_path / "a", 1, used=2, requests=10)
    write(tmp_path / "a", 2, used=3, requests=20)
    write(tmp_path / "b", 1, used=5, requests=40)

    assert scrape(tmp_path) == {
        ("connections", "a", "1"): 2,
        ("connections", "a", "2"): 3,
        ("connections", "b", "1"): 5,
        ("requests_total", "a", ""): 30,
        ("requests_total", "b", ""): 40,
    }


def test_worker_with_an_old_heartbeat_keeps_only_its_counters(tmp_path: Path) -> None:
    write(tmp_path / "a", 1, used=2, requests=10)
    write(tmp_path / "a", 2, used=3, requests=20)
    long_ago = time.time() - multiprocess.STALE_AFTER_SECONDS - 1
    os.utime(tmp_path / "a" / "2.alive", (long_ago, long_ago))

    assert scrape(tmp_path) == {("connections", "a", "1"): 2, ("requests_total", "a", ""): 30}


def test_worker_without_a_heartbeat_has_no_gauges(tmp_path: Path) -> None:
    write(tmp_path / "a", 1, used=2, heartbeat=False)

    assert ("connections", "a", "1") not in scrape(tmp_path)


def test_empty_file_is_ignored(tmp_path: Path) -> None:
    write(tmp_path / "a", 1, used=2)
    (tmp_path / "a" / "gauge_liveall_2.db").touch()
    (tmp_path / "a" / "2.alive").touch()

    assert scrape(tmp_path)["connections", "a", "1"] == 2


def test_file_removed_during_a_scrape_skips_its_replica_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a", 1, used=2)
    write(tmp_path / "b", 1, used=3)
    read = MmapedDict.read_all_values_from_file

    def read_or_vanish(name: str) -> object:
        if "/a/" in name:
            raise FileNotFoundError(name)
        return read(name)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(MmapedDict, "read_all_values_from_file", read_or_vanish)

    assert scrape(tmp_path) == {("connections", "b", "1"): 3, ("requests_total", "b", ""): 0}


def test_missing_directory_has_no_metrics(tmp_path: Path) -> None:
    assert scrape(tmp_path / "missing") == {}
    assert scrape(tmp_path) == {}


@pytest.mark.parametrize(
    "content", [b"abc", b"\x7f" * 64, b"\x40\x00\x00\x00" + b"\x00" * 60], ids=["short", "noise", "torn"]
)
def test_damaged_file_is_named_and_the_others_are_read(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "a", 1, used=2, requests=10)
    (tmp_path / "a" / "counter_2.db").write_bytes(content)

    with pytest.raises(PartialFailure, match=r"a/counter_2.db") as failure:
        ReplicasCollector(tmp_path).read()

    assert samples(failure.value.metrics) == {("connections", "a", "1"): 2, ("requests_total", "a", ""): 10}


def test_dead_replica_is_ignored(tmp_path: Path) -> None:
    write(tmp_path / "a", 1, used=2, requests=10)
    write(tmp_path / "b", 1, used=3, requests=20)
    long_ago = time.time() - multiprocess.REMOVE_AFTER_SECONDS - 1
    for path in (*(tmp_path / "a").iterdir(), tmp_path / "a"):
        os.utime(path, (long_ago, long_ago))

    assert {labels for _, labels, _ in scrape(tmp_path)} == {"b"}
