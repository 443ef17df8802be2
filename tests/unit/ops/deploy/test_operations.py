"""The steps of deploys and rollbacks, and what stays after one of them fails."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from ops.deploy import operations
from ops.deploy.errors import CommandFailed, DeployFailed, Interrupted
from ops.deploy.operations import LIMITS_SECONDS, deploy, rollback
from ops.deploy.releases import Release
from ops.deploy.timeline import Timeline
from tests.support.fake_stack import BUDGET, SCHEMA, FakeStack, SimulatedClock, model

FAILED = CommandFailed("docker compose", 1, "", "line\nreason")


@pytest.fixture
def timeline(tmp_path: Path) -> Timeline:
    return Timeline("deploy", tmp_path / "log.jsonl")


@pytest.fixture
def stack(timeline: Timeline) -> FakeStack:
    """Run the release 1, `one`."""
    stack = FakeStack()
    deploy(stack, timeline, "headroom:one")
    stack.calls.clear()
    return stack


def pending(code: str = "a") -> dict[str, CommandFailed | str]:
    """Return the answers of a release that has the revision b, to be applied to the schema of revision a."""
    shown = {"pending": ["b"], "state": "older", "revisions": ["a", "b"], "oldest_after_upgrade": code, "code": ["b"]}
    return {"api headroom schema --json": CommandFailed("docker compose", 1, json.dumps(SCHEMA | shown), "older")}


def test_deploy_checks_migrates_and_replaces_in_this_order(stack: FakeStack, timeline: Timeline) -> None:
    stack.answers = pending()
    deploy(stack, timeline, "headroom:two")

    assert stack.calls == [
        "api headroom budget --json",
        "api headroom schema --json",
        "old headroom schema --json",
        "migrate",
        "try two",
        "request of the trial",
        "end of the trial",
        "start two",
        "request",
        "stop p-api-1",
        "start two",
        "request",
        "stop p-api-2",
    ]
    assert (stack.current() or stack.releases()[0]).version == "two"


def test_schema_without_pending_revisions_is_not_migrated(stack: FakeStack, timeline: Timeline) -> None:
    deploy(stack, timeline, "headroom:two")
    assert "migrate" not in stack.calls


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("api headroom budget --json", r"release 2 \(two\) cannot compute its connection budget: .*reason"),
        ("migrate", "the migration failed: docker compose: reason"),
        ("old headroom schema --json", "docker compose: reason"),
        ("request of the trial", r"release 2 \(two\) does not answer /readyz \(DEPLOY_SMOKE_PATH\) with 200: .*reason"),
    ],
)
def test_failure_before_the_first_replica_replaces_nothing(
    stack: FakeStack, timeline: Timeline, command: str, message: str
) -> None:
    stack.answers = pending() | {command: FAILED}

    with pytest.raises(DeployFailed, match=message) as raised:
        deploy(stack, timeline, "headroom:two")
    assert str(raised.value).endswith("release 1 (one) serves as before")
    assert not any(call.startswith(("start", "stop")) for call in stack.calls)
    assert [release.number for release in stack.releases()] == [1]


@pytest.mark.parametrize("health", ["exited with status 1", "done", "starting"])
def test_release_that_does_not_start_reaches_no_client(stack: FakeStack, timeline: Timeline, health: str) -> None:
    stack.health_of_trial = health
    stack.model["x-deploy"]["ready_seconds"] = "0"

    with pytest.raises(DeployFailed, match=f"does not start: its container is {health}") as raised:
        deploy(stack, timeline, "headroom:two")
    assert raised.value.details == "the log of trial"
    assert stack.calls[-2:] == ["try two", "end of the trial"]


def test_trial_without_room_in_the_budget_is_left_out(stack: FakeStack, timeline: Timeline) -> None:
    """A deploy that was killed has left a third replica, so a fourth container would exceed the budget."""
    stack.start(stack.releases()[0])
    deploy(stack, timeline, "headroom:two")

    assert not any(call.startswith("try") for call in stack.calls)
    assert stack.most == 3


def test_name_next_to_the_right_one_is_left_alone(stack: FakeStack, timeline: Timeline, tmp_path: Path) -> None:
    stack.root = tmp_path
    (tmp_path / "compose.prod.yml").write_text("a: ${DB_POOL_SIZE:-5}\n")
    (tmp_path / ".env").write_text("\ufeffDB_POOL_SIZE=4\nDB_POOLSIZE=5\n", encoding="utf-8")

    deploy(stack, timeline, "headroom:two")


def test_first_deploy_needs_no_trial(timeline: Timeline) -> None:
    stack = FakeStack()
    deploy(stack, timeline, "headroom:one")

    assert not any(call.startswith("try") for call in stack.calls)


@pytest.mark.parametrize(
    ("line", "meant"), [("DB_POOLSIZE=4", "DB_POOL_SIZE"), ("export log_levell = debug", "LOG_LEVEL")]
)
def test_misspelled_name_in_env_file_is_refused(
    stack: FakeStack, timeline: Timeline, tmp_path: Path, line: str, meant: str
) -> None:
    stack.root = tmp_path
    (tmp_path / "compose.prod.yml").write_text("a: ${DB_POOL_SIZE:-5}\nb: $LOG_LEVEL\n")
    (tmp_path / "site.yml").write_text("c: ${LOG_LEVEL2}\n")
    own = "# DB_POOLSIZE=1\nCOMPOSE_FILE='compose.prod.yml:site.yml'\nOWN=1\nLOG_LEVEL2=a\n"
    (tmp_path / ".env").write_text(f"{own}{line}\n")

    with pytest.raises(DeployFailed, match=f"did you mean {meant}"):
        deploy(stack, timeline, "headroom:two")
    assert stack.calls == []


def test_budget_with_assumed_limits_is_queried_again(
    stack: FakeStack, timeline: Timeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PgBouncer starts in the first deploy too, and cannot look up passwords before PostgreSQL serves."""
    clock = SimulatedClock()
    time = SimpleNamespace(monotonic=clock.time, sleep=clock.sleep)
    monkeypatch.setattr(operations, "time", time)
    assumed = json.dumps(BUDGET | {"remarks": ["the console was not queried: login failed"]})
    query = "api headroom budget --json"

    stack.answers[query] = CommandFailed("docker compose", 1, assumed, "over budget: 182 of 100")
    with pytest.raises(DeployFailed, match=r"over budget: 182 of 100; the console was not queried: login failed"):
        deploy(stack, timeline, "headroom:two")
    assert stack.calls.count(query) > 1
    assert clock.now >= LIMITS_SECONDS

    def sleep_until_it_answers(seconds: float) -> None:
        clock.sleep(seconds)
        del stack.answers[query]

    time.sleep = sleep_until_it_answers
    deploy(stack, timeline, "headroom:two")


def test_migration_that_breaks_the_running_code_is_refused(stack: FakeStack, timeline: Timeline) -> None:
    """A contracting revision needs an earlier release that has stopped to use what goes."""
    stack.answers = pending(code="b")

    with pytest.raises(DeployFailed, match="the running release has revision a and could not work after the migration"):
        deploy(stack, timeline, "headroom:two")
    assert "migrate" not in stack.calls


def test_release_that_is_never_ready_is_undone(
    stack: FakeStack, timeline: Timeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.broken = {"two"}
    stack.model["x-deploy"]["ready_seconds"] = "0"

    with pytest.raises(DeployFailed, match=r"not ready after 0 s\. release 1 \(one\) serves as before"):
        deploy(stack, timeline, "headroom:two")
    assert [replica.name for replica in stack.replicas()] == ["p-api-1", "p-api-2"]
    assert [release.number for release in stack.releases()] == [1]


def test_failed_request_to_a_new_replica_undoes_the_deploy(stack: FakeStack, timeline: Timeline) -> None:
    stack.answers = {"request": CommandFailed("docker exec", 1, "", "GET https://proxy:8443/: HTTP Error 500")}

    with pytest.raises(DeployFailed, match="HTTP Error 500"):
        deploy(stack, timeline, "headroom:two")
    assert stack.releases_of_replicas() == [1, 1]


def test_rollback_requests_the_path_of_its_release(stack: FakeStack, timeline: Timeline) -> None:
    """The release before may lack the path of a domain that came later."""
    stack.model["x-deploy"]["smoke_path"] = "/tags?limit=1"
    deploy(stack, timeline, "headroom:two")
    assert stack.requested[-1] == "/tags?limit=1"

    rollback(stack, timeline)

    assert stack.requested[-1] == "/readyz"


@pytest.mark.parametrize(
    ("error", "message"), [(Interrupted(), "interrupted"), (OSError(28, "No space left on device"), "No space left")]
)
def test_deploy_that_ends_after_the_first_replica_is_undone(
    stack: FakeStack, timeline: Timeline, monkeypatch: pytest.MonkeyPatch, error: BaseException, message: str
) -> None:
    def end(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(operations, "check_replica", end)
    with pytest.raises(DeployFailed, match=message):
        deploy(stack, timeline, "headroom:two")
    assert stack.releases_of_replicas() == [1, 1]


def test_replicas_without_a_release_can_be_restored(timeline: Timeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose started them. The environment of their release is that of the containers, not that of now."""
    stack = FakeStack(replicas=3)
    stack.start(Release("p", 0, "", stack.model), 2)
    inspected = [{"Image": "sha256:1", "Config": {"Env": ["API_SURGE=1", "DB_POOL_SIZE=3"]}}]
    monkeypatch.setattr(stack, "docker", lambda *arguments: json.dumps(inspected) if arguments[0] == "inspect" else "")
    stack.broken = {"two"}
    stack.model["x-deploy"]["ready_seconds"] = "0"

    with pytest.raises(DeployFailed, match=r"release 0 \(adopted\) serves as before"):
        deploy(stack, timeline, "headroom:two")
    [adopted] = stack.releases()
    assert adopted.model["services"]["api"]["environment"] == {"API_SURGE": "1", "DB_POOL_SIZE": "3"}
    assert (adopted.replicas, stack.releases_of_replicas()) == (2, [0, 0])


def test_rollback_goes_back_one_release_at_a_time(stack: FakeStack, timeline: Timeline) -> None:
    """The release before is the one that ran before, not the one with the next smaller number."""
    stack.model["x-deploy"]["keep"] = "9"
    for version in ("two", "bad"):
        deploy(stack, timeline, f"headroom:{version}")
    rollback(stack, timeline)
    deploy(stack, timeline, "headroom:four")

    serving = []
    for _ in range(2):
        rollback(stack, timeline)
        serving.append(str(stack.current()))
    assert serving == ["release 2 (two)", "release 1 (one)"]
    assert stack.releases_of_replicas() == [1, 1]
    with pytest.raises(DeployFailed, match="the images of the release before release 1"):
        rollback(stack, timeline)

    rollback(stack, timeline, to="bad")
    assert str(stack.current()) == "release 3 (bad)"
    with pytest.raises(DeployFailed, match="serves already"):
        rollback(stack, timeline, to="3")


def test_rollback_restores_the_settings(stack: FakeStack, timeline: Timeline) -> None:
    stack.model = model(DB_POOL_SIZE="9")
    deploy(stack, timeline, "headroom:one")
    rollback(stack, timeline)
    current = stack.current()
    assert current is not None
    assert current.model["services"]["api"]["environment"] == {"API_SURGE": "1"}


def test_rollback_to_code_that_may_not_run_is_refused(stack: FakeStack, timeline: Timeline) -> None:
    deploy(stack, timeline, "headroom:two")
    stack.answers = {"api headroom schema": CommandFailed("docker compose", 1, "", "revision b is contracting")}

    with pytest.raises(DeployFailed, match=r"may not run on the schema: .* revision b is contracting"):
        rollback(stack, timeline)
    assert stack.releases_of_replicas() == [2, 2]


def test_old_images_are_removed_but_not_the_one_before(stack: FakeStack, timeline: Timeline) -> None:
    for version in ("two", "three", "four"):
        deploy(stack, timeline, f"headroom:{version}")
    assert [release.number for release in stack.releases()] == [3, 4]


def test_deploy_without_room_for_another_replica_is_refused(timeline: Timeline) -> None:
    with pytest.raises(DeployFailed, match="API_SURGE is 0"):
        deploy(FakeStack(surge=0), timeline, "headroom:one")


def test_missing_secret_is_named_before_anything_else(timeline: Timeline, tmp_path: Path) -> None:
    stack = FakeStack()
    (tmp_path / "empty").touch()
    stack.model["secrets"] = {"database_url": {"file": str(tmp_path / "empty")}}

    with pytest.raises(DeployFailed, match=r"the secret .*empty is missing: make secrets"):
        deploy(stack, timeline, "headroom:one")
    assert stack.calls == []


def test_deploy_next_to_an_installation_of_before_is_refused(
    timeline: Timeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMPOSE_PROJECT_NAME", raising=False)
    stack = FakeStack(tmp_path)
    stack.listed = "headroom\tpgbouncer\t/srv/headroom\t/srv/headroom/compose.prod.yml"

    with pytest.raises(DeployFailed, match=r"Set COMPOSE_PROJECT_NAME=headroom in \.env to deploy to it"):
        deploy(stack, timeline, "headroom:one")
    assert (stack.calls, stack.releases()) == ([], [])


def test_log_has_a_line_for_each_operation(tmp_path: Path) -> None:
    log = tmp_path / "folder/log.jsonl"
    stack = FakeStack()
    for version, broken in (("one", False), ("two", True)):
        timeline = Timeline("deploy", log)
        stack.broken = {version} if broken else set()
        stack.model["x-deploy"]["ready_seconds"] = "0"
        try:
            with timeline.kept():
                deploy(stack, timeline, f"headroom:{version}")
        except DeployFailed:
            assert broken

    first, second = (json.loads(line) for line in log.read_text().splitlines())
    assert (first["operation"], first["release"], first["version"], first["result"]) == ("deploy", 1, "one", "ok")
    assert [step["step"] for step in first["steps"]][-1] == "done"
    assert "not ready after 0 s" in second["result"]
