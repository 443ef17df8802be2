"""How soon PostgreSQL and PgBouncer notice that a client has vanished."""

import re
from pathlib import Path

import pytest

from app.paths import PROJECT_ROOT

# The slots of a vanished worker are missing for that long. The fault table counts them after 20 s.
MAX_SECONDS = 25


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("ops/postgres/postgresql.conf", ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count")),
        ("ops/pgbouncer/pgbouncer.ini", ("tcp_keepidle", "tcp_keepintvl", "tcp_keepcnt")),
    ],
)
def test_dead_idle_client_is_noticed_within_the_limit(file: str, names: tuple[str, str, str]) -> None:
    text = Path(PROJECT_ROOT, file).read_text(encoding="utf-8")
    idle, interval, count = (int(re.findall(rf"^{name} = (\d+)", text, re.MULTILINE)[0]) for name in names)

    assert idle + interval * count <= MAX_SECONDS
