"""compose.prod.yml: its containers as Docker shows them, its API over HTTP, and the script that makes its secrets."""

import asyncio
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import httpx
import pytest

from app.paths import PROJECT_ROOT
from tests.support.docker import require_engine
from tests.support.stacks import ProdStack
from tests.support.waiting import eventually

SERVICES = ["postgres", "backup", "migrate", "pgbouncer", "api", "exporter", "prometheus"]


def test_user_created_by_one_replica_is_read_from_the_other(prod: ProdStack) -> None:
    first, second = prod.apis
    ann = {"email": "ann@example.com", "name": "Ann", "password": "correct horse"}
    location = httpx.post(f"{first}/users", json=ann).headers["location"]

    assert httpx.get(f"{second}{location}").json()["name"] == "Ann"
    token = httpx.post(f"{second}/auth/token", data={"username": ann["email"], "password": ann["password"]}).json()
    me = httpx.get(f"{first}/users/me", headers={"authorization": f"Bearer {token['access_token']}"})
    assert me.json()["email"] == ann["email"]


def test_api_connects_through_pgbouncer_as_its_own_role(prod: ProdStack) -> None:
    for _ in range(20):
        for api in prod.apis:
            assert httpx.get(f"{api}/posts").status_code == 200

    [pgbouncer] = prod.inspect("pgbouncer")["NetworkSettings"]["Networks"].values()
    clients = prod.sql(
        "SELECT DISTINCT usename, host(client_addr) FROM pg_stat_activity WHERE application_name LIKE 'headroom:api:%'"
    )
    assert clients == [["headroom_app", pgbouncer["IPAddress"]]]


def test_budget_is_checked_against_server_and_pgbouncer(prod: ProdStack) -> None:
    shown = prod.compose("exec", "-T", "api", "headroom", "budget")

    assert "limits of the server: from the server" in shown
    assert "limits of the pooler: from its console" in shown
    for service in ("migrate", "api"):
        assert "connection budget: 34 of 92 server connections, 58 left" in prod.compose("logs", service)


def test_migration_job_has_ended_with_status_0(prod: ProdStack) -> None:
    state = prod.inspect("migrate")["State"]

    assert (state["Status"], state["ExitCode"]) == ("exited", 0)


def test_ports_are_published_on_the_loopback_address_only(prod: ProdStack) -> None:
    for service in SERVICES:
        bindings = prod.inspect(service)["HostConfig"]["PortBindings"] or {}
        hosts = {binding["HostIp"] for published in bindings.values() for binding in published}
        published = {"api", "exporter", "prometheus"}
        assert hosts == ({"127.0.0.1"} if service in published else set()), service


@pytest.mark.parametrize("service", SERVICES)
def test_container_runs_unprivileged_with_limits(prod: ProdStack, service: str) -> None:
    container = prod.inspect(service)
    host = container["HostConfig"]

    assert container["Config"]["User"].split(":")[0] not in ("", "0", "root")
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Memory"] > 0
    assert host["PidsLimit"] > 0
    assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "5"}


def test_secrets_are_in_no_environment_and_no_log(prod: ProdStack) -> None:
    folder = Path(prod.environment["SECRETS_DIR"])
    secrets = [file.read_text() for file in folder.iterdir()]
    assert len(secrets) == 13
    seen = "".join(str(prod.inspect(service)["Config"]) for service in SERVICES) + prod.compose("logs")

    assert not [secret for secret in secrets if secret in seen]


def test_services_with_a_health_check_become_healthy(prod: ProdStack) -> None:
    def healthy(service: str) -> bool:
        return bool(prod.inspect(service)["State"]["Health"]["Status"] == "healthy")

    for service in ("postgres", "backup", "pgbouncer", "api", "exporter"):
        eventually(partial(healthy, service), within=60)


def test_pgbouncer_pause_and_resume_work_in_its_container(prod: ProdStack) -> None:
    console = ["psql", "-h", "/run/headroom-pgbouncer", "-p", "6432", "-U", "pgbouncer", "pgbouncer", "-Atc"]
    assert prod.compose("exec", "-T", "pgbouncer", *console, "PAUSE") == "PAUSE\n"
    assert prod.compose("exec", "-T", "pgbouncer", *console, "RESUME") == "RESUME\n"
    assert httpx.get(f"{prod.apis[0]}/posts").status_code == 200


@pytest.mark.alone
async def test_many_simultaneous_sign_ins_get_no_500(prod: ProdStack) -> None:
    """A password is hashed in threads, whose number the container limits."""
    limits = httpx.Limits(max_connections=400)
    async with httpx.AsyncClient(base_url=prod.apis[0], limits=limits, timeout=60) as client:

        async def sign_in(number: int) -> int:
            form = {"username": f"{number}@example.com", "password": "correct horse"}
            return (await client.post("/auth/token", data=form)).status_code

        statuses = set(await asyncio.gather(*(sign_in(number) for number in range(400))))

    assert statuses <= {401, 429, 503}


def test_replica_after_a_reload_is_restarted_when_it_crashes(prod: ProdStack) -> None:
    crash = (
        "import os, pathlib\n"
        "stats = [p.read_text() for p in pathlib.Path('/proc').glob('[0-9]*/stat')]\n"
        "[master] = [int(s.split()[0]) for s in stats if '(gunicorn' in s and s.rpartition(')')[2].split()[1] == '1']\n"
        "os.kill(master, 9)"
    )
    prod.compose("kill", "--signal", "HUP", "api")
    for replica in ("1", "2"):
        # The command fails, because its container ends.
        prod.compose("exec", "-T", "--index", replica, "api", "python", "-c", crash, check=False)

    eventually(lambda: prod.inspect("api")["RestartCount"] == 1, within=20)
    for api in prod.apis:
        eventually(partial(returns_200, f"{api}/readyz"), within=60)


def returns_200(url: str) -> bool:
    return httpx.get(url).status_code == 200


def test_swarm_reads_the_file(tmp_path: Path) -> None:
    require_engine()
    secrets = tmp_path / "secrets"
    subprocess.run([PROJECT_ROOT / "ops/make-secrets.sh", secrets], check=True, capture_output=True)

    read = subprocess.run(
        ["docker", "stack", "config", "--compose-file", "compose.prod.yml"],
        cwd=PROJECT_ROOT,
        env=os.environ | {"SECRETS_DIR": str(secrets), "API_PORTS": "8000"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert read.returncode == 0, read.stderr


def test_secrets_are_made_once_and_differ_from_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    made = subprocess.run(
        [PROJECT_ROOT / "ops/make-secrets.sh", folder], check=True, capture_output=True, text=True
    ).stdout
    before = {file.name: file.read_text() for file in folder.iterdir()}
    (folder / "app_password").unlink()
    again = subprocess.run(
        [PROJECT_ROOT / "ops/make-secrets.sh", folder], check=True, capture_output=True, text=True
    ).stdout
    after = {file.name: file.read_text() for file in folder.iterdir()}

    assert len(made.splitlines()) == len(before) == len(set(before.values()))
    assert again == f"{folder}/app_password\n"
    assert {name: value for name, value in after.items() if name != "app_password"} == {
        name: value for name, value in before.items() if name != "app_password"
    }
    assert folder.stat().st_mode & 0o077 == 0


def test_make_secrets_without_openssl_fails_and_writes_nothing(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for program in ("bash", "chmod", "env", "mkdir", "mv"):
        found = shutil.which(program)
        assert found
        (programs / program).symlink_to(found)
    command = [PROJECT_ROOT / "ops/make-secrets.sh", tmp_path / "secrets"]

    failed = subprocess.run(command, env={"PATH": str(programs)}, capture_output=True, text=True, check=False)

    assert failed.returncode != 0
    assert "openssl" in failed.stderr
    assert list((tmp_path / "secrets").iterdir()) == []


def test_make_secrets_replaces_empty_files_and_names_old_urls(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    subprocess.run([PROJECT_ROOT / "ops/make-secrets.sh", folder], check=True, capture_output=True)
    for name in ("secret_key", "app_password"):
        (folder / name).unlink()
        (folder / name).touch()

    again = subprocess.run([PROJECT_ROOT / "ops/make-secrets.sh", folder], check=True, capture_output=True, text=True)

    assert again.stdout == f"{folder}/app_password\n{folder}/secret_key\n"
    assert len((folder / "secret_key").read_text()) == 64
    assert f"{folder}/database_url does not contain the password of app_password" in again.stderr
    assert "migration_database_url" not in again.stderr
