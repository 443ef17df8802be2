"""Replace the replicas of the API by those of another release, start first.

At most API_REPLICAS + API_SURGE replicas run at any time, for which the connection budget is checked. The last replicas
of the release before stay until the new ones have served for a while: if those fail, clients still have a server.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from ops.deploy.errors import DeployFailed
from ops.deploy.releases import Release
from ops.deploy.stack import Replica
from ops.deploy.timeline import Timeline

POLL_SECONDS = 0.5
# A replica that the proxy does not use for this time during the watch has failed; a slow check has not.
ABSENT_SECONDS = 5.0


class Replicas(Protocol):
    """What a rollout needs of a stack."""

    def replicas(self) -> list[Replica]:
        """Return the containers of the API, the oldest first."""
        ...

    def serving(self) -> set[str]:
        """Return the addresses of the replicas to which the proxy sends requests."""
        ...

    def start_replicas(self, release: Release, number: int) -> None:
        """Start this many replicas of a release, next to the ones that exist."""
        ...

    def stop(self, replica: Replica) -> None:
        """Let a replica finish its requests, and remove it."""
        ...

    def logs(self, container: str) -> str:
        """Return the last lines of a container's log."""
        ...


@dataclass(frozen=True)
class Limits:
    """How long a rollout waits, in seconds: for a new replica to serve, and for it to fail afterwards."""

    ready: float
    settle: float


class Rollout:
    """Replaces replicas. `check` is called with each new replica that serves; it raises DeployFailed."""

    def __init__(
        self,
        stack: Replicas,
        timeline: Timeline,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._stack = stack
        self._timeline = timeline
        self._limits = limits
        self._clock = clock
        self._sleep = sleep

    def to(self, release: Release, check: Callable[[Replica], None]) -> None:
        """Replace all replicas by those of `release`. Raise DeployFailed, with replicas of both left."""
        self._remove_stopped()
        self._start(release, check)
        self._watch(release)
        self._stop_others(release)

    def back_to(self, release: Release) -> None:
        """Undo a rollout: replace the replicas of other releases by those of `release`, the broken ones first."""
        self._remove_stopped()
        serving = self._stack.serving()
        for replica in self._stack.replicas():
            if replica.release != release.number and not (replica.runs and _serves(replica, serving)):
                self._stop(replica)
        self._start(release, lambda _: None)
        self._stop_others(release)

    def _remove_stopped(self) -> None:
        """Remove containers that do not run: Compose would count them as replicas, and start them."""
        for replica in self._stack.replicas():
            if replica.status in ("exited", "created", "dead"):
                self._stack.stop(replica)

    def _start(self, release: Release, check: Callable[[Replica], None]) -> None:
        most = release.replicas + release.surge
        while True:
            all_of_them = self._stack.replicas()
            others = [replica for replica in all_of_them if replica.release != release.number]
            missing = release.replicas - (len(all_of_them) - len(others))
            if missing <= 0:
                return
            number = min(missing, release.surge)
            for replica in others[: max(0, len(all_of_them) + number - most)]:
                self._stop(replica)
            known = {replica.id for replica in self._stack.replicas()}
            self._stack.start_replicas(release, number)
            for replica in self._stack.replicas():
                if replica.id not in known:
                    self._timeline.add("start", replica.name)
            self._wait_until_serving(known)
            for replica in self._stack.replicas():
                if replica.id not in known:
                    check(replica)

    def _wait_until_serving(self, known: Collection[str]) -> None:
        """Wait until the proxy sends requests to every replica that is not in `known`."""
        deadline = self._clock() + self._limits.ready
        reported: set[str] = set()
        while True:
            new = [replica for replica in self._stack.replicas() if replica.id not in known]
            serving = self._stack.serving()
            for replica in new:
                if not replica.runs:
                    raise self._failure(replica, "did not start")
                if _serves(replica, serving) and replica.id not in reported:
                    reported.add(replica.id)
                    self._timeline.add("serves", replica.name)
            if new and len(reported) == len(new):
                return
            if self._clock() > deadline:
                late = next((replica for replica in new if replica.id not in reported), None)
                if late is None:
                    raise DeployFailed(
                        f"no new replica has started within {self._limits.ready:.0f} s (DEPLOY_READY_SECONDS):"
                        " docker compose ps --all api"
                    )
                raise self._failure(late, f"was not ready after {self._limits.ready:.0f} s")
            self._sleep(POLL_SECONDS)

    def _watch(self, release: Release) -> None:
        """Raise DeployFailed if a replica of the release fails within the time for it."""
        if self._limits.settle <= 0:
            return
        self._timeline.add("watch", f"for {self._limits.settle:.0f} s")
        deadline = self._clock() + self._limits.settle
        seen: dict[str, float] = {}
        while (now := self._clock()) < deadline:
            serving = self._stack.serving()
            replicas = self._stack.replicas()
            ours = [replica for replica in replicas if replica.release == release.number]
            for replica in ours:
                if not replica.runs:
                    raise self._failure(replica, "has crashed")
                # If no replica serves at all, something else is down: the database, for example.
                if _serves(replica, serving) or not serving:
                    seen[replica.id] = now
                elif now - seen.setdefault(replica.id, now) > ABSENT_SECONDS:
                    raise self._failure(replica, "is not ready any more")
            if len(ours) < release.replicas:
                raise DeployFailed(f"{release.replicas - len(ours)} of {release.replicas} new replicas were removed")
            self._sleep(POLL_SECONDS * 2)
        self._timeline.add("watch", f"no failure in {self._limits.settle:.0f} s")

    def _stop_others(self, release: Release) -> None:
        replicas = self._stack.replicas()
        ours = [replica for replica in replicas if replica.release == release.number]
        for replica in [each for each in replicas if each not in ours] + ours[release.replicas :]:
            self._stop(replica)

    def _stop(self, replica: Replica) -> None:
        self._stack.stop(replica)
        self._timeline.add("stop", replica.name)

    def _failure(self, replica: Replica, what: str) -> DeployFailed:
        return DeployFailed(f"replica {replica.name} {what}", self._stack.logs(replica.id))


def _serves(replica: Replica, serving: Collection[str]) -> bool:
    return not replica.addresses.isdisjoint(serving)
