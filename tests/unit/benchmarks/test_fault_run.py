"""A run of the fault harness: what it leaves out, what it survives, and how it is interrupted."""

import signal
from pathlib import Path

import pytest

from benchmarks.fault import __main__ as program
from benchmarks.fault.__main__ import Run, chosen_faults, main, missing_requirement
from benchmarks.fault.interrupts import deferred, interruptible
from benchmarks.fault.topology import ASYNCPG, PSYCOPG_PGBOUNCER


@pytest.mark.parametrize(
    ("name", "setup", "is_root", "has_engine", "expected"),
    [
        ("PostgreSQL: killed", ASYNCPG, False, False, None),
        ("PostgreSQL: killed", PSYCOPG_PGBOUNCER, False, False, "needs a Docker engine"),
        ("PostgreSQL: killed", PSYCOPG_PGBOUNCER, False, True, None),
        ("PostgreSQL: disk full", ASYNCPG, False, True, "needs root"),
        ("PostgreSQL: DNS silent", ASYNCPG, False, True, "needs root"),
        ("PostgreSQL: disk full", ASYNCPG, True, False, None),
        ("Container: killed", ASYNCPG, True, False, "needs a Docker engine"),
    ],
)
def test_trial_states_what_the_machine_lacks(
    name: str, setup: str, is_root: bool, has_engine: bool, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0 if is_root else 1000)
    monkeypatch.setattr(program, "has_engine", lambda: has_engine)
    [fault] = chosen_faults([name])

    assert missing_requirement(fault, setup) == expected


def test_trial_whose_stack_does_not_start_has_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the API did not become ready: first line\nsecond | line\nlast line")

    monkeypatch.setattr(program, "Template", lambda *_: None)
    monkeypatch.setattr(program, "Topology", fail)
    [fault] = chosen_faults(["PostgreSQL: killed"])

    row = Run(tmp_path, tmp_path, 1.0).trial(fault, ASYNCPG)

    assert row.note == "no result: RuntimeError: the API did not become ready: first line last line"
    assert row.comparison is None


def test_unknown_fault_is_reported_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "nonsense"]) == 2
    assert capsys.readouterr().err == "benchmarks.fault: --only: no fault matches nonsense; see --list\n"


def test_list_shows_the_faults_and_their_setups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--only", "PgBouncer: killed"]) == 0
    assert capsys.readouterr().out == "PgBouncer: killed (psycopg-pgbouncer)\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_interrupts_a_run_at_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(number)

    assert signal.getsignal(number) == before


def test_signal_waits_while_programs_are_started() -> None:
    reached = []
    with interruptible(), pytest.raises(KeyboardInterrupt):
        with deferred():
            with deferred():
                signal.raise_signal(signal.SIGTERM)
                reached.append("inner")
            reached.append("outer")
        reached.append("after")

    assert reached == ["inner", "outer"]
