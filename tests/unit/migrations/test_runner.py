"""The time of a migration's attempts, with a simulated clock and lock errors in place of a database."""

from typing import Any, cast

import pytest
from sqlalchemy.exc import OperationalError

from app.errors import MigrationFailed
from migrations import runner
from migrations.runner import Limits, Runner

LIMITS = Limits(lock=1, retry=60, revision=600)


class LockTimeout(Exception):
    sqlstate = "55P03"


def fail_in(revision: str) -> None:
    """Raise a lock timeout in a function of a revision's module."""
    module: dict[str, Any] = {"revision": revision, "down_revision": None, "error": lock_timeout()}
    exec("def upgrade():\n    raise error", module)
    module["upgrade"]()


def lock_timeout() -> OperationalError:
    return OperationalError("ALTER TABLE", None, LockTimeout("canceling statement due to lock timeout"))


async def attempts(monkeypatch: pytest.MonkeyPatch, *steps: tuple[float, str | None]) -> int:
    """Run a migration whose attempts take the seconds and fail in the revision of a step; None succeeds."""
    now, made = 0.0, 0

    class Simulated(Runner):
        async def _watched(self, migrate: object) -> None:
            nonlocal now, made
            seconds, revision = steps[made]
            made, now = made + 1, now + seconds
            if revision is not None:
                fail_in(revision)

    monkeypatch.setattr(runner, "monotonic", lambda: now)
    monkeypatch.setattr(runner, "pause_seconds", lambda _: 0.0)
    await Simulated(cast("Any", None), cast("Any", None), LIMITS).run(lambda _: None)
    return made


async def test_revision_after_a_long_one_has_the_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await attempts(monkeypatch, (3600, "b"), (58, "b"), (1, None)) == 3


async def test_revision_that_waited_for_the_whole_time_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MigrationFailed, match="gave up after 3 attempts in 60 s"):
        await attempts(monkeypatch, (1, "b"), (58, "b"), (1, "b"), (1, None))


async def test_time_begins_again_only_for_another_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await attempts(monkeypatch, (1, "a"), (58, "a"), (58, "b"), (58, "b"), (1, None)) == 5
