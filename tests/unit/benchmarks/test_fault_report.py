"""The table of the fault harness."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fault.__main__ import chosen_faults
from benchmarks.fault.faults import FAULTS
from benchmarks.fault.ledger import Comparison
from benchmarks.fault.report import COLUMNS, cells, replace_section, section, tables, violations
from benchmarks.fault.traffic import Exchange, Failure
from benchmarks.fault.trial import Fault, Row, summarise

CLEAN = Comparison(
    acknowledged=10,
    acknowledged_missing=0,
    refused=2,
    refused_present=0,
    unanswered_present=1,
    unanswered_absent=3,
    stored_twice=0,
)
ROW = Row(
    setup="asyncpg",
    group="PostgreSQL",
    fault="restarted",
    fault_seconds=0.5,
    requests=20,
    succeeded=15,
    unavailable=5,
    others={},
    slowest=1.25,
    recovery=0.04,
    comparison=CLEAN,
)
FAULT = Fault("restarted", "PostgreSQL", lambda _: None)


def summary(*exchanges: Exchange, observed_until: float = 110.0) -> Row:
    """Summarise a trial whose fault lasted from second 95 to second 100."""
    return summarise(
        FAULT,
        "asyncpg",
        list(exchanges),
        CLEAN,
        started=95.0,
        ended=100.0,
        observed_until=observed_until,
        leaked=0,
        tracebacks=0,
    )


def test_row_without_errors_has_no_bold_cell() -> None:
    line = dict(zip(COLUMNS, cells(ROW), strict=True))

    assert "**" not in "".join(line.values())
    assert line["fault"] == "PostgreSQL: restarted"
    assert (line["acknowledged, missing"], line["unanswered, present/absent"]) == ("10, 0", "1/3")


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"others": {"500": 3}}, "other"),
        ({"broken": 1}, "broken"),
        ({"silent": 1}, "no answer"),
        ({"slowest": 20.0}, "slowest s"),
        ({"recovery": None}, "recovery s"),
        ({"comparison": CLEAN._replace(acknowledged_missing=1)}, "acknowledged, missing"),
        ({"comparison": CLEAN._replace(refused_present=1)}, "refused, present"),
        ({"comparison": CLEAN._replace(stored_twice=1)}, "stored twice"),
        ({"wrong": 1}, "wrong"),
        ({"leaked": 1}, "leaked"),
        ({"tracebacks": 1}, "tracebacks"),
    ],
)
def test_error_is_bold_in_its_column(change: dict[str, object], column: str) -> None:
    line = dict(zip(COLUMNS, cells(replace(ROW, **change)), strict=True))  # type: ignore[arg-type]

    assert [name for name, cell in line.items() if "**" in cell] == [column]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"others": {"500": 3}}, "3 answers are 500"),
        ({"silent": 1}, "1 requests have no answer"),
        ({"wrong": 2}, "2 answers are wrong"),
        ({"leaked": 1}, "1 connections leaked"),
        ({"comparison": CLEAN._replace(acknowledged_missing=4)}, "4 acknowledged writes are missing"),
        ({"comparison": CLEAN._replace(refused_present=1)}, "1 refused writes are present"),
        ({"comparison": CLEAN._replace(stored_twice=1)}, "1 writes are stored twice"),
    ],
)
def test_error_that_no_fault_excuses_is_a_violation(change: dict[str, object], words: str) -> None:
    assert violations(ROW) == []
    assert violations(replace(ROW, **change)) == [f"asyncpg: PostgreSQL: restarted: {words}"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("note", "violation"),
    [("needs root", []), ("no result: OSError", ["asyncpg: PostgreSQL: disk full: no result: OSError"])],
)
def test_trial_without_a_result_shows_why(note: str, violation: list[str]) -> None:
    row = Row("asyncpg", "PostgreSQL", "disk full", note=note)

    assert cells(row)[:2] == ["PostgreSQL: disk full", note]
    assert len(cells(row)) == len(COLUMNS)
    assert violations(row) == violation


def test_each_setup_has_its_own_table() -> None:
    text = tables([ROW, replace(ROW, setup="psycopg-pgbouncer"), ROW])

    assert text.count("| fault |") == 2
    assert text.count("| PostgreSQL: restarted |") == 3


def test_section_of_the_document_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    document = tmp_path / "faults.md"
    before, after = section("before", "old", [ROW]), section("now", "old", [])
    document.write_text(f"# Faults\n\n{before}\n\n{after}\n\nEnd\n")

    replace_section(document, "now", section("now", "new", [ROW]))

    assert document.read_text() == f"# Faults\n\n{before}\n\n{section('now', 'new', [ROW])}\n\nEnd\n"
    with pytest.raises(ValueError, match="no section 'later'"):
        replace_section(document, "later", "text")


def test_summary_counts_results_and_the_slowest_answer() -> None:
    row = summary(
        Exchange(90.0, 0.5, 200),
        Exchange(91.0, 0.1, 201, is_wrong=True),
        Exchange(96.0, 3.0, 503),
        Exchange(96.0, 0.1, 500),
        Exchange(96.0, 0.1, Failure.BROKEN),
        Exchange(97.0, 0.1, Failure.NOT_CONNECTED),
        Exchange(90.0, 9.0, Failure.ABORTED),
    )

    assert (row.requests, row.succeeded, row.unavailable, row.others) == (7, 2, 1, {"500": 1})
    assert (row.broken, row.not_connected, row.silent, row.aborted, row.wrong) == (1, 1, 0, 1, 1)
    assert (row.slowest, row.fault_seconds) == (3.0, 5.0)


@pytest.mark.parametrize(
    ("started", "result", "recovery"),
    [
        (98.0, 503, 0.0),  # ended during the fault
        (100.5, 503, 1.5),
        (100.5, 200, 0.0),
        (100.5, Failure.ABORTED, 0.0),
        (104.0, Failure.BROKEN, 5.0),
    ],
)
def test_recovery_lasts_from_the_end_to_the_last_error(started: float, result: int | Failure, recovery: float) -> None:
    assert summary(Exchange(started, 1.0, result)).recovery == recovery


def test_errors_to_the_end_of_the_trial_mean_no_recovery() -> None:
    assert summary(Exchange(119.5, 0.5, 503), observed_until=120.5).recovery is None


def test_names_of_faults_are_unique_and_can_be_chosen() -> None:
    names = [f"{fault.group}: {fault.name}" for fault in FAULTS]

    assert len(set(names)) == len(names)
    assert chosen_faults([]) == FAULTS
    assert [fault.name for fault in chosen_faults(["PostgreSQL: kill"])] == ["killed"]
    with pytest.raises(ValueError, match="no fault matches nonsense"):
        chosen_faults(["nonsense"])
