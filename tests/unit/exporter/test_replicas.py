"""Putting the files of many workers together, without any worker."""

import os
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.parser import text_string_to_metric_families

from app.exporter.replicas import ReplicaCollector
from app.observability import replica

Samples = dict[tuple[str, str, str], float]


def write(directory: Path, worker: int, *, used: float, requests: float = 0, beat: bool = True) -> None:
    """What a worker leaves behind."""
    directory.mkdir(exist_ok=True)
    for file, kind, name, value in (
        ("gauge_liveall", "connections", "connections", used),
        ("counter", "requests", "requests_total", requests),
    ):
        values = MmapedDict(str(directory / f"{file}_{worker}.db"))
        values.write_value(mmap_key(kind, name, ["pool"], ["api"], "help"), value, 0)
        values.close()
    if beat:
        (directory / f"{worker}.alive").touch()


def scrape(directory: Path) -> Samples:
    registry = CollectorRegistry()
    registry.register(ReplicaCollector(directory))
    return {
        (sample.name, sample.labels["replica"], sample.labels.get("worker", "")): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def test_every_worker_of_every_replica_counts(tmp_path: Path) -> None:
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


def test_a_worker_whose_heart_stopped_loses_its_gauges_and_keeps_its_counters(tmp_path: Path) -> None:
    write(tmp_path / "a", 1, used=2, requests=10)
    write(tmp_path / "a", 2, used=3, requests=20)
    long_ago = time.time() - replica.STALE_AFTER_SECONDS - 1
    os.utime(tmp_path / "a" / "2.alive", (long_ago, long_ago))

    assert scrape(tmp_path) == {("connections", "a", "1"): 2, ("requests_total", "a", ""): 30}


def test_gauges_without_a_heartbeat_do_not_count(tmp_path: Path) -> None:
    write(tmp_path / "a", 1, used=2, beat=False)

    assert ("connections", "a", "1") not in scrape(tmp_path)


def test_a_file_that_was_just_created_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "a", 1, used=2)
    (tmp_path / "a" / "gauge_liveall_2.db").touch()
    (tmp_path / "a" / "2.alive").touch()

    assert scrape(tmp_path)["connections", "a", "1"] == 2


def test_a_file_that_vanishes_during_the_scrape_costs_its_replica_one_scrape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a", 1, used=2)
    write(tmp_path / "b", 1, used=3)
    read = MmapedDict.read_all_values_from_file

    def vanish(name: str) -> object:
        if "/a/" in name:
            raise FileNotFoundError(name)
        return read(name)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(MmapedDict, "read_all_values_from_file", vanish)

    assert scrape(tmp_path) == {("connections", "b", "1"): 3, ("requests_total", "b", ""): 0}


def test_there_may_be_no_replica_yet(tmp_path: Path) -> None:
    assert scrape(tmp_path / "missing") == {}
    assert scrape(tmp_path) == {}
