"""The replica's directory, with real processes that fork: prometheus_client decides at import where values live."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.observability import multiprocess
from tests.support.waiting import eventually

MASTER = """
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
        multiprocess.enter_worker(slot)
        requests.inc(count - 1)
        for number in range(1_000):  # more than a file has room for at first
            many.labels(str(number)).inc()
        requests.inc()
        used.labels("api").set(count)
        with multiprocess.Heartbeat(lambda: None):
            os._exit(0)
    os.waitpid(pid, 0)

work(1, 10); work(2, 20)
multiprocess.leave_worker(1)
work(1, 5)
multiprocess.leave_worker(2)
from app.exporter.collectors.replicas import ReplicasCollector
families = ReplicasCollector(directory.parent).read()
print(json.dumps({f"{s.name}/{s.labels.get('worker', '')}": s.value for f in families for s in f.samples}))
print(json.dumps(sorted(path.name for path in directory.iterdir())))
"""


READER = """
import os, sys, time
from pathlib import Path
from app.observability import multiprocess
directory = Path(sys.argv[1])
multiprocess.open_directory(directory)
from prometheus_client import Counter
from prometheus_client.mmap_dict import MmapedDict
requests = Counter("requests", "help")
multiprocess.enter_worker(1)
requests.inc()
pid = os.fork()
if pid == 0:
    end = time.monotonic() + 1
    while time.monotonic() < end:
        requests.inc()
    os._exit(0)
file = MmapedDict(directory / "counter_1.db", read_mode=True)
went_down = last = 0
while os.waitpid(pid, os.WNOHANG)[0] == 0:
    [(_, value, _)] = file.read_all_values()
    went_down += value < last
    last = value
print(went_down, last > 1)
"""


def run(program: str, directory: Path) -> str:
    command = [sys.executable, "-c", program, str(directory)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], list[str]]:
    directory = tmp_path_factory.mktemp("metrics") / "replica"
    directory.mkdir()
    (directory / "counter_1.db").write_bytes(b"of an earlier life")
    samples, files = (json.loads(line) for line in run(MASTER, directory).splitlines())
    return samples, files


def test_a_replacement_goes_on_counting_where_its_predecessor_stopped(
    outcome: tuple[dict[str, float], list[str]],
) -> None:
    samples, _ = outcome

    assert samples["requests_total/"] == 1 + 10 + 20 + 5


def test_counting_goes_on_when_a_workers_file_has_to_grow(outcome: tuple[dict[str, float], list[str]]) -> None:
    samples, _ = outcome

    assert samples["many_total/"] == 3


def test_a_worker_that_left_has_no_gauges(outcome: tuple[dict[str, float], list[str]]) -> None:
    samples, _ = outcome

    assert samples["used/1"] == 5
    assert "used/2" not in samples


def test_a_replacement_adds_no_files(outcome: tuple[dict[str, float], list[str]]) -> None:
    _, files = outcome

    assert files == ["1.alive", "counter_0.db", "counter_1.db", "counter_2.db", "gauge_liveall_1.db"]


def test_a_counter_never_goes_down_for_who_reads_it_while_it_counts(tmp_path: Path) -> None:
    assert run(READER, tmp_path / "replica").split() == ["0", "True"]


def test_folders_of_replicas_that_are_long_dead_are_removed(tmp_path: Path) -> None:
    for name, age in (("alive", 0), ("resting", 60), ("dead", multiprocess.LONG_DEAD_SECONDS + 1)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "1.alive").touch()
        for path in (folder / "1.alive", folder):
            os.utime(path, (time.time() - age,) * 2)
    program = "import sys; from pathlib import Path; from app.observability import multiprocess\n"
    program += "for _ in range(2): multiprocess.open_directory(Path(sys.argv[1]))"

    run(program, tmp_path / "new")

    assert {folder.name for folder in tmp_path.iterdir()} == {"alive", "resting", "new"}


def test_a_disk_that_was_full_does_not_stop_the_heart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    beats: list[int] = []

    def publish() -> None:
        beats.append(1)
        if len(beats) == 2:
            raise OSError("no space left on device")

    monkeypatch.setattr(multiprocess, "HEARTBEAT_SECONDS", 0.01)
    with multiprocess.Heartbeat(publish):
        eventually(lambda: len(beats) > 3, within=5)


def test_a_directory_that_is_chosen_too_late_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="prometheus_client was imported before"):
        multiprocess.open_directory(tmp_path)
