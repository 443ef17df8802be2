"""The stack of `make deploy to=swarm`. `make bench-swarm` runs it on three machines; this needs only the CLI."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from app.paths import PROJECT_ROOT
from tests.support.docker import require_engine

Services = dict[str, dict[str, Any]]

# The permitted connections between services: those that share a network. docs/swarm.md shows the same table.
REACHES = {
    "proxy": {"api", "prometheus"},
    "api": {"proxy", "pgbouncer", "exporter", "exporter-node"},
    "migrate": {"api", "pgbouncer", "exporter", "exporter-node", "postgres"},
    "exporter": {"api", "pgbouncer", "exporter-node", "prometheus", "postgres"},
    "exporter-node": {"api", "pgbouncer", "exporter", "prometheus"},
    "prometheus": {"exporter", "exporter-node", "alertmanager", "proxy"},
    "alertmanager": {"prometheus"},
    "pgbouncer": {"api", "exporter", "exporter-node", "postgres"},
    "postgres": {"pgbouncer", "exporter"},
    "backup": {"postgres"},
}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swarm") / "secrets"
    subprocess.run([PROJECT_ROOT / "ops/make-secrets.sh", folder], check=True, capture_output=True)
    return folder


def render(secrets: Path, **environment: str) -> str:
    require_engine()
    rendered = subprocess.run(
        [sys.executable, "-m", "ops.swarm", "render"],
        cwd=PROJECT_ROOT,
        env=os.environ | {"SECRETS_DIR": str(secrets), "IMAGE_TAG": "1.2.3"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert rendered.returncode == 0, rendered.stderr
    return rendered.stdout


@pytest.fixture(scope="module")
def text(secrets: Path) -> str:
    return render(secrets)


@pytest.fixture
def services(text: str) -> Services:
    found: Services = json.loads(text)["services"]
    return found


def test_docker_accepts_the_stack(text: str) -> None:
    accepted = subprocess.run(
        ["docker", "stack", "config", "--compose-file", "-"], input=text, capture_output=True, text=True, check=False
    )

    assert accepted.returncode == 0, accepted.stderr
    assert "Ignoring" not in accepted.stderr


def test_stack_is_the_same_each_time(text: str, secrets: Path) -> None:
    """Otherwise each deploy would replace services."""
    assert render(secrets) == text


def test_machines_need_no_file_of_the_project(text: str, services: Services, secrets: Path) -> None:
    assert str(PROJECT_ROOT) not in text
    contents = {secret.name: secret.read_text().strip() for secret in secrets.iterdir()}
    assert not [name for name, content in contents.items() if content and content in text]
    mounts = [volume["type"] for service in services.values() for volume in service.get("volumes", [])]
    assert set(mounts) == {"volume", "tmpfs"}


def test_only_the_proxy_is_published_on_the_machines(services: Services) -> None:
    published = {name: service["ports"] for name, service in services.items() if service.get("ports")}

    assert published.keys() == {"proxy"}
    assert {(port["published"], port["mode"]) for port in published["proxy"]} == {(80, "host"), (443, "host")}


def test_addresses_are_those_of_tasks(services: Services) -> None:
    """The proxy and Prometheus need each of them; virtual addresses would cut idle connections to the database."""
    assert {service["deploy"]["endpoint_mode"] for service in services.values()} == {"dnsrr"}


def test_services_with_data_are_on_one_labelled_machine(services: Services) -> None:
    """The volumes `metrics` belong to the exporter of each machine."""
    with_data = {
        name
        for name, service in services.items()
        for volume in service.get("volumes", [])
        if volume["type"] == "volume" and volume["source"] != "metrics"
    }
    places = {name: services[name]["deploy"]["placement"]["constraints"] for name in with_data}

    assert places == {
        "postgres": ["node.labels.headroom.data == true"],
        "backup": ["node.labels.headroom.data == true"],
        "exporter": ["node.labels.headroom.data == true"],
        "prometheus": ["node.labels.headroom.monitoring == true"],
        "alertmanager": ["node.labels.headroom.monitoring == true"],
    }


def test_update_of_the_api_keeps_its_budget(services: Services) -> None:
    """One replica more at a time: the next one starts when the one before must have stopped."""
    api = services["api"]
    update = api["deploy"]["update_config"]

    assert (update["order"], update["parallelism"], update["failure_action"]) == ("start-first", 1, "rollback")
    assert update["delay"] == api["stop_grace_period"]
    assert api["environment"]["API_SURGE"] == "1"


def test_overloaded_services_are_not_killed_at_once(services: Services) -> None:
    """Swarm kills a container whose health check fails this often in a row. PostgreSQL may recover for hours."""
    patience = {
        name: service["healthcheck"]["retries"] * int(service["healthcheck"]["interval"].removesuffix("s"))
        for name, service in services.items()
        if "healthcheck" in service
    }

    assert patience.keys() == services.keys() - {"migrate"}
    assert min(patience.values()) >= 60
    assert min(patience["postgres"], patience["backup"]) > 86400


def test_api_without_a_database_is_not_killed(services: Services) -> None:
    """/readyz answers 503 then. It counts only until it has answered 200 once."""
    [*_, program] = services["api"]["healthcheck"]["test"]

    assert program.index('"livez" if ready.exists() else "readyz"') < program.index("ready.touch()")


def test_one_exporter_on_each_machine_and_one_for_the_server(services: Services) -> None:
    node, server = services["exporter-node"], services["exporter"]

    assert (node["deploy"]["mode"], node["environment"]["EXPORTER_SCOPE"]) == ("global", "node")
    assert node["volumes"][0]["source"] == services["api"]["volumes"][0]["source"] == "metrics"
    assert "secrets" not in node
    assert node["networks"]["monitoring"]["aliases"] == ["exporter"], "the name that Prometheus looks up"
    assert (server["deploy"].get("mode"), server["environment"]["EXPORTER_SCOPE"]) == (None, "server")
    assert server["environment"].keys() - node["environment"].keys() == {
        "EXPORTER_DATABASE_URL_FILE",
        "PGBOUNCER_ADMIN_URL_FILE",
        "BACKUP_STATUS_DIR",
    }


def test_services_share_only_the_networks_that_they_need(services: Services) -> None:
    shared = {
        (source, to): services[source]["networks"].keys() & services[to]["networks"].keys()
        for source, to in product(services, services)
        if source != to
    }
    reached = {name: {to for to in services if shared.get((name, to))} for name in services}

    servers = services.keys() - {"migrate", "backup"}  # they listen on no port
    assert {name: found & servers for name, found in reached.items()} == REACHES


def test_encryption_is_an_option_of_every_network(secrets: Path) -> None:
    networks = json.loads(render(secrets, SWARM_ENCRYPTED="true"))["networks"]

    assert {"front", "pool", "back"} <= networks.keys()
    assert all(network["driver_opts"] == {"encrypted": "true"} for network in networks.values())
