"""The table of results, in Markdown."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.fault.topology import SETUPS
from benchmarks.fault.traffic import PATIENCE_SECONDS
from benchmarks.fault.trial import Row

# Begins the note of a trial that failed. Other notes say what the machine lacks.
NO_RESULT = "no result"
COLUMNS = (
    "fault",
    "lasts s",
    "requests",
    "2xx",
    "503",
    "other",
    "broken",
    "no connection",
    "no answer",
    "slowest s",
    "recovery s",
    "acknowledged, missing",
    "refused, present",
    "unanswered, present/absent",
    "stored twice",
    "wrong",
    "leaked",
    "tracebacks",
)


def tables(rows: Sequence[Row]) -> str:
    """Return a table for each setup, under a heading."""
    parts = []
    for setup, title in SETUPS.items():
        if chosen := [row for row in rows if row.setup == setup]:
            parts.append(f"#### {title}\n\n{_table(chosen)}")
    return "\n\n".join(parts)


def _table(rows: Iterable[Row]) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    return "\n".join(lines)


def cells(row: Row) -> list[str]:
    """Return the cells of a row. Zeros of errors are plain; everything that must not be is bold."""
    name = f"{row.group}: {row.fault}"
    if row.comparison is None:
        return [name, row.note, *[""] * (len(COLUMNS) - 2)]
    comparison = row.comparison
    others = ", ".join(f"{number} x {status}" for status, number in (row.others or {}).items())
    slowest = f"{row.slowest:.1f}" if row.slowest < PATIENCE_SECONDS else f"**> {PATIENCE_SECONDS:.0f}**"
    return [
        name,
        f"{row.fault_seconds:.1f}",
        str(row.requests),
        str(row.succeeded),
        str(row.unavailable),
        f"**{others}**" if others else "0",
        _error(row.broken),
        str(row.not_connected),
        _error(row.silent),
        slowest,
        f"{row.recovery:.1f}" if row.recovery is not None else "**none**",
        f"{comparison.acknowledged}, {_error(comparison.acknowledged_missing)}",
        f"{comparison.refused}, {_error(comparison.refused_present)}",
        f"{comparison.unanswered_present}/{comparison.unanswered_absent}",
        _error(comparison.stored_twice),
        _error(row.wrong),
        _error(row.leaked),
        _error(row.tracebacks),
    ]


def _error(number: int) -> str:
    return f"**{number}**" if number else "0"


def violations(row: Row) -> list[str]:
    """Return what the row shows that no fault excuses, or why there is no result."""
    name = f"{row.setup}: {row.group}: {row.fault}"
    if row.comparison is None:
        return [f"{name}: {row.note}"] if row.note.startswith(NO_RESULT) else []
    found = {
        "acknowledged writes are missing": row.comparison.acknowledged_missing,
        "refused writes are present": row.comparison.refused_present,
        "writes are stored twice": row.comparison.stored_twice,
        "answers are wrong": row.wrong,
        "connections leaked": row.leaked,
        "answers are 500": (row.others or {}).get("500", 0),
        "requests have no answer": row.silent,
    }
    return [f"{name}: {number} {what}" for what, number in found.items() if number]


def section(name: str, heading: str, rows: Sequence[Row]) -> str:
    """Return a section of docs/faults.md, between the marks that `replace_section` looks for."""
    return f"{_mark('begin', name)}\n\n{heading}\n\n{tables(rows)}\n\n{_mark('end', name)}"


def replace_section(path: Path, name: str, text: str) -> None:
    """Replace the section `name` of a document. Raise ValueError if the document has none."""
    document = path.read_text(encoding="utf-8")
    before, found, rest = document.partition(_mark("begin", name))
    _, ended, after = rest.partition(_mark("end", name))
    if not found or not ended:
        raise ValueError(f"{path}: no section {name!r}")
    path.write_text(before + text + after, encoding="utf-8")


def _mark(side: str, name: str) -> str:
    return f"<!-- {side} of the results: {name} -->"
