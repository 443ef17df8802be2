import json
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric

from app.exporter.collectors.backups import BackupsCollector
from app.exporter.scraper import PartialFailure

HOUR = 3600


def status(**changes: Any) -> dict[str, Any]:
    """Return the report of `headroom-backup serve` about two backups."""
    now = int(time.time())
    return {
        "time": now,
        "created": now - 50 * HOUR,
        "readable": True,
        "problem": "",
        "last": now - HOUR,
        "last_full": now - 48 * HOUR,
        "oldest": now - 48 * HOUR,
        "backups": 2,
        "damaged": 0,
        "interval": 6 * HOUR,
        "full_interval": 168 * HOUR,
        "retention": 336 * HOUR,
    } | changes


async def collect(directory: Path, *documents: dict[str, Any]) -> dict[str, float]:
    """Return the samples by name and type, after the documents were written: the status, then the last drill."""
    for name, document in zip(("status.json", "drill.json"), documents, strict=False):
        (directory / name).write_text(json.dumps(document))
    metrics: list[Metric] = await BackupsCollector(directory).collect()
    return {
        sample.name + "".join(sample.labels.values()): sample.value for metric in metrics for sample in metric.samples
    }


async def test_ages_of_backups_are_counted_from_their_end(tmp_path: Path) -> None:
    samples = await collect(tmp_path, status())

    assert samples["db_backup_age_secondsany"] == pytest.approx(HOUR, abs=60)
    assert samples["db_backup_age_secondsfull"] == pytest.approx(48 * HOUR, abs=60)
    assert samples["db_backup_window_seconds"] == pytest.approx(48 * HOUR, abs=60)
    assert samples["db_backup_status_age_seconds"] == pytest.approx(0, abs=60)
    assert samples["db_backup_interval_secondsany"] == 6 * HOUR
    assert samples["db_backup_interval_secondsfull"] == 168 * HOUR
    assert samples["db_backup_retention_seconds"] == 336 * HOUR
    assert (samples["db_backup_repository_readable"], samples["db_backups"], samples["db_backups_damaged"]) == (1, 2, 0)


async def test_empty_repository_has_no_age_of_a_backup(tmp_path: Path) -> None:
    samples = await collect(tmp_path, status(backups=0, last=0, last_full=0, oldest=0))

    assert samples["db_backups"] == 0
    assert not [name for name in samples if name.startswith(("db_backup_age", "db_backup_window"))]


async def test_unreadable_repository_reports_nothing_about_its_backups(tmp_path: Path) -> None:
    samples = await collect(tmp_path, status(readable=False, problem="unable to open", backups=0, last=0, last_full=0))

    assert samples["db_backup_repository_readable"] == 0
    assert "db_backups" not in samples


async def test_drill_age_counts_from_the_first_backup_until_a_drill(tmp_path: Path) -> None:
    before = await collect(tmp_path, status())
    drill = {"time": time.time() - HOUR, "ok": True, "problem": "", "at_risk_seconds": 43, "recovery_seconds": 12}
    after = await collect(tmp_path, status(), drill)

    assert before["db_backup_drill_age_seconds"] == pytest.approx(50 * HOUR, abs=60)
    assert "db_backup_drill_success" not in before
    assert after["db_backup_drill_age_seconds"] == pytest.approx(HOUR, abs=60)
    assert (after["db_backup_drill_success"], after["db_backup_drill_rpo_seconds"]) == (1, 43)
    assert after["db_backup_drill_rto_seconds"] == 12


async def test_failed_drill_without_figures_reports_the_failure(tmp_path: Path) -> None:
    drill = {"time": time.time(), "ok": False, "problem": "x", "at_risk_seconds": None, "recovery_seconds": None}
    samples = await collect(tmp_path, status(), drill)

    assert samples["db_backup_drill_success"] == 0
    assert "db_backup_drill_rto_seconds" not in samples


async def test_missing_status_fails_the_collector(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"status\.json"):
        await collect(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "{}"])
async def test_damaged_status_is_a_partial_failure(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(PartialFailure, match="damaged file"):
        await BackupsCollector(tmp_path).collect()
