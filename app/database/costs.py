"""Finds statements that have become expensive, by the time that they hold connections."""

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

logger = logging.getLogger(__name__)

Direction = Literal["expensive", "normal"]
DIRECTIONS: tuple[Direction, ...] = ("expensive", "normal")

PERIOD_SECONDS = 0.5
# After a pause without statements, there is nothing to compare with.
MAX_PERIOD_SECONDS = 5.0
# An expensive statement takes this multiple of the mean of all others.
MULTIPLE = 4.0
# While limited lanes use this part of a connection or more, a statement must take the same multiple of `after` to move.
BUSY_LANES_SHARE = 0.25
# Fewer quick statements in a second need no protection. An overloaded server answers few, so their rate is remembered:
# it falls by this factor in a period.
MIN_QUICK_PER_SECOND = 2.0
QUICK_RATE_DECAY = 0.9
# Other statements use less than this share of a connection: the server is quiet.
QUIET_SHARE = 0.01
# Periods in a row in which a statement is expensive, before it is moved; and cheap, before it comes back.
MOVE_AFTER_PERIODS = 2
RETURN_AFTER_PERIODS = 20
# A statement stays at least this long; twice as long each time that it is moved again.
FIRST_STAY_SECONDS = 30.0
MAX_STAY_SECONDS = 600.0
# Statements in the lane, and statements whose stay is remembered.
MAX_MOVED = 100


# All reads by key that share statements have this name, and are never moved. Each kind of them holds at most
# DB_COALESCE_IN_FLIGHT connections. In the expensive lane, all would wait for a few slow ones.
SHARED = "reads by key"


@dataclass
class _Runs:
    """The runs of a statement in a period. `seconds` is their length, `use` the part of it within the period."""

    count: int = 0
    seconds: float = 0.0
    use: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds
        self.use += min(seconds, PERIOD_SECONDS)


@dataclass
class _Moved:
    """A statement in the expensive lane, since when, and in how many periods in a row it was cheap."""

    since: float
    stay: float
    runs: int = 0
    seconds: float = 0.0
    cheap_periods: int = 0


class CostWatch:
    """Moves statements between the lanes normal and expensive. All times are seconds on one monotonic clock.

    A statement becomes a suspect by its slow runs (`after` seconds or longer), if they took MULTIPLE times the mean of
    all others in the same period, and all such statements together used more connections than `share`. Then all of its
    runs count. It is moved if the same is true of their mean in the next period: a quick statement with a few slow runs
    stays. So nothing is moved because the whole server is slow. A statement comes back when its mean was below half of
    `after`, or it did not run, for RETURN_AFTER_PERIODS.

    Statements of limited lanes slow down all others. While they run, a statement is moved only if it takes MULTIPLE
    times `after`.
    """

    def __init__(self, after: float, share: float, moved: Callable[[Direction], None]) -> None:
        """Begin without moved statements. `after` 0 moves none. `moved` is called at each move."""
        self.after = after or math.inf
        self._share = share
        self._tell = moved
        self.moved: dict[str, _Moved] = {}
        self.others_are_busy = False
        self.suspects: dict[str, int] = {}
        """Periods in which a statement was expensive, in a row. The pool adds all runs of a suspect."""
        self._added: dict[str, _Runs] = {}
        self._use_of_lanes = 0.0
        self._stays: dict[str, float] = {}
        self._quick_rate = 0.0
        self._since = -math.inf
        self._runs = 0
        self._seconds = 0.0

    def add(self, work: str, seconds: float) -> None:
        """Add a run in the normal lane: of a suspect, or one that took `after` or longer."""
        if work:
            self._added.setdefault(work, _Runs()).add(seconds)

    def add_in_lane(self, work: str, seconds: float, *, is_limited: bool) -> None:
        """Add a run in another lane than the normal one."""
        if is_limited:
            self._use_of_lanes += min(seconds, PERIOD_SECONDS)
        if (moved := self.moved.get(work)) is not None:
            moved.runs += 1
            moved.seconds += seconds

    def review(
        self,
        now: float,
        runs: int,
        seconds: float,
        running: Iterable[tuple[str, float]],
        in_lanes: Iterable[float],
    ) -> None:
        """Move statements, at most once in a period.

        `runs` and `seconds` are totals of the normal lane since the start. `running` are its statements under way, with
        their age; `in_lanes` are the ages of those in limited lanes.
        """
        elapsed = now - self._since
        if elapsed < PERIOD_SECONDS:
            return
        new_runs, new_seconds = runs - self._runs, seconds - self._seconds
        added = self._added
        use_of_lanes = self._use_of_lanes + sum(min(age, PERIOD_SECONDS) for age in in_lanes)
        self._since, self._runs, self._seconds, self._added, self._use_of_lanes = now, runs, seconds, {}, 0.0
        if elapsed > MAX_PERIOD_SECONDS:
            self.suspects.clear()
            self._quick_rate = 0.0
            self.others_are_busy = False
            return
        self._bring_back(now)
        for work, age in running:
            new_runs += 1
            new_seconds += age
            if work and (age >= self.after or work in self.suspects):
                added.setdefault(work, _Runs()).add(age)
        after = self.after * (MULTIPLE if use_of_lanes / elapsed >= BUSY_LANES_SHARE else 1)
        # Reads that are never moved are no measure for others when they are slow.
        shared = added.pop(SHARED, _Runs())
        new_runs -= shared.count
        new_seconds -= shared.seconds
        quick = new_runs - sum(each.count for each in added.values())
        self._quick_rate = max(quick / elapsed, self._quick_rate * QUICK_RATE_DECAY)
        candidates: dict[str, float] = {}
        if self._quick_rate >= MIN_QUICK_PER_SECOND:
            # A statement that was moved may still have runs in the normal lane, which began before.
            ratios = {
                work: _ratio(each, new_runs, new_seconds)
                for work, each in added.items()
                if work not in self.moved and each.seconds >= each.count * after
            }
            candidates = {work: ratio for work, ratio in ratios.items() if ratio >= MULTIPLE}
        # Without the expensive statements, which are in this lane until they are moved.
        expensive = sum(each.seconds for work, each in added.items() if work in candidates or work in self.moved)
        self.others_are_busy = (new_seconds + shared.seconds - expensive) / elapsed >= QUIET_SHARE
        if added and not quick and len(added) == 1:
            return  # nothing to compare with: the server may be too busy to answer anything else
        if sum(added[work].use for work in candidates) / elapsed <= self._share:
            candidates = {}
        suspects = {work: self.suspects.get(work, 0) + 1 for work in candidates}
        self.suspects.clear()
        self.suspects.update(suspects)
        for work, periods in tuple(self.suspects.items()):
            if periods >= MOVE_AFTER_PERIODS and len(self.moved) < MAX_MOVED:
                self._move(work, now, added[work], candidates[work])

    def _move(self, work: str, now: float, runs: _Runs, ratio: float) -> None:
        del self.suspects[work]
        stay = self._stays.pop(work, FIRST_STAY_SECONDS)
        self.moved[work] = _Moved(now, stay)
        self._stays[work] = min(2 * stay, MAX_STAY_SECONDS)
        if len(self._stays) > MAX_MOVED:
            del self._stays[next(iter(self._stays))]
        self._tell("expensive")
        logger.warning(
            "moved to the expensive lane: it takes %.0f ms, %.0f times the mean of the others (limit: %.0f times and"
            " %.0f ms, DB_EXPENSIVE_AFTER): %.300s",
            runs.seconds / runs.count * 1000,
            ratio,
            MULTIPLE,
            self.after * 1000,
            " ".join(work.split()),
        )

    def _bring_back(self, now: float) -> None:
        for work, moved in tuple(self.moved.items()):
            is_cheap = moved.seconds <= moved.runs * self.after / 2
            moved.cheap_periods = moved.cheap_periods + 1 if is_cheap else 0
            moved.runs, moved.seconds = 0, 0.0
            if moved.cheap_periods >= RETURN_AFTER_PERIODS and now - moved.since >= moved.stay:
                del self.moved[work]
                self._tell("normal")
                logger.warning("back from the expensive lane: it is cheap again: %.300s", " ".join(work.split()))


def _ratio(runs: _Runs, all_runs: int, all_seconds: float) -> float:
    """Return the mean of a statement's slow runs, as a multiple of the mean of all others; 0 without others."""
    others = all_runs - runs.count
    if not others:
        return 0.0
    mean_of_others = max((all_seconds - runs.seconds) / others, 1e-9)
    return runs.seconds / runs.count / mean_of_others
