"""Simulate pods on Kubernetes, and compute how many a load needs: `make bench-kubernetes`.

Each history has random values of the chart, with the largest pools that fit the budget, and random events: scaling,
rolling updates, several in a row, deleted and evicted pods, lost nodes. Each pod holds all its connections from its
start until its process has ended; the Pooler's pods follow the same rules. The sum of what may be open must never
exceed the supply, neither of the primary nor of a standby that all pods read from (docs/decisions/0042-kubernetes.md).
"""

import argparse
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import NamedTuple

from app.budget.model import ApiPools, Budget, Server
from app.paths import PROJECT_ROOT

EVENTS = 40
# The kubelet kills a pod at the end of its grace period, and needs a moment.
KILL_SECONDS = 2.0
# TCP keep-alive of the server: a lost node's connections are closed by then.
DEAD_PEER_SECONDS = 25.0
# Kubernetes deletes the pods of a lost node after this time.
LOST_NODE_SECONDS = 300.0


class Rules(NamedTuple):
    """What keeps the pods within the budget. A mutation leaves something out."""

    quota: bool = True
    quota_counts_terminating: bool = True
    budget_counts_terminating: bool = True


CHART = Rules()


@dataclass(slots=True)
class Pod:
    """A pod. `holds_until` is when its process ends, `counted_until` when the quota no longer counts it."""

    revision: int
    ready_at: float
    deleted: bool = False
    holds_until: float = math.inf
    counted_until: float = math.inf


@dataclass(slots=True)
class Deployment:
    """A Deployment with `maxUnavailable` 0, or 1 without a surge, and the quota of its pods."""

    random: Random
    surge: int
    grace: float
    most: int | None
    quota_counts_terminating: bool
    desired: int = 1
    revision: int = 1
    pods: list[Pod] = field(default_factory=list)

    def holding(self, now: float) -> int:
        """Return the number of pods whose connections may be open."""
        self.pods = [pod for pod in self.pods if pod.holds_until > now or pod.counted_until > now]
        return sum(pod.holds_until > now for pod in self.pods)

    def reconcile(self, now: float) -> None:
        """Create and delete pods as the controllers of Kubernetes do, which ignore terminating pods."""
        active = [pod for pod in self.pods if not pod.deleted]
        new = [pod for pod in active if pod.revision == self.revision]
        old = [pod for pod in active if pod.revision != self.revision]
        for pod in old[:]:
            if pod.ready_at > now:  # an update that was replaced by the next one
                self.delete(pod, now)
                old.remove(pod)
        available = sum(pod.ready_at <= now for pod in (*new, *old))
        spare = available - (self.desired - (0 if self.surge else 1))
        for pod in old[: max(0, spare)]:
            self.delete(pod, now)
            old.remove(pod)
        for pod in new[self.desired :]:
            self.delete(pod, now)
            new.remove(pod)
        missing = min(self.desired - len(new), self.desired + self.surge - len(new) - len(old))
        for _ in range(missing):
            if not self._admitted(now):
                break
            self.pods.append(Pod(self.revision, now + self.random.uniform(2, 20)))

    def delete(self, pod: Pod, now: float) -> None:
        """Tell a pod to stop. It drains for as long as it likes, up to its grace period."""
        pod.deleted = True
        pod.holds_until = min(pod.holds_until, now + self.random.uniform(0.5, self.grace + KILL_SECONDS))
        # The API server removes it when the kubelet has reported its end, and the quota forgets it at the latest after
        # a second grace period.
        pod.counted_until = min(now + 2 * self.grace, max(pod.holds_until, now + KILL_SECONDS))

    def lose(self, pod: Pod, now: float) -> None:
        """Cut off the node of a pod. Its connections end long before the quota forgets it; it is replaced at once."""
        pod.holds_until = min(pod.holds_until, now + DEAD_PEER_SECONDS)
        pod.deleted = True
        pod.counted_until = now + LOST_NODE_SECONDS + 2 * self.grace

    def _admitted(self, now: float) -> bool:
        if self.most is None:
            return True
        counted = sum(
            pod.counted_until > now and (self.quota_counts_terminating or not pod.deleted) for pod in self.pods
        )
        return counted < self.most


class Outcome(NamedTuple):
    """The largest sum of connections of a history, relative to the supply."""

    peak: int
    supply: int

    @property
    def exceeded(self) -> bool:
        """Return True if more connections could be open than the limit allows."""
        return self.peak > self.supply


def play(seed: str, rules: Rules = CHART) -> Outcome:
    """Play one history, and return its tightest moment. The same seed gives the same history."""
    random = Random(seed)
    maximum = random.randint(1, 10)
    surge, terminating = random.randint(0, 2), random.randint(1, 3)
    budget = _largest(
        ApiPools(
            replicas=maximum,
            surge=surge + (terminating if rules.budget_counts_terminating else 0),
            workers=random.randint(1, 4),
            pool_size=1,
            max_overflow=0,
        ),
        Server(max_connections=random.randint(100, 600), reserved_connections=random.randint(0, 10)),
    )
    deployment = Deployment(
        random,
        surge,
        grace=random.uniform(10, 60),
        most=maximum + surge + terminating if rules.quota else None,
        quota_counts_terminating=rules.quota_counts_terminating,
        desired=random.randint(1, maximum),
    )
    [reads] = budget.on_read_server
    others = budget.on_server.demand - budget.api.term.connections
    now, most = 0.0, 0
    for _ in range(EVENTS):
        _event(random, deployment, maximum, now)
        deployment.reconcile(now)
        most = max(most, deployment.holding(now))
        now += random.choice((0.1, 1.0, 5.0, 15.0, 30.0, 400.0))
    workers = most * budget.api.workers
    outcomes = (
        Outcome(workers * (budget.api.pool_size + budget.api.max_overflow) + others, budget.on_server.supply),
        Outcome(workers * budget.api.read_pool_size, reads.supply),
    )
    return max(outcomes, key=lambda outcome: outcome.peak / outcome.supply)


def _event(random: Random, deployment: Deployment, maximum: int, now: float) -> None:
    active = [pod for pod in deployment.pods if not pod.deleted]
    kind = random.random()
    if kind < 0.3:  # the autoscaler
        deployment.desired = random.randint(1, maximum)
    elif kind < 0.5:  # an update, perhaps while another one is under way
        deployment.revision += 1
    elif kind < 0.55:  # `kubectl scale`, far beyond the maximum, which the autoscaler then corrects
        deployment.desired = random.randint(1, 3 * maximum)
    elif kind < 0.65:  # a drain of nodes, or `kubectl delete pods`
        for pod in random.sample(active, random.randint(0, len(active))):
            deployment.delete(pod, now)
    elif kind < 0.7 and active:
        deployment.lose(random.choice(active), now)
    # Otherwise time passes. A crashed container starts again in its pod, after its connections are closed.


def _largest(api: ApiPools, server: Server) -> Budget:
    """Return the budget with the largest pools that fit: then each uncounted pod exceeds it."""
    suggestion = Budget(api, server).suggest()
    assert suggestion is not None, "the largest number of workers has room on the smallest server"
    [reads] = Budget(replace(api, read_pool_size=1), server).on_read_server
    largest = replace(
        api,
        pool_size=suggestion.pool_size,
        max_overflow=suggestion.max_overflow,
        read_pool_size=reads.supply // api.processes,
    )
    return Budget(largest, server)


class Result(NamedTuple):
    """Of all histories: how many exceeded the supply, and how many came within 5 % of it."""

    histories: int
    exceeded: int
    nearly_full: int
    first: str | None


def simulate(histories: int, seed: str, rules: Rules = CHART) -> Result:
    """Play histories. `first` is the seed of the first one that exceeded the supply."""
    exceeded, nearly_full, first = 0, 0, None
    for number in range(histories):
        own = f"{seed}/{number}"
        outcome = play(own, rules)
        nearly_full += 0.95 * outcome.supply <= outcome.peak <= outcome.supply
        if outcome.exceeded:
            exceeded += 1
            first = first or own
    return Result(histories, exceeded, nearly_full, first)


MUTATIONS = {
    "as the chart has it": CHART,
    "the budget forgets terminating pods": Rules(budget_counts_terminating=False),
    "the quota does not count terminating pods": Rules(quota_counts_terminating=False),
    "no quota": Rules(quota=False),
}

# CPU time of a request in microseconds, of the API and of PostgreSQL (docs/performance.md).
CPU = {"reads": (100, 24), "pages": (176, 30), "writes": (218, 198)}
LOADS = (1_000, 5_000, 10_000, 20_000, 50_000, 100_000)
CORES_OF_A_POD = 2
USE = 0.7  # of the CPU: autoscaling.cpuPercent


class Need(NamedTuple):
    """The capacity for a load: pods with two workers on two cores, and cores of PostgreSQL."""

    pods: int
    cores: int


def need(requests: int, kind: str) -> Need:
    """Return what a load of one kind needs, with 70 % of each core in use."""
    api, server = CPU[kind]
    cores = 1e-6 * requests / USE
    return Need(math.ceil(cores * api / CORES_OF_A_POD), math.ceil(cores * server))


def capacity_table() -> str:
    """Return the table of docs/kubernetes.md."""
    rows = [
        "| requests/s | " + " | ".join(f"{kind}: pods | cores of PostgreSQL" for kind in CPU) + " |",
        "| --- |" + " --- |" * 2 * len(CPU),
    ]
    for load in LOADS:
        needs = [str(number) for kind in CPU for number in need(load, kind)]
        rows.append(f"| {load:,} | {' | '.join(needs)} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the results of the simulation, and write the chart. Return 1 if the chart's budget was exceeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--histories", type=int, default=100_000)
    parser.add_argument("--seed", default=secrets.token_hex(4))
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}, {options.histories} histories of {EVENTS} events")
    results = {}
    for name, rules in MUTATIONS.items():
        results[name] = result = simulate(options.histories, options.seed, rules)
        print(f"{name}: exceeded in {result.exceeded}, within 5 % of the supply in {result.nearly_full}")
    print(capacity_table())
    # Here: pygal's import hook causes an ImportWarning at every later import, which is an error in the tests.
    from benchmarks.charts import lines

    series = {
        f"{kind}: {part}": [(load / 1000, getattr(need(load, kind), part)) for load in LOADS]
        for part in ("pods", "cores")
        for kind in CPU
    }
    lines(
        PROJECT_ROOT / "docs/images/kubernetes.svg",
        "Pods of the API and cores of PostgreSQL by load",
        "thousand requests/s",
        series,
    )
    return 1 if results["as the chart has it"].exceeded else 0


if __name__ == "__main__":
    raise SystemExit(main())
