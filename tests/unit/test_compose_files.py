"""The Compose files agree with the settings: every setting reaches the containers; the proxy has the same limits."""

import re
import runpy
import socket
import subprocess
from contextlib import ExitStack
from typing import Any

import pytest
import yaml

from app.paths import PROJECT_ROOT
from app.settings import Settings, is_secret

FILES = ["docker-compose.yml", "compose.prod.yml"]
# Settings that the environment of Compose does not set, and why.
FIXED = {
    "API_HOST": "the image sets it",
    "API_PORT": "the port in the container is fixed",
    "API_REPLICA": "the host name of the container",
    "EXPORTER_HOST": "the image sets it",
    "EXPORTER_PORT": "the port in the container is fixed",
    "DATA_DIR": "only `make run` uses it",
    "METRICS_DIR": "the path of a volume",
    "BACKUP_STATUS_DIR": "the path of a volume",
    "DB_POOLER": "the file has a PgBouncer or has none",
}
PASSED_ON = sorted(
    name.upper() for name, field in Settings.model_fields.items() if name.upper() not in FIXED and not is_secret(field)
)


def environment(file: str, service: str) -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((PROJECT_ROOT / file).read_text(encoding="utf-8"))["services"]
    found: dict[str, Any] = services[service]["environment"]
    return found


def default(value: str) -> str:
    """Return the default of `${NAME:-default}`."""
    found = re.fullmatch(r"\$\{\w+:-(.*)\}", value)
    assert found, value
    return found[1]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("service", ["api", "migrate", "exporter"])
def test_every_setting_reaches_the_containers(file: str, service: str) -> None:
    passed = environment(file, service)

    missing = [name for name in PASSED_ON if not str(passed.get(name, "")).startswith(f"${{{name}:-")]

    assert missing == [], "run make docs"


@pytest.mark.parametrize("file", FILES)
def test_settings_of_containers_are_as_generated(file: str) -> None:
    text = (PROJECT_ROOT / file).read_text(encoding="utf-8")

    generated = runpy.run_path(str(PROJECT_ROOT / "ops/docs/write_tables.py"))["settings_of_containers"]()

    assert f"\n{generated}\n\n" in text, "run make docs"


@pytest.mark.parametrize("file", FILES)
def test_values_of_environments_are_texts(file: str) -> None:
    """podman-compose stops with a TypeError at a number that is not quoted."""
    environments = {name: service.get("environment", {}) for name, service in services(file).items()}

    assert [
        (name, variable, value)
        for name, variables in environments.items()
        for variable, value in variables.items()
        if not isinstance(value, str)
    ] == []


def test_secrets_reach_production_only_as_files() -> None:
    secrets = {name.upper() for name, field in Settings.model_fields.items() if is_secret(field)}
    passed = {name for service in ("api", "migrate", "exporter") for name in environment("compose.prod.yml", service)}

    assert {f"{name}_FILE" for name in secrets} <= passed
    assert not secrets & passed


@pytest.mark.parametrize(
    "name", ["HEADER_TIMEOUT", "BODY_TIMEOUT", "SEND_TIMEOUT", "KEEP_ALIVE_TIMEOUT", "MAX_BODY_BYTES"]
)
def test_proxy_has_the_limits_of_the_api(name: str) -> None:
    proxy = environment("compose.prod.yml", "proxy")
    [passed] = [value for value in proxy.values() if value.startswith(f"${{{name}:-")]

    assert float(default(passed)) == float(getattr(Settings(), name.lower()))


def services(file: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((PROJECT_ROOT / file).read_text(encoding="utf-8"))["services"]
    return found


def test_swap_limits_equal_the_memory_limits() -> None:
    """Then a container has no swap. Swarm refuses a file with such a limit, so compose.prod.yml has none."""
    production = services("compose.prod.yml")
    without_swap = services("compose.noswap.yml")

    assert {name: {"memswap_limit": memory(service)} for name, service in production.items()} == without_swap
    for file, name in (("compose.acme.yml", "acme"), ("compose.grafana.yml", "grafana")):
        service = services(file)[name]
        assert service["memswap_limit"] == memory(service)


def memory(service: dict[str, Any]) -> Any:
    return service["deploy"]["resources"]["limits"]["memory"]


def test_grafana_is_hardened_and_published_on_the_loopback_address_only() -> None:
    grafana = services("compose.grafana.yml")["grafana"]

    assert [port.partition(":")[0] for port in grafana["ports"]] == ["127.0.0.1"]
    assert grafana["networks"] == ["monitoring"]
    hardened = services("compose.prod.yml")["exporter"]
    for key in ("init", "read_only", "cap_drop", "security_opt", "logging"):
        assert grafana[key] == hardened[key]
    # Grafana reads the file itself: no environment has the password.
    assert grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD"] == "$$__file{/run/secrets/grafana_password}"


def test_standby_is_hardened_and_sized_as_the_primary() -> None:
    """And no secret is in an environment: of its own services, and of those that it extends."""
    primary = services("compose.prod.yml")["postgres"]
    added = services("compose.replica.yml")
    standby = added["standby"]

    same = ("image", "user", "command", "init", "read_only", "cap_drop", "security_opt", "logging", "deploy")
    for key in (*same, "stop_signal", "stop_grace_period", "healthcheck"):
        assert standby[key] == primary[key], key
    for key in (*same[:2], *same[3:-1]):
        assert added["replication"][key] == primary[key], key
    for name in ("standby", "replication"):
        assert added[name]["memswap_limit"] == memory(added[name])
    assert not [each for each in standby["volumes"] if "archive.conf" in str(each)], "only the primary archives"
    assert not set(standby.get("ports", ())) | set(added["replication"].get("ports", ()))
    for service in added.values():
        values = map(str, service.get("environment", {}).values())
        assert not [value for value in values if "password" in value.lower() or "://" in value]


def test_only_the_api_and_the_standby_are_in_the_network_of_reads() -> None:
    added = services("compose.replica.yml")

    assert {name for name, service in added.items() if "reads" in service.get("networks", ())} == {"api", "standby"}
    text = (PROJECT_ROOT / "compose.replica.yml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["networks"] == {"reads": {"internal": True}}
    assert added["replication"]["network_mode"] == "none"


def directive(name: str) -> str:
    """Return the arguments of a directive of haproxy.cfg that occurs once."""
    [found] = re.findall(rf"^ *{name} (.+)$", (PROJECT_ROOT / "ops/proxy/haproxy.cfg").read_text(), re.MULTILINE)
    return str(found)


def test_proxy_passes_on_the_largest_headers_of_the_api() -> None:
    added = 16  # headers of the proxy
    assert int(directive("tune.bufsize")) > Settings().max_header_bytes + added * 128
    assert int(directive("tune.http.maxhdr")) > Settings().max_headers + added


def test_proxy_waits_longer_than_the_api_for_its_database() -> None:
    roles = (PROJECT_ROOT / "ops/postgres/roles.sql").read_text()
    [statement] = re.findall(r"ALTER ROLE headroom_app SET statement_timeout = '(\d+)s'", roles)
    settings = Settings()

    # A deadline of the driver is the server's statement_timeout and 2 s.
    assert int(directive("timeout server").removesuffix("s")) > settings.db_pool_timeout + 2 * (int(statement) + 2)


def test_replica_drains_for_longer_than_the_proxy_needs_to_notice() -> None:
    found = re.match(r".*check inter (\d+)ms fastinter \d+ms fall (\d+)", directive("default-server"))
    assert found
    notices = int(found[1]) / 1000 * (int(found[2]) + 1)

    assert float(default(environment("compose.prod.yml", "api")["DRAIN_SECONDS"])) > notices + 1


def test_proxy_stops_before_it_is_killed() -> None:
    services = yaml.safe_load((PROJECT_ROOT / "compose.prod.yml").read_text())["services"]

    stops = int(directive("hard-stop-after").removesuffix("s"))
    assert stops < int(services["proxy"]["stop_grace_period"].removesuffix("s"))


def test_proxy_has_file_descriptors_for_its_connections() -> None:
    services = yaml.safe_load((PROJECT_ROOT / "compose.prod.yml").read_text())["services"]

    # A connection to the client, one to a replica; health checks, listeners and DNS.
    assert services["proxy"]["ulimits"]["nofile"] > 2 * int(directive("maxconn")) + 500


def test_files_of_development_and_production_are_different_projects() -> None:
    """Otherwise `docker compose down` of one file removes containers of the other."""
    names = {file: yaml.safe_load((PROJECT_ROOT / file).read_text(encoding="utf-8"))["name"] for file in FILES}
    assert len(set(names.values())) == 2, names


HTTP_200 = b"HTTP/1.1 200 OK\r\n\r\n"
HTTP_503 = b"HTTP/1.1 503 because of 200 reasons\r\n\r\nHTTP/1.1 200 OK"


@pytest.mark.parametrize(
    ("answer", "is_healthy"), [(HTTP_200, True), (HTTP_503, False), (b"", False), (b"HTTP/1.1 ", False), (None, False)]
)
@pytest.mark.parametrize(("service", "port", "path"), [("api", 8000, "/readyz"), ("exporter", 9464, "/healthz")])
@pytest.mark.parametrize("file", FILES)
def test_health_is_the_status_of_the_answer(
    file: str, service: str, port: int, path: str, answer: bytes | None, is_healthy: bool
) -> None:
    """Without an answer, nothing listens. The server keeps the connection open, so the check ends by itself."""
    command = services(file)[service]["healthcheck"]["test"]
    assert command[:3] == ["CMD", "bash", "-c"]
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as connections:
        script = command[3].replace(f"127.0.0.1/{port} ", f"127.0.0.1/{listener.getsockname()[1]} ")
        assert script != command[3]
        if answer is None:
            listener.close()
        check = connections.enter_context(subprocess.Popen(["bash", "-c", script], stderr=subprocess.DEVNULL))
        if answer is not None:
            connection = connections.enter_context(listener.accept()[0])
            request = connections.enter_context(connection.makefile("rb"))
            assert (request.readline(), request.readline()) == (f"GET {path} HTTP/1.0\r\n".encode(), b"\r\n")
            connection.sendall(answer)
        assert (check.wait(timeout=60) == 0) == is_healthy
