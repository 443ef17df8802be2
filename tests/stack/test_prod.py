"""compose.prod.yml: its containers as Docker shows them, its API over HTTP, and the script that makes its secrets."""

import json
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from app.paths import PROJECT_ROOT
from tests.support import sample
from tests.support.connecting import CONNECT
from tests.support.proxied import PYTHON, access_log, compose_service, create_network, docker
from tests.support.stacks import REVISION, VERSION, ProdStack
from tests.support.waiting import eventually

SERVICES = ["postgres", "backup", "migrate", "pgbouncer", "api", "exporter", "prometheus", "alertmanager", "proxy"]


def test_row_created_by_one_replica_is_read_from_the_other(prod: ProdStack) -> None:
    """The proxy sends the requests of one client to both replicas."""
    location = prod.client.post(sample.PATH, json=sample.new("ann")).headers["location"]

    assert {prod.client.get(location).json()["name"] for _ in range(8)} == {"ann"}

    def used() -> set[str]:
        return {line["server"] for line in access_log(prod.inspect("proxy")["Id"]) if line["path"] == location}

    eventually(lambda: used() == {"api1", "api2"}, within=60)


def test_api_connects_through_pgbouncer_as_its_own_role(prod: ProdStack) -> None:
    for _ in range(40):
        assert prod.client.get("/readyz").status_code == 200

    pgbouncer = prod.inspect("pgbouncer")["NetworkSettings"]["Networks"][f"{prod.name}_back"]
    of_the_api = "application_name LIKE 'headroom:api:%'"
    clients = prod.sql(f"SELECT DISTINCT usename, host(client_addr) FROM pg_stat_activity WHERE {of_the_api}")
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


def test_only_the_proxy_is_published_beyond_the_loopback_address(prod: ProdStack) -> None:
    for service in SERVICES:
        bindings = prod.inspect(service)["HostConfig"]["PortBindings"] or {}
        hosts = {binding["HostIp"] for published in bindings.values() for binding in published}
        published = service in ("exporter", "prometheus", "alertmanager", "proxy")
        assert hosts == ({"127.0.0.1"} if published else set()), service
    proxy = compose_service("proxy")["ports"]
    assert proxy == ["0.0.0.0:80:8080", "0.0.0.0:443:8443"], "the test stack publishes the proxy on 127.0.0.1"


# The permitted connections between services. docs/production.md shows the same table.
PORTS = {
    "proxy": (8080, 8443, 8405),
    "api": (8000,),
    "exporter": (9464,),
    "prometheus": (9090,),
    "alertmanager": (9093,),
    "pgbouncer": (6432,),
    "postgres": (5432,),
}
REACHES = {
    "proxy": {"api", "prometheus"},
    "api": {"proxy", "exporter", "pgbouncer"},
    "migrate": {"api", "exporter", "pgbouncer", "postgres"},
    "exporter": {"api", "prometheus", "pgbouncer", "postgres"},
    "prometheus": {"alertmanager", "exporter", "proxy"},
    "alertmanager": {"prometheus"},
    "grafana": {"exporter", "prometheus"},
    "pgbouncer": {"api", "exporter", "postgres"},
    "postgres": {"exporter", "pgbouncer"},
}
NOT_RUNNING = {
    "migrate": compose_service("migrate")["networks"],  # it has ended
    "grafana": compose_service("grafana", "compose.grafana.yml")["networks"],  # it has no stand-in
}


def test_service_reaches_only_the_ports_that_it_needs(prod: ProdStack) -> None:
    addresses = {
        service: [network["IPAddress"] for network in prod.inspect(service)["NetworkSettings"]["Networks"].values()]
        for service in PORTS
    }
    # The console of the proxy, and ports of the other program in the image of the API and the exporter.
    ports = sorted({9999, 8000, 9464, *(port for each in PORTS.values() for port in each)})
    targets = {
        f"{host}:{port}": (service, port) for service, hosts in addresses.items() for host in hosts for port in ports
    }

    def reached(*place: str) -> set[tuple[str, int]]:
        options = ["--rm", "--interactive", *place, PYTHON, "python", "-", *targets]
        return {targets[target] for target in docker("run", *options, stdin=CONNECT).split()}

    for service, expected in REACHES.items():
        if service in NOT_RUNNING:  # another container in its networks
            place = [f"--network={prod.name}_{network}" for network in NOT_RUNNING[service]]
        else:
            place = [f"--network=container:{prod.inspect(service)['Id']}"]
        found = {(to, port) for to, port in reached(*place) if to != service}
        assert found == {(to, port) for to in expected for port in PORTS[to]}, service
    outside = f"{prod.name}-outside"
    create_network(outside)
    try:
        assert reached(f"--network={outside}") == set()
    finally:
        docker("network", "rm", outside)


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


def test_secrets_are_in_no_environment_inspection_history_or_log(prod: ProdStack) -> None:
    folder = Path(prod.environment["SECRETS_DIR"])
    secrets = {file.name: text for file in folder.iterdir() if (text := file.read_text().strip())}
    assert len(secrets) == 18
    for name in ("tls_certificate", "tls_ca_certificate"):  # anyone may know them
        del secrets[name]
    containers = prod.compose("ps", "--all", "--quiet").split()
    inspected = json.loads(docker("inspect", *containers))
    assert len(inspected) == len(SERVICES) + 1, "two replicas of the API"
    seen = {"inspect": str(inspected), "log": prod.compose("logs")}
    for image in {container["Config"]["Image"] for container in inspected}:
        seen[f"history of {image}"] = docker("history", "--no-trunc", image)
    for container in inspected:
        if container["State"]["Running"]:
            # Of every process: its environment and its command line. While a health check starts or ends, its process
            # has files that cannot be read.
            read = ("exec", container["Id"], "sh", "-c", "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline")
            shown = eventually(partial(docker, *read), within=60)
            assert "PATH=" in shown, container["Name"]
            seen[container["Name"]] = shown

    assert not [(name, place) for name, secret in secrets.items() for place, text in seen.items() if secret in text]


def test_images_are_labelled_with_version_and_revision(prod: ProdStack) -> None:
    for service in ("api", "pgbouncer", "postgres"):
        labels = prod.inspect(service)["Config"]["Labels"]
        found = {name: labels[f"org.opencontainers.image.{name}"] for name in ("version", "revision")}
        assert found == {"version": VERSION, "revision": REVISION}


def test_pgbouncer_has_no_known_vulnerability(prod: ProdStack) -> None:
    """1.26.1 fixes CVE-2026-107350, with which one role can sign in as another one."""
    shown = prod.compose("exec", "-T", "pgbouncer", "pgbouncer", "--version")

    assert tuple(map(int, shown.split()[1].split("."))) >= (1, 26, 1)


def test_services_with_a_health_check_become_healthy(prod: ProdStack) -> None:
    def healthy(service: str) -> bool:
        return bool(prod.inspect(service)["State"]["Health"]["Status"] == "healthy")

    for service in ("postgres", "backup", "pgbouncer", "api", "exporter", "alertmanager", "proxy"):
        eventually(partial(healthy, service), within=60)


def test_pgbouncer_pause_and_resume_work_in_its_container(prod: ProdStack) -> None:
    console = ["psql", "-h", "/run/headroom-pgbouncer", "-p", "6432", "-U", "pgbouncer", "pgbouncer", "-Atc"]
    assert prod.compose("exec", "-T", "pgbouncer", *console, "PAUSE") == "PAUSE\n"
    assert prod.compose("exec", "-T", "pgbouncer", *console, "RESUME") == "RESUME\n"
    assert prod.client.get("/readyz").status_code == 200


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

    eventually(lambda: prod.inspect("api")["RestartCount"] == 1, within=60)
    eventually(lambda: prod.replicas_in_proxy() == 2, within=60)


def test_secrets_are_made_once_and_differ_from_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    made = subprocess.run(
        [PROJECT_ROOT / "ops/make-secrets.sh", folder], check=True, capture_output=True, text=True
    ).stdout
    optional = [line.removesuffix(" (optional: empty)") for line in made.splitlines() if line.endswith(" empty)")]
    assert [Path(file).read_text() for file in optional] == ["\n", "\n", "\n"]
    optional.append("secret_key_fallbacks")  # empty until a rotation of the signing key
    before = {file.name: file.read_text() for file in folder.iterdir()}
    (folder / "app_password").unlink()
    again = subprocess.run(
        [PROJECT_ROOT / "ops/make-secrets.sh", folder], check=True, capture_output=True, text=True
    ).stdout
    after = {file.name: file.read_text() for file in folder.iterdir()}

    assert len(made.splitlines()) == len(before) == len(set(before.values()) - {"\n"}) + len(optional)
    assert again == f"{folder}/app_password\n"
    assert {name: value for name, value in after.items() if name != "app_password"} == {
        name: value for name, value in before.items() if name != "app_password"
    }
    assert folder.stat().st_mode & 0o077 == 0


def test_key_of_the_authority_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    """An earlier version made it readable by all."""
    (tmp_path / "tls_ca_key").touch()
    subprocess.run([PROJECT_ROOT / "ops/make-secrets.sh", tmp_path], check=True, capture_output=True)
    (tmp_path / "tls_ca_key").chmod(0o444)
    subprocess.run([PROJECT_ROOT / "ops/make-secrets.sh", tmp_path], check=True, capture_output=True)

    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()}
    optional = {"alert_smtp_password", "alert_watchdog_url", "alert_webhook_url"}
    assert modes.pop("tls_ca_key") == "0o400"
    assert {modes.pop(name) for name in optional} == {"0o644"}
    assert set(modes.values()) == {"0o444"}, "containers do not run as root"


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("api.example.com", "DNS:api.example.com, DNS:localhost, IP Address:127.0.0.1"),
        ("192.0.2.7", "IP Address:192.0.2.7, DNS:localhost, IP Address:127.0.0.1"),
        ("2001:db8::7", "IP Address:2001:DB8:0:0:0:0:0:7, DNS:localhost, IP Address:127.0.0.1"),
        ("localhost", "DNS:localhost, IP Address:127.0.0.1"),
    ],
)
def test_certificate_has_the_host_as_a_name_or_an_address(tmp_path: Path, host: str, names: str) -> None:
    subprocess.run([PROJECT_ROOT / "ops/make-secrets.sh", tmp_path, host], check=True, capture_output=True)

    show = ["openssl", "x509", "-in", str(tmp_path / "tls_certificate"), "-noout", "-ext", "subjectAltName"]
    assert subprocess.run(show, capture_output=True, text=True, check=True).stdout.splitlines()[1].strip() == names


def test_make_secrets_without_openssl_fails_and_writes_nothing(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for program in ("bash", "chmod", "env", "mkdir", "mv", "rm"):
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
