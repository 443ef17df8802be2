"""The order of the steps of a deploy, and what is undone, with a swarm in memory."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.paths import PROJECT_ROOT
from ops.deploy.timeline import Timeline, log_file
from ops.swarm import checks, releases
from ops.swarm.__main__ import compose_files
from ops.swarm.deploy import Deployment
from ops.swarm.docker import Docker
from ops.swarm.errors import SwarmError
from ops.swarm.stack import REPLACE, Object, Stack
from tests.support.fake_swarm import STACK, FakeSwarm

DATA = {"placement": {"constraints": ["node.labels.headroom.data == true"]}, "labels": {REPLACE: "on-request"}}


def stack(version: str, *, postgres: str = "postgres:17", key: str = "key-1", **services: dict[str, Any]) -> Stack:
    """Return a stack of this version. `key` is the name of the API's secret."""
    volume = {"type": "volume", "source": "postgres", "target": "/data"}
    document: dict[str, Any] = {
        "services": {
            "postgres": {"image": postgres, "deploy": DATA, "volumes": [volume]},
            "migrate": {"image": f"headroom:{version}"},
            "api": {"image": f"headroom:{version}", "secrets": [{"source": key, "target": "/run/secrets/secret_key"}]},
            **services,
        },
        "networks": {},
        "volumes": {"postgres": {}},
        "configs": {},
        "secrets": {key: {"external": True, "name": key}},
    }
    return Stack(STACK, document, (Object("secret", key, b"correct horse"),), frozenset({"api"}))


class Clock:
    """Time passes only in sleep()."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def swarm() -> FakeSwarm:
    return FakeSwarm()


@pytest.fixture
def docker(swarm: FakeSwarm, tmp_path: Path) -> Docker:
    return Docker(STACK, tmp_path, run=swarm.run)


Start = Callable[..., Deployment]


@pytest.fixture
def start(docker: Docker, tmp_path: Path) -> Start:
    """Return a function that starts a deployment. `problem` is what the request through the proxy finds."""

    def start(problem: str | None = None) -> Deployment:
        clock = Clock()
        timeline = Timeline("deploy", log_file(tmp_path))
        return Deployment(docker, timeline, within=120, smoke=lambda _: problem, clock=clock, sleep=clock.sleep)

    return start


def deploy(start: Start, new: Stack, *, data: bool = False) -> None:
    start().deploy(new, data=data)


def test_first_deploy_starts_the_database_then_migrates(swarm: FakeSwarm, start: Start) -> None:
    deploy(start, stack("1"))

    assert swarm.deployed == [{"postgres"}, {"migrate"}, {"postgres", "api"}]
    assert swarm.secrets == {"key-1": b"correct horse"}


def test_deploy_migrates_before_it_updates_a_service(swarm: FakeSwarm, start: Start, docker: Docker) -> None:
    deploy(start, stack("1"))
    swarm.deployed.clear()

    deploy(start, stack("2"))

    assert swarm.deployed == [{"migrate"}, {"postgres", "api"}]
    assert swarm.image("api") == "headroom:2"
    assert [(each.number, each.version) for each in releases.read_all(docker)] == [(1, "1"), (2, "2")]


def test_images_are_brought_under_the_lock_before_any_change(
    swarm: FakeSwarm, start: Start, docker: Docker, capsys: pytest.CaptureFixture[str]
) -> None:
    def images() -> list[str]:
        assert (swarm.deployed, swarm.secrets, list(swarm.configs)) == ([], {}, ["headroom_lock"])
        return ["built"]

    start().deploy(stack("1"), data=False, images=images)
    assert "images               built" in capsys.readouterr().out


def test_log_line_of_a_deploy_names_its_release(start: Start) -> None:
    deployment = start()
    with deployment.timeline.kept():
        deployment.deploy(stack("1"), data=False)
    with pytest.raises(SwarmError), deployment.timeline.kept():
        deployment.rollback(7, data=False)

    done, failed = (json.loads(line) for line in log_file(deployment.docker.root).read_text().splitlines())
    assert (done["release"], done["version"], done["result"]) == (1, "1", "ok")
    assert failed["result"] == "release 7 is not recorded; there are: 1"


def test_deploy_prints_the_budget_of_the_migration_job(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    deploy(start, stack("1"))

    printed = capsys.readouterr().out
    assert "migrate              the schema is up to date; connection budget: 34 of 92 server" in printed


def test_failed_migration_leaves_the_services_alone(swarm: FakeSwarm, start: Start, docker: Docker) -> None:
    deploy(start, stack("1"))
    swarm.deployed.clear()
    swarm.migration = "Failed"

    with pytest.raises(SwarmError, match="the migration failed: task: non-zero exit") as failed:
        deploy(start, stack("2"))

    assert "connection budget" in failed.value.details, "the log of the job"
    assert swarm.deployed == [{"migrate"}]
    assert swarm.image("api") == "headroom:1"
    assert len(releases.read_all(docker)) == 1


def test_migration_that_does_not_end_is_removed(swarm: FakeSwarm, start: Start) -> None:
    deploy(start, stack("1"))
    swarm.migration = "Running"

    with pytest.raises(SwarmError, match="the migration did not end within 120 s; it was stopped"):
        deploy(start, stack("2"))

    assert "migrate" not in swarm.services
    assert swarm.image("api") == "headroom:1"


def test_migration_is_removed_if_a_signal_ends_the_wait(swarm: FakeSwarm, start: Start) -> None:
    deploy(start, stack("1"))
    swarm.migration = "Running"
    deployment = start()

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    deployment.sleep = interrupt
    with pytest.raises(KeyboardInterrupt):
        deployment.deploy(stack("2"), data=False)

    assert "migrate" not in swarm.services
    assert swarm.image("api") == "headroom:1"


def test_failed_update_is_undone_in_every_service(
    swarm: FakeSwarm, start: Start, docker: Docker, capsys: pytest.CaptureFixture[str]
) -> None:
    """Swarm undoes the update of the service that failed. The others go back too, and new ones are removed."""
    deploy(start, stack("1", exporter={"image": "headroom:1"}))
    swarm.broken = {"headroom:2"}

    with pytest.raises(SwarmError, match="the update of api failed: update of api"):
        deploy(start, stack("2", exporter={"image": "exporter:2"}, grafana={"image": "grafana:1"}))

    assert {swarm.image("api"), swarm.image("exporter")} == {"headroom:1"}
    assert "grafana" not in swarm.services
    assert len(releases.read_all(docker)) == 1
    assert "undo                 release 1 (1) runs again" in capsys.readouterr().out


def test_failed_request_through_the_proxy_is_undone(swarm: FakeSwarm, start: Start) -> None:
    deploy(start, stack("1"))

    with pytest.raises(SwarmError, match="the request through the proxy failed: GET /readyz: 503"):
        start("GET /readyz: 503").deploy(stack("2"), data=False)

    assert swarm.image("api") == "headroom:1"


def test_service_that_never_runs_is_named_with_its_error(swarm: FakeSwarm, start: Start) -> None:
    swarm.unhealthy = {"postgres"}

    with pytest.raises(SwarmError, match="not finished within 120 s: postgres") as failed:
        deploy(start, stack("1"))

    assert "postgres on node1: task: non-zero exit (1)" in failed.value.details


def test_second_operation_is_refused_with_the_holder(swarm: FakeSwarm, start: Start, docker: Docker) -> None:
    deploy(start, stack("1"))
    swarm.deployed.clear()

    with (
        releases.locked(docker, "deploy of 2"),
        pytest.raises(SwarmError, match=r"deploy of 2 by .+ is not finished; .+ docker config rm headroom_lock"),
    ):
        deploy(start, stack("3"))

    assert swarm.deployed == []


def test_lock_is_released_after_a_failure(swarm: FakeSwarm, start: Start) -> None:
    swarm.migration = "Failed"
    with pytest.raises(SwarmError):
        deploy(start, stack("1"))
    swarm.migration = "Complete"

    deploy(start, stack("1"))


def test_database_is_replaced_only_on_request(
    swarm: FakeSwarm, start: Start, docker: Docker, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy(start, stack("1"))

    deploy(start, stack("2", postgres="postgres:18"))
    assert swarm.image("postgres") == "postgres:17"
    assert "postgres: differ from this version and stay" in capsys.readouterr().out
    assert releases.read_all(docker)[-1].document["services"]["postgres"]["image"] == "postgres:17"

    deploy(start, stack("3", postgres="postgres:18"), data=True)
    assert swarm.image("postgres") == "postgres:18"


def test_service_that_the_files_lack_is_removed_and_no_job(swarm: FakeSwarm, start: Start) -> None:
    deploy(start, stack("1", grafana={"image": "grafana:1"}))
    deploy(start, stack("2"))

    assert swarm.services.keys() == {"postgres", "migrate", "api"}


def test_rollback_deploys_the_last_release_of_another_version(swarm: FakeSwarm, start: Start, docker: Docker) -> None:
    """With its own secret: a rotation is undone too. The schema stays."""
    deploy(start, stack("1"))
    deploy(start, stack("2", key="key-2"))
    deploy(start, stack("2", key="key-3"))
    swarm.deployed.clear()

    start().rollback(None, data=False)

    assert swarm.image("api") == "headroom:1"
    assert swarm.deployed == [{"postgres", "api"}]
    newest = releases.read_all(docker)[-1]
    assert (newest.number, newest.version, newest.remark) == (4, "1", "rolled back to release 1")
    assert newest.document["secrets"] == {"key-1": {"external": True, "name": "key-1"}}


def test_rollback_to_an_unknown_release_lists_the_known_ones(start: Start) -> None:
    deploy(start, stack("1"))
    deploy(start, stack("2"))

    with pytest.raises(SwarmError, match="release 7 is not recorded; there are: 1, 2"):
        start().rollback(7, data=False)


def test_rollback_without_another_version_is_refused(start: Start) -> None:
    with pytest.raises(SwarmError, match="no release is recorded: deploy first"):
        start().rollback(None, data=False)
    deploy(start, stack("1"))
    with pytest.raises(SwarmError, match="no release of another version than 1 is recorded"):
        start().rollback(None, data=False)


def test_old_releases_and_their_objects_are_removed(swarm: FakeSwarm, start: Start, docker: Docker) -> None:
    for number in range(1, 8):
        deploy(start, stack(str(number), key=f"key-{number}"))

    assert [each.number for each in releases.read_all(docker)] == [3, 4, 5, 6, 7]
    assert sorted(swarm.secrets) == ["key-3", "key-4", "key-5", "key-6", "key-7"]
    assert sorted(swarm.configs) == [f"headroom_release_00000{number}" for number in range(3, 8)]


def test_object_that_a_service_uses_stays(swarm: FakeSwarm, start: Start) -> None:
    swarm.used = {"key-1"}
    for number in range(1, 8):
        deploy(start, stack(str(number), key=f"key-{number}"))

    assert "key-1" in swarm.secrets


def test_release_refers_to_secrets_by_name(swarm: FakeSwarm, start: Start) -> None:
    deploy(start, stack("1"))

    release = swarm.configs["headroom_release_000001"]
    assert b'"source": "key-1"' in release
    assert swarm.secrets["key-1"] not in release


@pytest.mark.parametrize(
    ("image", "options"),
    [
        ("registry.example.com/team/headroom:1", ["--resolve-image", "always", "--with-registry-auth"]),
        ("localhost/headroom:1", ["--resolve-image", "always", "--with-registry-auth"]),
        ("prom/prometheus:v2", ["--resolve-image", "never"]),
    ],
)
def test_digests_are_looked_up_only_with_a_registry(
    swarm: FakeSwarm, start: Start, image: str, options: list[str]
) -> None:
    deploy(start, stack("1", api={"image": image}))

    assert all(set(options) <= set(used) for used in swarm.options)


def test_tag_that_names_no_version_is_refused(swarm: FakeSwarm, start: Start) -> None:
    with pytest.raises(SwarmError, match="the image of api has the tag latest: set IMAGE_TAG"):
        deploy(start, stack("latest"))

    assert swarm.deployed == []


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"LocalNodeState": "inactive"}, "in no swarm: docker swarm init"),
        ({"LocalNodeState": "active", "ControlAvailable": False}, "not a manager"),
    ],
)
def test_engine_that_is_no_manager_is_refused(
    swarm: FakeSwarm, start: Start, state: dict[str, Any], message: str
) -> None:
    swarm.state = state

    with pytest.raises(SwarmError, match=message):
        deploy(start, stack("1"))


def test_service_without_a_machine_is_refused_with_the_label(swarm: FakeSwarm, start: Start) -> None:
    swarm.nodes = {"node1": {}, "node2": {"headroom.data": "true"}}
    swarm.drained = {"node2"}

    with pytest.raises(SwarmError, match=r"service postgres: no machine .+ --label-add headroom.data=true NODE"):
        deploy(start, stack("1"))

    assert swarm.deployed == []


def test_data_on_two_machines_is_refused(swarm: FakeSwarm, start: Start) -> None:
    swarm.nodes = {"node1": {"headroom.data": "true"}, "node2": {"headroom.data": "true"}}

    with pytest.raises(SwarmError, match=r"service postgres: its volumes are local to a machine, but node1, node2"):
        deploy(start, stack("1"))


def test_metrics_of_a_machine_are_no_data() -> None:
    """The API runs on every machine, and its volume belongs to the exporter of the machine."""
    metrics = [{"type": "volume", "source": "metrics", "target": "/metrics"}]
    services: dict[str, Any] = {
        "api": {"image": "headroom:1", "volumes": metrics},
        "exporter": {"image": "headroom:1", "volumes": metrics, "deploy": {"mode": "global"}},
    }
    docker = Docker(STACK, Path(), run=FakeSwarm().run)

    checks.check_places(stack("1", **services), docker.nodes())


def test_failed_way_back_is_named_with_the_first_error(swarm: FakeSwarm, start: Start) -> None:
    deploy(start, stack("1"))
    swarm.broken = {"headroom:2"}
    swarm.unhealthy = {"postgres"}

    with pytest.raises(SwarmError, match=r"the update of api failed: .+; and going back failed: not finished within"):
        deploy(start, stack("2"))


@pytest.mark.parametrize(
    ("arguments", "program"),
    [
        ("deploy to=swarm data=yes build=no", "-m ops.swarm deploy --data --no-build"),
        ("deploy to=swarm hosts=ssh://b on=u@a", "DOCKER_HOST=ssh://u@a python -m ops.swarm deploy --hosts ssh://b"),
        ("rollback to=swarm release=5", "-m ops.swarm rollback --to 5"),
        ("deploy image=a:1", "-m ops.deploy deploy --image a:1"),
        ("rollback to=5", "-m ops.deploy rollback --to 5"),
    ],
)
def test_make_runs_the_program_of_one_or_several_machines(arguments: str, program: str) -> None:
    shown = make("--dry-run", *arguments.split())
    assert program in " ".join(shown.stdout.split())


def test_make_deploy_to_something_else_is_refused() -> None:
    refused = make("deploy", "to=node1")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "to: must be swarm, or be left out for one machine, got node1" in refused.stderr


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "PYTHON=python", *arguments]
    # Below another make, as in `make test`, it would print the directories that it enters.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("given", "files"),
    [
        (None, ["compose.prod.yml", "compose.swarm.yml"]),
        ("compose.prod.yml:own.yml", ["compose.prod.yml", "compose.swarm.yml", "own.yml"]),
        ("compose.prod.yml:compose.swarm.yml", ["compose.prod.yml", "compose.swarm.yml"]),
    ],
)
def test_file_of_swarm_comes_after_the_one_of_production(given: str | None, files: list[str]) -> None:
    """Further files, such as that of a server elsewhere, remove what the file of Swarm changes."""
    assert compose_files(given) == files


def test_compose_file_without_production_is_refused() -> None:
    with pytest.raises(SwarmError, match=r"COMPOSE_FILE: must contain compose\.prod\.yml, got own\.yml"):
        compose_files("own.yml")
