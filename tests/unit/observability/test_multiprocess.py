"""The metrics directory of a replica, in subprocesses: prometheus_client decides at import where values live."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.observability import multiprocess
from tests.support.waiting import eventually

REPLACE_WORKERS = """
import json, os, sys
from pathlib import Path
from app.observability import multiprocess
directory = Path(sys.argv[1])
multiprocess.open_directory(directory)
from prometheus_client import Counter, Gauge
requests = Counter("requests", "help")
used = Gauge("used", "help", ["pool"], multiprocess_mode="liveall")
many = Counter("many", "help", ["number"])
requests.inc()

def work(slot, count):
    pid = os.fork()
    if pid == 0:
        multiprocess.assign_slot(slot)
        requests.inc(count - 1)
        for number in range(1_000):  # the mapped file has to grow
            many.labels(str(number)).inc()
        requests.inc()
        used.labels("api").set(count)
        with multiprocess.Heartbeat(lambda: None):
            os._exit(0)
    os.waitpid(pid, 0)

work(1, 10); work(2, 20)
multiprocess.release_slot(1)
work(1, 5)
multiprocess.release_slot(2)
from app.exporter.collectors.replicas import ReplicasCollector
families = ReplicasCollector(directory.parent).read()
print(json.dumps({f"{s.name}/{s.labels.get('worker', '')}": s.value for f in families for s in f.samples}))
print(json.dumps(sorted(path.name for path in directory.iterdir())))
"""


READ_WHILE_COUNTING = """
import os, sys, time
from pathlib import Path
from app.observability import multiprocess
directory = Path(sys.argv[1])
multiprocess.open_directory(directory)
from prometheus_client import Counter
from prometheus_client.mmap_dict import MmapedDict
requests = Counter("requests", "help")
multiprocess.assign_slot(1)
requests.inc()
pid = os.fork()
if pid == 0:
    end = time.monotonic() + 1
    while time.monotonic() < end:
        requests.inc()
    os._exit(0)
file = MmapedDict(directory / "counter_1.db", read_mode=True)
decreases = last = 0
while os.waitpid(pid, os.WNOHANG)[0] == 0:
    [(_, value, _)] = file.read_all_values()
    decreases += value < last
    last = value
print(decreases, last > 1)
"""


def run(program: str, directory: Path) -> str:
    command = [sys.executable, "-c", program, str(directory)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], list[str]]:
    directory = tmp_path_factory.mktemp("metrics") / "replica"
    directory.mkdir()
    (directory / "counter_1.db").write_bytes(b"left by an earlier container")
    samples, files = (json.loads(line) for line in run(REPLACE_WORKERS, directory).splitlines())
    return samples, files


def test_replacement_worker_continues_the_counter(outcome: tuple[dict[str, float], list[str]]) -> None:
    samples, _ = outcome

    assert samples["requests_total/"] == 1 + 10 + 20 + 5


def test_counter_continues_when_the_mapped_file_grows(outcome: tuple[dict[str, float], list[str]]) -> None:
    samples, _ = outcome

    assert samples["many_total/"] == 3


def test_released_slot_has_no_gauges(outcome: tuple[dict[str, float], list[str]]) -> None:
    samples, _ = outcome

    assert samples["used/1"] == 5
    assert "used/2" not in samples


def test_replacement_worker_adds_no_files(outcome: tuple[dict[str, float], list[str]]) -> None:
    _, files = outcome

    assert files == ["1.alive", "counter_0.db", "counter_1.db", "counter_2.db", "gauge_liveall_1.db"]


def test_counter_read_during_increments_never_decreases(tmp_path: Path) -> None:
    assert run(READ_WHILE_COUNTING, tmp_path / "replica").split() == ["0", "True"]


def test_open_directory_removes_directories_of_dead_replicas(tmp_path: Path) -> None:
    for name, age in (("alive", 0), ("paused", 60), ("dead", multiprocess.REMOVE_AFTER_SECONDS + 1)):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "1.alive").touch()
        for path in (directory / "1.alive", directory):
            os.utime(path, (time.time() - age,) * 2)
    program = "import sys; from pathlib import Path; from app.observability import multiprocess\n"
    program += "for _ in range(2): multiprocess.open_directory(Path(sys.argv[1]))"

    run(program, tmp_path / "new")

    assert {directory.name for directory in tmp_path.iterdir()} == {"alive", "paused", "new"}


OPEN = "import sys; from pathlib import Path; from app.observability import multiprocess\n"
OPEN += "try: multiprocess.open_directory(Path(sys.argv[1]))\nexcept FileExistsError as error: print(error)"


def test_open_directory_keeps_what_is_no_directory_of_a_replica(tmp_path: Path) -> None:
    """METRICS_DIR=.data, where `make run` keeps the data of PostgreSQL."""
    for name in ("postgres/base", "backups"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1").touch()
    (tmp_path / "log").touch()
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.utime(path, (time.time() - 10 * multiprocess.REMOVE_AFTER_SECONDS,) * 2)

    assert run(OPEN, tmp_path / "new") == ""
    assert run(OPEN, tmp_path / "backups").endswith("has other files than metrics: choose an empty directory\n")

    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert names == {"postgres", "postgres/base", "postgres/base/1", "backups", "backups/1", "log", "new"}


def test_heartbeat_continues_after_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published = 0

    def publish() -> None:
        nonlocal published
        published += 1
        if published == 2:
            raise OSError("no space left on device")

    monkeypatch.setattr(multiprocess, "HEARTBEAT_SECONDS", 0.01)
    with multiprocess.Heartbeat(publish):
        eventually(lambda: published > 3, within=60)


def test_open_directory_after_the_import_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="prometheus_client was imported before"):
        multiprocess.open_directory(tmp_path)
