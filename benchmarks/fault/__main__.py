"""Cause faults under steady traffic and write the table of results: `make fault`, `python -m benchmarks.fault`.

Every trial starts servers of its own on 127.0.0.1 and ends them. Traffic goes to 127.0.0.1 only.
"""

import argparse
import fnmatch
import json
import os
import re
import resource
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import gmtime, monotonic, strftime

import uvloop

from app.paths import PROJECT_ROOT
from benchmarks.fault.containers import has_engine
from benchmarks.fault.faults import FAULTS
from benchmarks.fault.interrupts import interruptible
from benchmarks.fault.network import is_available
from benchmarks.fault.report import NO_RESULT, cells, replace_section, section, tables, violations
from benchmarks.fault.topology import PSYCOPG_PGBOUNCER, SETUPS, Template, Topology
from benchmarks.fault.trial import Fault, Row, run_trial

OPEN_FILES = 8192


def chosen_faults(patterns: Sequence[str]) -> list[Fault]:
    """Return the faults whose "group: name" matches one of the patterns, or all. Raise ValueError for no match."""
    found = [
        fault
        for fault in FAULTS
        if not patterns or any(fnmatch.fnmatch(f"{fault.group}: {fault.name}", f"*{each}*") for each in patterns)
    ]
    if not found:
        raise ValueError(f"--only: no fault matches {', '.join(patterns)}; see --list")
    return found


def missing_requirement(fault: Fault, setup: str) -> str | None:
    """Return what this machine lacks for a trial; None if it lacks nothing."""
    if fault.plan.needs_root and os.geteuid() != 0:
        return "needs root"
    if fault.plan.has_own_network and not is_available():
        return "needs ip, nsenter, unshare and iptables"
    if (fault.plan.in_container or setup == PSYCOPG_PGBOUNCER) and not has_engine():
        return "needs a Docker engine"
    return None


class Run:
    """A run of the harness: the trials of some faults on a checkout."""

    def __init__(self, checkout: Path, directory: Path, seconds: float, logs: Path | None = None) -> None:
        self._checkout = checkout
        self._directory = directory
        self._seconds = seconds
        self._logs = logs
        self._template = Template(checkout, directory)
        self._numbers = 0

    def topology(self, fault: Fault, setup: str) -> Topology:
        """Return what a trial runs on, in a directory of its own."""
        self._numbers += 1
        directory = self._directory / f"{self._numbers}"
        directory.mkdir()
        return Topology(self._checkout, self._template, directory, setup, fault.plan)

    def trial(self, fault: Fault, setup: str) -> Row:
        """Run one trial. An error of the stack or of the harness becomes the row's note."""
        if (lacking := missing_requirement(fault, setup)) is not None:
            return Row(setup, fault.group, fault.name, note=lacking)
        try:
            with self.topology(fault, setup) as topology:
                return uvloop.run(run_trial(fault, topology, self._seconds))
        except Exception as error:  # noqa: BLE001 - the other trials must run
            print(f"{setup}: {fault.group}: {fault.name}: {error!r}", file=sys.stderr, flush=True)
            return Row(setup, fault.group, fault.name, note=_one_line(error))
        finally:
            self._keep_logs(fault, setup)

    def _keep_logs(self, fault: Fault, setup: str) -> None:
        if self._logs is not None:
            name = re.sub(r"\W+", "-", f"{setup} {fault.group} {fault.name}")
            for log in (self._directory / f"{self._numbers}").glob("*.log"):
                (self._logs / name).mkdir(parents=True, exist_ok=True)
                shutil.copy(log, self._logs / name)


def _one_line(error: Exception) -> str:
    """Return what fits into a cell."""
    lines = str(error).splitlines()
    text = " ".join([lines[0], *lines[-1:]] if len(lines) > 1 else lines)
    return f"{NO_RESULT}: {type(error).__name__}: {text}".replace("|", "/")[:300]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fault", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="list the faults and exit")
    parser.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="faults whose name contains it")
    parser.add_argument("--setup", nargs="+", default=list(SETUPS), choices=list(SETUPS), help="default: all")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a fault that lasts (default: 4)")
    parser.add_argument("--against", type=Path, default=PROJECT_ROOT, metavar="DIR", help="run another checkout")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the tables to this file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results as JSON lines")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="also keep the logs of each trial in this folder")
    parser.add_argument("--document", metavar="SECTION", help="also replace this section of docs/faults.md")
    return parser.parse_args(arguments)


def heading(checkout: Path, seconds: float, took: float) -> str:
    """Return what the tables' reader must know."""
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    return (
        f"{strftime('%Y-%m-%d %H:%M', gmtime())} UTC, Python {sys.version.split()[0]}, {os.cpu_count()} cores, "
        f"load average at the end {load}. Faults that last took {seconds:g} s; the run took {took / 60:.0f} min."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen trials. Return 1 if one shows an error that no fault excuses."""
    options = parse(arguments)
    try:
        faults = chosen_faults(options.only)
    except ValueError as error:
        print(f"benchmarks.fault: {error}", file=sys.stderr)
        return 2
    if options.list:
        for fault in faults:
            print(f"{fault.group}: {fault.name} ({', '.join(fault.setups)})")
        return 0
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, hard), hard))
    checkout, started, rows = options.against.resolve(), monotonic(), []
    text = ""
    with interruptible(), tempfile.TemporaryDirectory(prefix="headroom-fault-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        directory.chmod(0o755)  # PostgreSQL's user must pass through it
        run = Run(checkout, directory, options.seconds, options.logs)
        for setup in options.setup:
            for fault in faults:
                if setup not in fault.setups:
                    continue
                row = run.trial(fault, setup)
                rows.append(row)
                print(f"{setup} | {' | '.join(cells(row))}", flush=True)
                text = f"{heading(checkout, options.seconds, monotonic() - started)}\n\n{tables(rows)}\n"
                if options.json is not None:
                    with options.json.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(asdict(row)) + "\n")
                if options.output is not None:
                    options.output.write_text(text, encoding="utf-8")
    print(f"\n{text}")
    if options.document is not None:
        lines = heading(checkout, options.seconds, monotonic() - started)
        replace_section(PROJECT_ROOT / "docs/faults.md", options.document, section(options.document, lines, rows))
    found = [each for row in rows for each in violations(row)]
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
