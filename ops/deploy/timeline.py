"""The steps of an operation: printed as they end, and kept as one JSON line for each operation."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from getpass import getuser
from pathlib import Path
from typing import Any

_LOG = Path(".deploy", "log.jsonl")


def log_file(root: Path) -> Path:
    """Return the log of a project's operations: DEPLOY_LOG, or a file in its folder."""
    return root / (os.environ.get("DEPLOY_LOG") or _LOG)


def operator() -> str:
    """Return who runs this program, as user@host. DEPLOY_BY names the operator of a deploy over SSH."""
    try:
        user = getuser()
    except (OSError, KeyError):
        user = str(os.getuid())
    return os.environ.get("DEPLOY_BY") or f"{user}@{socket.gethostname()}"


class Timeline:
    """The steps of one operation. `facts` are further fields of its line in the log."""

    def __init__(self, operation: str, log: Path) -> None:
        self._log = log
        self._started = time.monotonic()
        self._steps: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "operation": operation,
            "by": operator(),
        }

    def add(self, step: str, result: str = "") -> None:
        """Add a step that has ended."""
        seconds = time.monotonic() - self._started
        self._steps.append({"seconds": round(seconds, 1), "step": step, "result": result})
        with suppress(OSError):  # the terminal has gone; the operation goes on
            print(f"{seconds:7.1f} s  {step:<20} {result}".rstrip(), flush=True)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Write the line into the log when the block ends."""
        result = "ok"
        try:
            yield
        except BaseException as error:
            result = str(error) or type(error).__name__
            raise
        finally:
            seconds = round(time.monotonic() - self._started, 1)
            line = json.dumps(self.facts | {"result": result, "seconds": seconds, "steps": self._steps})
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("a", encoding="utf-8") as log:
                log.write(line + "\n")
