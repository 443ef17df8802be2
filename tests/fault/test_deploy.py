"""Deploy, rollback and rotation of compose.prod.yml under load. `make bench-deploy` has all of it."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from benchmarks.deploy import ADD_COLUMN, DeployStack, Traffic, build, revision_files
from tests.support.proxied import docker
from tests.support.stacks import IMAGE
from tests.support.waiting import eventually

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def deployed(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeployStack]:
    """Run compose.prod.yml, started by a first deploy."""
    with DeployStack(tmp_path_factory.mktemp("deployed"), IMAGE, workers=1).running() as stack:
        yield stack


@pytest.fixture
def image() -> Iterator[Callable[..., str]]:
    """Build variants of the image."""
    tags: list[str] = []

    def variant(name: str, *statements: str, command: list[str] | None = None) -> str:
        revisions = revision_files({"": list(statements)})
        tags.append(build(IMAGE, f"headroom-{name}:{os.getpid()}", revisions=revisions, command=command or []))
        return tags[-1]

    yield variant
    docker("rmi", "--force", *tags)


def during(stack: DeployStack, choreography: Callable[[], None]) -> None:
    """Run the choreography under load. No request may fail, and nothing that was acknowledged may be lost."""
    traffic = Traffic(stack)
    uvloop.run(traffic.run(10, choreography))
    failed = [each for each in traffic.exchanges if not each.succeeded]
    print(f"{len(traffic.exchanges)} requests")
    assert failed == []
    assert (traffic.wrong, traffic.lost()) == (0, 0)


def test_deploy_with_migration_and_rollback_lose_no_request(deployed: DeployStack, image: Callable[..., str]) -> None:
    """After the rollback, the code of the release before runs on the new schema."""
    [before] = deployed.sql("SELECT version_num FROM alembic_version")
    column = image("next", ADD_COLUMN)

    def choreography() -> None:
        deployed.run("deploy", "--image", column, environment={"DB_POOL_SIZE": "4"})
        assert settings(deployed) == {"4"}
        deployed.run("rollback")
        assert settings(deployed) == {"5"}

    during(deployed, choreography)
    assert deployed.sql("SELECT version_num FROM alembic_version") != [before]
    lines = [json.loads(line) for line in Path(deployed.log).read_text().splitlines()]
    assert [(line["operation"], line["result"]) for line in lines] == [
        ("deploy", "ok"),
        ("deploy", "ok"),
        ("rollback", "ok"),
    ]


def settings(stack: DeployStack) -> set[str]:
    """Return the values of DB_POOL_SIZE in the running replicas."""
    return {docker("exec", replica, "printenv", "DB_POOL_SIZE").strip() for replica in stack.containers()}


def test_deploy_of_a_broken_release_is_undone(deployed: DeployStack, image: Callable[..., str]) -> None:
    """One cannot migrate; one lacks a path, which no client meets; one serves with its first replica and ends then."""
    serving = deployed.containers()
    cannot_migrate = image("fails", ADD_COLUMN, "op.execute('SELECT 1 / 0')")
    # Without a shell: `docker stop` would end the shell, and with it the container, while the replica still drains.
    ends = image("ends", command=["timeout", "4", "headroom", "api"])

    left = f"{deployed.name}-api-trial-left"  # by a deploy that was killed
    deployed.compose("run", "--detach", "--no-deps", "--name", left, "api", "sleep", "600")

    def choreography() -> None:
        finished = deployed.run("deploy", "--image", cannot_migrate, check=False)
        assert (finished.returncode, "migration failed" in finished.stderr) == (1, True), finished.stderr
        assert deployed.containers() == serving
        finished = deployed.run("deploy", "--image", IMAGE, check=False, environment={"DEPLOY_SMOKE_PATH": "/nothing"})
        assert (finished.returncode, ") does not answer /nothing" in finished.stderr) == (1, True), finished.stderr
        assert deployed.containers() == serving
        finished = deployed.run("deploy", "--image", ends, check=False, environment={"DEPLOY_SETTLE_SECONDS": "60"})
        assert (finished.returncode, "serves as before" in finished.stderr) == (1, True), finished.stderr
        eventually(lambda: deployed.replicas_in_proxy() == 2, within=60)

    during(deployed, choreography)
    assert docker("ps", "--all", "--quiet", f"--filter=name={deployed.name}-api-trial-") == ""


def test_rotation_of_secrets_loses_no_request(deployed: DeployStack) -> None:
    """The old role of the database has no password any more, and PgBouncer looks passwords up with its new one."""

    def choreography() -> None:
        for secret in ("pgbouncer_password", "tls_certificate", "app_password"):
            deployed.run("rotate", secret)

    during(deployed, choreography)
    roles = deployed.sql("SELECT rolname FROM pg_authid WHERE rolname LIKE 'headroom_app%' AND rolpassword IS NOT NULL")
    assert roles == [["headroom_app_2"]]
    deployed.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'headroom_pgbouncer%'")

    def has_new_lookup_connection() -> bool:
        return not json.loads(deployed.compose("exec", "-T", "api", "headroom", "budget", "--json"))["remarks"]

    eventually(has_new_lookup_connection, within=60)
