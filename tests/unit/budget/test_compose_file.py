"""`headroom budget --file`: the budget of a Compose file counts the replicas that it starts."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.budget.compose_file import from_compose_file, is_compose_file
from app.cli.main import main
from app.errors import ConfigurationError
from app.lanes import LaneSpec
from app.paths import PROJECT_ROOT
from tests.unit.budget import test_files as files

SERVICE = {"environment": {"API_REPLICAS": "${API_REPLICAS:-2}"}, "deploy": {"replicas": "${API_REPLICAS:-2}"}}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a folder with the configuration files of a server and of PgBouncer."""
    (tmp_path / "postgresql.conf").write_text("max_connections = 50  # a comment\nreserved_connections = '4'\n")
    (tmp_path / "plain.conf").write_text("max_connections 60\n")
    (tmp_path / "pgbouncer.ini").write_text("; max_client_conn = 1\nmax_client_conn = 300\nmax_db_connections = 20\n")
    return tmp_path


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """Return a folder with our Compose files and `ops/`, without the developer's `.env`."""
    for name in ("docker-compose.yml", "compose.prod.yml", "ops"):
        (tmp_path / name).symlink_to(PROJECT_ROOT / name)
    return tmp_path


def text(api: dict[str, Any] = SERVICE, **services: Any) -> str:
    return yaml.safe_dump({"services": {"api": api, **services}})


@pytest.mark.parametrize("file", ["docker-compose.yml", "compose.prod.yml"])
def test_budget_of_our_files_is_that_of_their_terms_and_ops(ours: Path, file: str) -> None:
    report = from_compose_file((ours / file).read_text(), ours, {})

    budget = report.budget
    assert budget.api == files.api_pools(files.compose(file, "api")["environment"])
    assert budget.server == files.server()
    assert budget.pooler == (files.pooler() if file == "compose.prod.yml" else None)
    assert (budget.exceeded, report.remarks) == ([], ())


def test_variables_of_the_environment_come_before_those_of_the_file(project: Path) -> None:
    (project / ".env").write_text("API_REPLICAS=3\nDB_POOL_SIZE=7\n")
    api = SERVICE | {"environment": ["API_REPLICAS=${API_REPLICAS}", "DB_POOL_SIZE=$DB_POOL_SIZE"]}

    budget = from_compose_file(text(api), project, {"API_REPLICAS": "4"}).budget

    assert (budget.api.replicas, budget.api.pool_size) == (4, 7)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("${A}", "1"),
        ("$A", "1"),
        ("${A:-2}", "1"),
        ("${EMPTY:-2}", "2"),
        ("${EMPTY-2}", ""),
        ("${NONE:-${ALSO_NONE:-3}}", "3"),
        ("${NONE:-${A}}", "1"),
        ("${NONE:-${A}}${A}", "11"),
        ("${A:-${NONE:?is needed}}", "1"),
        ("${NONE:+${NONE:?is needed}}", ""),
        ("${NONE:-${ALSO_NONE:-${EMPTY:-4}}}", "4"),
        ("${A:+${EMPTY:-6}}", "6"),
        ("${NONE:-$${A}}", "${A}"),
        ("${NONE-$1}", "$1"),
        ("${A:+5}", "5"),
        ("${NONE:+5}", ""),
        ("$${A}", "${A}"),
        ("$SECRET", "${A}$SECRET"),
    ],
)
def test_variable_is_replaced_as_compose_does(project: Path, value: str, expected: str) -> None:
    api = {"environment": {"API_SURGE": value}}

    variables = {"A": "1", "EMPTY": "", "SECRET": "${A}$SECRET"}

    def surge() -> int:
        return from_compose_file(text(api), project, variables).budget.api.surge

    if expected.startswith("$"):
        with pytest.raises(ConfigurationError, match=f"API_SURGE: .* whole number, got {re.escape(repr(expected))}"):
            surge()
    else:
        assert surge() == int(expected or 0)


@pytest.mark.parametrize("environment", [["DB_POOL_SIZE"], {"DB_POOL_SIZE": None}])
def test_variable_without_a_value_has_that_of_the_environment(project: Path, environment: Any) -> None:
    (project / ".env").write_text("DB_POOL_SIZE=7\n")

    assert from_compose_file(text({"environment": environment}), project, {}).budget.api.pool_size == 7


@pytest.mark.parametrize("name", ["DATABASE_READ_URL", "DATABASE_READ_URL_FILE"])
def test_pools_to_a_standby_count(project: Path, name: str) -> None:
    environment = {name: "${STANDBY:-}", "DB_READ_POOL_SIZE": "30", "DB_POOL_SIZE": "1", "DB_MAX_OVERFLOW": "1"}

    def exceeded(**variables: str) -> list[str]:
        report = from_compose_file(text({"environment": environment}), project, variables)
        return [each.name for each in report.budget.exceeded]

    assert exceeded() == []
    assert exceeded(STANDBY="there") == ["read server connections"]


def test_replicas_that_compose_starts_count_not_the_variable(project: Path) -> None:
    report = from_compose_file(text({"scale": 5, "environment": {"API_REPLICAS": 2}}), project, {})

    assert report.budget.api.replicas == 5
    assert "API_REPLICAS of the service api is 2, but Compose starts 5 replicas" in report.remarks[0]


def test_lanes_of_the_application_are_shown(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.lanes.OWN_LANES", (LaneSpec("reports", share=0.5, queue=2, deadline=1),))
    api = SERVICE | {"environment": {"DB_EXPENSIVE_SHARE": "0.25"}}

    limits = from_compose_file(text(api), project, {}).budget.lanes.limits
    assert (limits["reports"], limits["expensive"]) == (0.5, 0.25)


def test_variables_of_an_env_file_count_below_those_of_the_service(project: Path) -> None:
    (project / "api.env").write_text("DB_POOL_SIZE=8\nDB_MAX_OVERFLOW=9\n")
    api = {"env_file": [{"path": "api.env"}, "missing.env"], "environment": {"DB_MAX_OVERFLOW": "1"}}

    pools = from_compose_file(text(api), project, {}).budget.api
    assert (pools.pool_size, pools.max_overflow) == (8, 1)


@pytest.mark.parametrize(
    ("postgres", "variables", "limits", "source"),
    [
        ({"volumes": ["./postgresql.conf:/etc/postgresql.conf:ro"]}, {}, (50, 4), "postgresql.conf"),
        (
            {"volumes": [{"source": "postgresql.conf", "target": "/etc/postgresql.conf"}]},
            {},
            (50, 4),
            "postgresql.conf",
        ),
        (
            {"volumes": ["./postgresql.conf:/etc/postgresql.conf"], "command": "postgres -c max_connections=70"},
            {},
            (70, 4),
            "postgresql.conf",
        ),
        ({"command": ["postgres", "-c", "max_connections=70"]}, {}, (70, 0), "the service's command"),
        ({"command": "postgres --max-connections=70"}, {}, (70, 0), "the service's command"),
        ({"command": ["postgres", "-N", "70"]}, {}, (70, 0), "the service's command"),
        ({"volumes": ["./plain.conf:/etc/postgresql.conf"]}, {}, (60, 0), "plain.conf"),
        ({"volumes": ["./postgresql.conf:/etc/postgresql.conf"]}, {"MAX": "30"}, (30, 4), "postgresql.conf"),
        ({"volumes": ["./postgresql.conf:/etc/postgresql.conf"]}, {"MAX": "80"}, (50, 4), "postgresql.conf"),
        ({}, {"MAX": "80"}, (80, 0), "the variables POSTGRES_*"),
    ],
)
def test_limits_of_the_server_are_those_of_its_service(
    project: Path, postgres: dict[str, Any], variables: dict[str, str], limits: tuple[int, int], source: str
) -> None:
    """A lower POSTGRES_MAX_CONNECTIONS is our share of the server."""
    api = {"environment": {"POSTGRES_MAX_CONNECTIONS": "${MAX:-}"}}
    report = from_compose_file(text(api, postgres=postgres), project, variables)

    assert (report.budget.server.max_connections, report.budget.server.reserved_connections) == limits
    assert source in report.sources["server"]


@pytest.mark.parametrize(
    ("pgbouncer", "expected"),
    [
        ({"build": "."}, (300, 20, 1)),
        ({"build": {"context": "."}, "deploy": {"replicas": 3}}, (300, 20, 3)),
        ({"volumes": ["./pgbouncer.ini:/etc/pgbouncer/pgbouncer.ini"]}, (300, 20, 1)),
        ({"image": "pgbouncer"}, (600, 0, 1)),
    ],
)
def test_limits_of_pgbouncer_are_those_of_its_service(
    project: Path, pgbouncer: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    api = {"environment": {"DB_POOLER": "pgbouncer", "PGBOUNCER_MAX_CLIENT_CONN": "600"}}
    pooler = from_compose_file(text(api, pgbouncer=pgbouncer), project, {}).budget.pooler

    assert pooler is not None
    assert (pooler.max_client_conn, pooler.max_db_connections, pooler.instances) == expected


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("services: {web: {image: x}}", "must have a service named api, got web"),
        ("services: {api: {volumes: !override []}}", "several files, and those with !override or !reset, need `docker"),
        ("services: {api: {deploy: {replicas: many}}}", "the Compose file is not valid (ValueError"),
        (text({"environment": {"DB_POOL_SIZE": "x"}}), "DB_POOL_SIZE: the service api must set it to a whole number"),
        (text({"image": "a:${TAG:?which version}"}), "TAG: the Compose file needs this variable: which version"),
        (text({"image": "${TAG:-${OTHER:?}}"}), "OTHER: the Compose file needs this variable"),
        (text({"image": "${TAG?not ${OTHER:-there}}"}), "TAG: the Compose file needs this variable: not there"),
        (text({"image": "${TAG:-${OTHER}"}), "a variable without its closing brace: ${TAG:-${OTHER}"),
        (text({"image": "${TAG:=1}"}), "a variable that Compose does not know: ${TAG:=1}"),
    ],
    ids=["no-api", "merge", "replicas", "number", "required", "nested", "message", "brace", "operator"],
)
def test_compose_file_without_a_budget_is_refused(project: Path, content: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        from_compose_file(content, project, {})

    assert complaint in str(caught.value)


def test_command_tells_compose_files_from_manifests(
    ours: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_compose_file("kind: Service\nspec:\n  services: none\n")
    for name in ("API_REPLICAS", "POSTGRES_MAX_CONNECTIONS"):
        monkeypatch.delenv(name, raising=False)
    prod = str(ours / "compose.prod.yml")

    assert main(["budget", "--file", prod]) == 0
    captured = capsys.readouterr()
    assert "limits of the pooler: from" in captured.out
    monkeypatch.setenv("API_REPLICAS", "9")
    assert main(["budget", "--file", prod]) == 1
    assert "over budget: pooler clients: 602 demanded, 400 available" in capsys.readouterr().err
