"""The backups in the repository, as the service `backup` reports them (ops/postgres/headroom-backup).

The exporter has no access to the repository.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client import Metric

from app.exporter.scraper import PartialFailure, family, single
from app.observability.catalogue import (
    BACKUP_AGE,
    BACKUP_DRILL_AGE,
    BACKUP_DRILL_AT_RISK,
    BACKUP_DRILL_RECOVERY,
    BACKUP_DRILL_SUCCESS,
    BACKUP_INTERVAL,
    BACKUP_REPOSITORY_READABLE,
    BACKUP_RETENTION,
    BACKUP_STATUS_AGE,
    BACKUP_WINDOW,
    BACKUPS,
    BACKUPS_DAMAGED,
)

_NO_DRILL: Mapping[str, Any] = {}


class BackupsCollector:
    """Collects `db_backup*` from the two files of BACKUP_STATUS_DIR: `status.json` and `drill.json`."""

    name = "backups"

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def collect(self) -> list[Metric]:
        """Read the files. Raise OSError, or PartialFailure for a damaged file."""
        try:
            status = json.loads((self._directory / "status.json").read_bytes())
            return [*_backups(status, time.time()), *_drill(status, self._last_drill(), time.time())]
        except (ValueError, KeyError) as error:
            raise PartialFailure(f"cannot read a damaged file in {self._directory}: {error!r}", []) from error

    def fallback(self) -> list[Metric]:
        """Return nothing: old values would look current."""
        return []

    def _last_drill(self) -> Mapping[str, Any]:
        try:
            text = (self._directory / "drill.json").read_bytes()
        except FileNotFoundError:
            return _NO_DRILL
        drill: Mapping[str, Any] = json.loads(text)
        return drill


def _backups(status: Mapping[str, Any], now: float) -> list[Metric]:
    metrics = [
        single(BACKUP_STATUS_AGE, now - status["time"]),
        single(BACKUP_REPOSITORY_READABLE, status["readable"]),
        single(BACKUP_RETENTION, status["retention"]),
        family(BACKUP_INTERVAL, [({"type": "any"}, status["interval"]), ({"type": "full"}, status["full_interval"])]),
    ]
    if not status["readable"]:
        return metrics  # nothing is known about the backups
    ends = {"any": status["last"], "full": status["last_full"]}
    metrics += [
        single(BACKUPS, status["backups"]),
        single(BACKUPS_DAMAGED, status["damaged"]),
        family(BACKUP_AGE, [({"type": kind}, now - end) for kind, end in ends.items() if end]),
    ]
    if status["oldest"]:
        metrics.append(single(BACKUP_WINDOW, now - status["oldest"]))
    return metrics


def _drill(status: Mapping[str, Any], drill: Mapping[str, Any], now: float) -> list[Metric]:
    since = drill.get("time") or status["created"]
    metrics = [single(BACKUP_DRILL_AGE, now - since)] if since else []
    if drill:
        metrics.append(single(BACKUP_DRILL_SUCCESS, drill["ok"]))
        seconds = {BACKUP_DRILL_AT_RISK: drill["at_risk_seconds"], BACKUP_DRILL_RECOVERY: drill["recovery_seconds"]}
        metrics += [single(spec, value) for spec, value in seconds.items() if value is not None]
    return metrics
