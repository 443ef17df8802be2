"""The replacement of replicas: start first, never more than the budget allows, and back if it fails."""

from dataclasses import replace
from pathlib import Path

import pytest

from ops.deploy.errors import DeployFailed
from ops.deploy.releases import Release
from ops.deploy.rollout import Limits, Rollout
from ops.deploy.stack import Replica
from ops.deploy.timeline import Timeline
from tests.support.fake_stack import FakeStack, SimulatedClock, model


def release(number: int, version: str, replicas: int = 2, surge: int = 1) -> Release:
    return Release("p", number, version, model(replicas=replicas, surge=surge))


class Scene:
    """A stack with two releases, the first of which serves, and a rollout of the second one."""

    def __init__(self, tmp_path: Path, *, settle: float = 0, replicas: int = 2, surge: int = 1) -> None:
        self.stack = FakeStack()
        self.before = release(1, "before", replicas=replicas, surge=surge)
        self.after = release(2, "after", replicas=replicas, surge=surge)
        for each in (self.before, self.after):
            self.stack.label(each, "")
        self.stack.start(self.before, replicas)
        self.clock = SimulatedClock()
        self.checked: list[str] = []
        self.rollout = Rollout(
            self.stack,
            Timeline("deploy", tmp_path / "log"),
            Limits(ready=30, settle=settle),
            clock=self.clock.time,
            sleep=self._sleep,
        )
        self.at: dict[float, Replica] = {}

    def _sleep(self, seconds: float) -> None:
        self.clock.sleep(seconds)
        for moment, changed in list(self.at.items()):
            if self.clock.now >= moment:
                del self.at[moment]
                self.stack.containers_of_the_api = [
                    changed if each.id == changed.id else each for each in self.stack.containers_of_the_api
                ]

    def go(self) -> None:
        self.rollout.to(self.after, lambda replica: self.checked.append(replica.name))


@pytest.mark.parametrize(("replicas", "surge"), [(1, 1), (2, 1), (3, 2), (2, 5)])
def test_rollout_starts_before_it_stops(tmp_path: Path, replicas: int, surge: int) -> None:
    scene = Scene(tmp_path, replicas=replicas, surge=surge)
    fewest = replicas

    def stop(replica: Replica) -> None:
        nonlocal fewest
        FakeStack.stop(scene.stack, replica)
        fewest = min(fewest, len(scene.stack.serving()))

    scene.stack.stop = stop  # type: ignore[method-assign]
    scene.go()

    assert scene.stack.releases_of_replicas() == [2] * replicas
    assert (fewest, len(scene.checked)) == (replicas, replicas)
    assert scene.stack.most <= replicas + surge


def test_number_of_replicas_changes_with_the_release(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.after = release(2, "after", replicas=4)
    scene.go()
    assert scene.stack.releases_of_replicas() == [2, 2, 2, 2]

    scene.rollout.back_to(scene.before)
    assert scene.stack.releases_of_replicas() == [1, 1]
    assert scene.stack.most <= 5


def test_replica_that_is_never_ready_ends_the_rollout(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.stack.broken = {"after"}

    with pytest.raises(DeployFailed, match="replica p-api-3 was not ready after 30 s") as raised:
        scene.go()
    assert raised.value.details == "the log of id-3"
    assert scene.stack.releases_of_replicas() == [1, 1, 2]

    scene.rollout.back_to(scene.before)
    assert [replica.name for replica in scene.stack.replicas()] == ["p-api-1", "p-api-2"]


def test_replica_that_ends_at_its_start_is_not_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path)
    start = scene.stack.start_replicas

    def start_and_crash(new: Release, number: int) -> None:
        start(new, number)
        scene.stack.containers_of_the_api[-1] = replace(scene.stack.containers_of_the_api[-1], restarts=1)

    monkeypatch.setattr(scene.stack, "start_replicas", start_and_crash)
    with pytest.raises(DeployFailed, match="did not start"):
        scene.go()
    assert scene.clock.now == 0


def test_crash_during_the_watch_leaves_an_old_replica(tmp_path: Path) -> None:
    """The last replica of the release before serves until the watch ends, so that clients have a server."""
    scene = Scene(tmp_path, settle=90)

    def crash(replica: Replica) -> None:
        scene.checked.append(replica.name)
        scene.at[60.0] = replace(replica, restarts=1)

    with pytest.raises(DeployFailed, match="replica p-api-4 has crashed"):
        scene.rollout.to(scene.after, crash)
    assert scene.stack.releases_of_replicas() == [1, 2, 2]
    assert 60 <= scene.clock.now < 62

    scene.rollout.back_to(scene.before)
    assert scene.stack.releases_of_replicas() == [1, 1]
    assert scene.stack.calls[-3:] == ["stop p-api-4", "start before", "stop p-api-3"]


def test_replica_that_the_proxy_leaves_fails_the_watch(tmp_path: Path) -> None:
    scene = Scene(tmp_path, settle=90)
    scene.rollout.to(scene.before, lambda _: None)  # nothing to replace
    scene.clock.now = 0

    def leave(replica: Replica) -> None:
        scene.at[20.0] = replace(replica, addresses=frozenset())

    with pytest.raises(DeployFailed, match="is not ready any more"):
        scene.rollout.to(scene.after, leave)
    assert 25 <= scene.clock.now < 28


def test_database_that_is_down_does_not_fail_the_watch(tmp_path: Path) -> None:
    """No replica serves, old or new: it is not the release."""
    scene = Scene(tmp_path, settle=90)
    serving = scene.stack.serving
    scene.stack.serving = lambda: set() if 20 < scene.clock.now < 60 else serving()  # type: ignore[method-assign]
    scene.go()
    assert scene.stack.releases_of_replicas() == [2, 2]


def test_stopped_container_is_removed_first(tmp_path: Path) -> None:
    """Compose would count it as a replica, and start it."""
    scene = Scene(tmp_path)
    scene.stack.containers_of_the_api[0] = replace(scene.stack.containers_of_the_api[0], status="exited")
    scene.go()
    assert scene.stack.calls[0] == "stop p-api-1"
    assert scene.stack.releases_of_replicas() == [2, 2]
