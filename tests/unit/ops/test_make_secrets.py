"""ops/make-secrets.sh for a PostgreSQL server elsewhere. tests/stack/test_prod.py has the rest of it."""

import shutil
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import make_url

from app.database_url import parse_database_url
from app.paths import PROJECT_ROOT

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
SERVER, POOLER = "db.example.test:5433", "pooler.example.test:6543"
STANDBY = "standby.example.test:5434"
VERIFIED = {"sslmode": "verify-full", "sslrootcert": "/run/secrets/database_ca"}


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(PROJECT_ROOT / "ops/make-secrets.sh"), str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("addresses", "driver", "pooled", "options"),
    [
        ((SERVER,), "psycopg", "pgbouncer:6432", {}),
        ((SERVER, POOLER), "psycopg", POOLER, VERIFIED),
        ((SERVER, SERVER), "asyncpg", SERVER, VERIFIED),
    ],
)
def test_urls_of_a_server_elsewhere_verify_its_certificate(
    tmp_path: Path, addresses: tuple[str, ...], driver: str, pooled: str, options: dict[str, str]
) -> None:
    assert make(tmp_path, "", *addresses).returncode == 0

    for name in ("migration_database_url", "monitor_database_url"):
        url = make_url((tmp_path / name).read_text())
        assert (f"{url.host}:{url.port}", dict(url.query)) == (SERVER, VERIFIED)
    text = (tmp_path / "database_url").read_text()
    url = make_url(text)
    assert (url.drivername, f"{url.host}:{url.port}", dict(url.query)) == (f"postgresql+{driver}", pooled, options)
    parse_database_url(text.replace(VERIFIED["sslrootcert"], __file__))  # refuses a file that is not there
    assert (tmp_path / "database_server").read_text() == SERVER


@pytest.mark.parametrize(
    ("addresses", "driver", "options", "replication"),
    [
        (("", ""), "psycopg", {}, True),
        ((SERVER, POOLER), "psycopg", VERIFIED, False),
        ((SERVER, SERVER), "asyncpg", VERIFIED, False),
    ],
)
def test_urls_of_a_standby_have_the_driver_and_tls_of_the_others(
    tmp_path: Path, addresses: tuple[str, str], driver: str, options: dict[str, str], replication: bool
) -> None:
    """A second run without the address keeps it."""
    assert make(tmp_path, "", *addresses, STANDBY).returncode == 0
    (tmp_path / "monitor_read_url").unlink()
    assert make(tmp_path).returncode == 0

    for name, role, expected in (("database_read_url", "app", driver), ("monitor_read_url", "monitor", "psycopg")):
        url = make_url((tmp_path / name).read_text())
        assert (f"{url.host}:{url.port}", dict(url.query)) == (STANDBY, options)
        assert (url.drivername, url.username) == (f"postgresql+{expected}", f"headroom_{role}")
        assert url.password == (tmp_path / f"{role}_password").read_text()
    assert (tmp_path / "replication_password").exists() is replication


def test_url_of_a_standby_has_the_role_and_password_after_a_rotation(tmp_path: Path) -> None:
    """A rotation of app_password lets the API sign in as the other role, in Kubernetes with a password of its own."""
    make(tmp_path)
    rotated = "postgresql+psycopg://headroom_app_2:new@pgbouncer:6432/headroom"
    (tmp_path / "database_url").chmod(0o644)
    (tmp_path / "database_url").write_text(rotated)

    assert make(tmp_path, "", "", "", STANDBY).returncode == 0
    assert (tmp_path / "database_read_url").read_text() == rotated.replace("pgbouncer:6432", STANDBY)


def test_url_of_a_former_role_or_standby_is_named(tmp_path: Path) -> None:
    make(tmp_path, "", "", "", STANDBY)
    url = tmp_path / "database_read_url"
    url.chmod(0o644)
    text = url.read_text()

    assert make(tmp_path).stderr == ""
    for other in (text.replace("headroom_app:", "headroom_app_2:"), text.replace(STANDBY, "other:5432")):
        url.write_text(other)
        assert f"{url} does not have the role and the password of database_url" in make(tmp_path).stderr


def test_url_that_is_written_again_leads_to_the_same_server(tmp_path: Path) -> None:
    make(tmp_path, "", SERVER, POOLER)
    before = (tmp_path / "database_url").read_text()
    (tmp_path / "database_url").unlink()

    assert make(tmp_path).returncode == 0
    assert (tmp_path / "database_url").read_text() == before


def test_urls_of_a_former_server_are_named(tmp_path: Path) -> None:
    make(tmp_path)

    messages = make(tmp_path, "", SERVER).stderr

    named = {line.split()[0].rpartition("/")[2] for line in messages.splitlines() if "does not lead to" in line}
    assert named == {"migration_database_url", "monitor_database_url"}


@pytest.mark.parametrize("address", ["db.example.test", "postgres://db.example.test:5432", "user@db.example.test:5432"])
def test_address_that_is_not_host_and_port_is_refused(tmp_path: Path, address: str) -> None:
    refused = make(tmp_path, "", address)

    assert (refused.returncode, refused.stderr) == (
        2,
        f"the address of PostgreSQL must be HOST:PORT, got {address}\n",
    )
