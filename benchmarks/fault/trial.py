"""One trial: steady traffic, one fault, and then the comparison of what clients were told with what is stored."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from benchmarks.fault.ledger import Comparison, Ledger
from benchmarks.fault.topology import SETUPS, Plan, Topology
from benchmarks.fault.traffic import PATIENCE_SECONDS, Exchange, Failure, Traffic

WARM_UP_SECONDS = 1.5
# The traffic goes on after a fault until there has been no error for CALM_SECONDS, and then stops.
CALM_SECONDS = 2.0
RECOVERY_WITHIN_SECONDS = 20.0


class Trial:
    """What a fault may act on. `seconds`: how long a fault lasts that has a duration."""

    def __init__(self, topology: Topology, traffic: Traffic, seconds: float) -> None:
        self.topology = topology
        self.traffic = traffic
        self.seconds = seconds
        self._ended: float | None = None

    def mark_end(self) -> None:
        """State that the fault ends now. Without it, a fault ends when its function returns."""
        self._ended = monotonic()

    @property
    def ended(self) -> float:
        return self._ended if self._ended is not None else monotonic()


@dataclass(frozen=True)
class Fault:
    """A fault: its name and group in the table, and the function that causes it and returns when it is over.

    The function runs in a thread, next to the traffic.
    """

    name: str
    group: str
    inject: Callable[[Trial], None]
    setups: tuple[str, ...] = tuple(SETUPS)
    plan: Plan = field(default_factory=Plan)


@dataclass(frozen=True)
class Row:
    """The result of a trial. `recovery` is None if there were still errors at the end of the trial.

    `note` says why there is no result.
    """

    setup: str
    group: str
    fault: str
    note: str = ""
    fault_seconds: float = 0.0
    requests: int = 0
    succeeded: int = 0
    unavailable: int = 0
    others: dict[str, int] | None = None
    broken: int = 0
    not_connected: int = 0
    silent: int = 0
    aborted: int = 0
    wrong: int = 0
    slowest: float = 0.0
    recovery: float | None = 0.0
    comparison: Comparison | None = None
    leaked: int = 0
    tracebacks: int = 0


async def run_trial(fault: Fault, topology: Topology, seconds: float) -> Row:
    """Run the fault under traffic, and return the row of the table."""
    ledger = Ledger()
    traffic = Traffic(topology.api.port, topology.account, ledger)
    traffic.start()
    await asyncio.sleep(WARM_UP_SECONDS)
    trial = Trial(topology, traffic, seconds)
    started = monotonic()
    await asyncio.to_thread(fault.inject, trial)
    ended = trial.ended
    while (now := monotonic()) < max(ended, traffic.calm_since()) + CALM_SECONDS:
        if now > ended + RECOVERY_WITHIN_SECONDS:
            break
        await asyncio.sleep(0.1)
    observed_until = monotonic()
    await traffic.stop()
    stored = await asyncio.to_thread(topology.stored, ledger.prefix)
    leaked = await asyncio.to_thread(topology.leaked)
    return summarise(
        fault,
        topology.setup,
        traffic.exchanges,
        ledger.compare(stored),
        started=started,
        ended=ended,
        observed_until=observed_until,
        leaked=leaked,
        tracebacks=topology.api.tracebacks(),
    )


def summarise(
    fault: Fault,
    setup: str,
    exchanges: list[Exchange],
    comparison: Comparison,
    *,
    started: float,
    ended: float,
    observed_until: float,
    leaked: int,
    tracebacks: int,
) -> Row:
    """Return the row of a trial."""
    results = Counter(each.result for each in exchanges)
    statuses = {result: number for result, number in results.items() if not isinstance(result, Failure)}
    others = {str(status): n for status, n in sorted(statuses.items()) if not 200 <= status < 300 and status != 503}
    answered = [each.seconds for each in exchanges if each.result is not Failure.ABORTED]
    return Row(
        setup=setup,
        group=fault.group,
        fault=fault.name,
        fault_seconds=ended - started,
        requests=len(exchanges),
        succeeded=sum(each.succeeded for each in exchanges),
        unavailable=results[503],
        others=others,
        broken=results[Failure.BROKEN],
        not_connected=results[Failure.NOT_CONNECTED],
        silent=results[Failure.SILENT],
        aborted=results[Failure.ABORTED],
        wrong=sum(each.is_wrong for each in exchanges),
        slowest=min(max(answered, default=0.0), PATIENCE_SECONDS),
        recovery=_recovery(exchanges, ended, observed_until),
        comparison=comparison,
        leaked=leaked,
        tracebacks=tracebacks,
    )


def _recovery(exchanges: list[Exchange], ended: float, observed_until: float) -> float | None:
    """Return the seconds from the end of the fault to the last error; None if errors went on to the end."""
    last = max((each.ended for each in exchanges if each.failed), default=ended)
    if last > observed_until - CALM_SECONDS / 2 and observed_until > ended + RECOVERY_WITHIN_SECONDS:
        return None
    return max(0.0, last - ended)
