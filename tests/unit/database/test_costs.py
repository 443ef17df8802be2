"""Which statements are moved to the expensive lane, and when they come back."""

import logging

import pytest

from app.database.costs import FIRST_STAY_SECONDS, MAX_MOVED, PERIOD_SECONDS, SHARED, CostWatch

SEARCH, READ, SLOW = "SELECT search", "SELECT one", 0.2


class Watched:
    """A CostWatch, and simulated periods of work for it."""

    def __init__(self, after: float = 0.05, share: float = 0.25) -> None:
        self.moves: list[str] = []
        self.watch = CostWatch(after, share, self.moves.append)
        self.now = 100.0
        self.runs = 0
        self.seconds = 0.0
        self.period({})

    def period(
        self,
        slow: dict[str, tuple[int, float]],
        quick: int = 200,
        mean: float = 0.001,
        elapsed: float = PERIOD_SECONDS,
        running: tuple[tuple[str, float], ...] = (),
        in_lanes: tuple[float, ...] = (),
    ) -> None:
        """Let `quick` cheap statements and some slow ones (their number, and the seconds of each) run in a period.

        Further ones end in a limited lane after the seconds of `in_lanes`.
        """
        for seconds in in_lanes:
            self.watch.add_in_lane("SELECT in a lane", seconds, is_limited=True)
        self.runs += quick
        self.seconds += quick * mean
        for work, (count, seconds) in slow.items():
            for _ in range(count):
                if work in self.watch.moved:
                    self.watch.add_in_lane(work, seconds, is_limited=True)
                    continue
                self.runs += 1
                self.seconds += seconds
                if seconds >= self.watch.after or work in self.watch.suspects:
                    self.watch.add(work, seconds)
        self.now += elapsed
        self.watch.review(self.now, self.runs, self.seconds, running, in_lanes=())

    @property
    def moved(self) -> list[str]:
        return list(self.watch.moved)


def test_expensive_statement_is_moved_after_two_periods(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched()
    watched.period({SEARCH: (4, SLOW)})
    assert watched.moved == []

    with caplog.at_level(logging.WARNING):
        watched.period({SEARCH: (4, SLOW)})

    assert watched.moved == [SEARCH]
    assert watched.moves == ["expensive"]
    assert "it takes 200 ms, 200 times the mean of the others" in caplog.text
    assert SEARCH in caplog.text


def test_statement_that_starves_all_others_is_moved() -> None:
    """The quick statements of a starved server are few and slow. Their rate before is remembered."""
    watched = Watched()
    watched.period({})
    for _ in range(2):
        watched.period({SEARCH: (2, 4.0)}, quick=1, mean=0.5)

    assert watched.moved == [SEARCH]


def test_period_without_any_other_statement_decides_nothing() -> None:
    watched = Watched()
    watched.period({})
    watched.period({SEARCH: (2, 4.0)}, quick=1, mean=0.5)
    watched.period({SEARCH: (2, 4.0)}, quick=0)
    assert watched.moved == []

    watched.period({SEARCH: (2, 4.0)}, quick=1, mean=0.5)

    assert watched.moved == [SEARCH]


def test_several_expensive_statements_are_moved_together() -> None:
    """Each of them uses less than the lane's share, and they are part of each other's mean."""
    watched = Watched()
    slow = {f"{SEARCH} {number}": (1, SLOW) for number in range(4)}
    watched.period(slow)
    watched.period(slow)

    assert sorted(watched.moved) == sorted(slow)


def test_statement_still_running_counts_with_its_age() -> None:
    watched = Watched()
    for age in (1.0, 2.0):
        watched.period({}, running=((SEARCH, age), (READ, 0.001)))

    assert watched.moved == [SEARCH]


def test_run_that_began_before_the_move_moves_nothing_again() -> None:
    watched = Watched()
    for age in range(1, 8):
        watched.period({}, running=((SEARCH, float(age)),))

    assert watched.moves == ["expensive"]


@pytest.mark.parametrize(("slow_runs", "is_moved"), [(2, False), (40, True)])
def test_mean_of_all_runs_decides_about_a_suspect(slow_runs: int, is_moved: bool) -> None:
    """A busy server delays a few of many runs. They make a suspect of a statement that is quick on average."""
    watched = Watched()
    for _ in range(3):
        watched.period({SEARCH: (slow_runs, SLOW)})
        for _ in range(50):
            if SEARCH in watched.watch.suspects:
                watched.watch.add(SEARCH, 0.001)
            watched.runs += 1
            watched.seconds += 0.001

    assert watched.moved == ([SEARCH] if is_moved else [])


@pytest.mark.parametrize(
    ("seconds", "in_lanes", "is_moved"),
    [
        pytest.param(0.15, (10.0,), False, id="all of a connection"),
        pytest.param(0.21, (10.0,), True, id="but it takes much longer"),
        pytest.param(0.15, (0.1,), True, id="a fifth of a connection"),
        pytest.param(0.15, (), True, id="nothing"),
    ],
)
def test_statement_may_take_longer_while_limited_lanes_are_used(
    seconds: float, in_lanes: tuple[float, ...], is_moved: bool
) -> None:
    watched = Watched()
    for _ in range(4):
        watched.period({READ: (10, seconds)}, in_lanes=in_lanes)

    assert watched.moved == ([READ] if is_moved else [])


def test_statements_that_still_run_in_limited_lanes_count() -> None:
    watched = Watched()
    for _ in range(4):
        watched.runs += 210
        watched.seconds += 0.2 + 10 * 0.15
        for _ in range(10):
            watched.watch.add(READ, 0.15)
        watched.now += PERIOD_SECONDS
        watched.watch.review(watched.now, watched.runs, watched.seconds, running=(), in_lanes=(8.0,))

    assert watched.moved == []


def test_reads_by_key_are_not_moved_and_hide_nothing() -> None:
    """The slow ones would make the mean of the others so large that the search is below its multiple."""
    watched = Watched()
    for _ in range(2):
        watched.period({SHARED: (2, 1.0), SEARCH: (6, 0.3)}, quick=20, mean=0.005)

    assert watched.moved == [SEARCH]


@pytest.mark.parametrize(
    ("slow", "quick", "mean"),
    [
        pytest.param({SEARCH: (4, 0.04)}, 200, 0.001, id="quicker than the setting"),
        pytest.param({SEARCH: (1, 0.1)}, 200, 0.001, id="within the share of the lane"),
        pytest.param({SEARCH: (4, SLOW)}, 200, 0.06, id="all statements are slow"),
        pytest.param({SEARCH: (100, SLOW)}, 0, 0.001, id="no others"),
        pytest.param({"": (4, SLOW)}, 200, 0.001, id="unknown statement"),
    ],
)
def test_statement_is_not_moved(slow: dict[str, tuple[int, float]], quick: int, mean: float) -> None:
    watched = Watched()
    for _ in range(5):
        watched.period(slow, quick, mean)

    assert watched.moved == []
    assert watched.moves == []


def test_statement_is_not_moved_for_a_probe_now_and_then() -> None:
    watched = Watched()
    for _ in range(5):
        watched.period({SEARCH: (4, SLOW)}, quick=0)
        watched.period({SEARCH: (4, SLOW)}, quick=0)
        watched.period({SEARCH: (4, SLOW)}, quick=0)
        watched.period({SEARCH: (4, SLOW)}, quick=1, elapsed=0.6)

    assert watched.moved == []


def test_single_expensive_period_moves_nothing() -> None:
    watched = Watched()
    for _ in range(3):
        watched.period({SEARCH: (4, SLOW)})
        watched.period({})

    assert watched.moved == []


def test_period_after_a_pause_moves_nothing() -> None:
    watched = Watched()
    watched.period({SEARCH: (4, SLOW)})
    watched.period({SEARCH: (400, SLOW)}, quick=10_000, elapsed=60.0)
    watched.period({SEARCH: (4, SLOW)})

    assert watched.moved == []


def test_watch_that_is_off_moves_nothing() -> None:
    watched = Watched(after=0.0)
    for _ in range(3):
        watched.period({SEARCH: (40, 10.0)})

    assert watched.moved == []


def test_cheap_statement_comes_back_after_its_stay() -> None:
    watched = Watched()
    for _ in range(2):
        watched.period({SEARCH: (4, SLOW)})
    for _ in range(round(FIRST_STAY_SECONDS / PERIOD_SECONDS) - 1):
        watched.period({SEARCH: (4, 0.01)})
        assert watched.moved == [SEARCH]

    watched.period({SEARCH: (4, 0.01)})

    assert watched.moved == []
    assert watched.moves == ["expensive", "normal"]


def test_statement_that_runs_no_more_comes_back() -> None:
    watched = Watched()
    for _ in range(2):
        watched.period({SEARCH: (4, SLOW)})
    for _ in range(round(FIRST_STAY_SECONDS / PERIOD_SECONDS)):
        watched.period({})

    assert watched.moved == []


def test_statement_that_stays_expensive_stays_in_the_lane() -> None:
    watched = Watched()
    for _ in range(2):
        watched.period({SEARCH: (4, SLOW)})
    for _ in range(200):
        watched.period({SEARCH: (1, SLOW)})

    assert watched.moved == [SEARCH]
    assert watched.moves == ["expensive"]


def test_statement_between_the_limits_stays_where_it_is() -> None:
    """It comes back only below half of the limit above which it is moved."""
    watched = Watched()
    for _ in range(2):
        watched.period({SEARCH: (4, SLOW)})
    for _ in range(60):
        watched.period({SEARCH: (4, 0.03)})

    assert watched.moved == [SEARCH]


def test_statement_moved_again_stays_twice_as_long() -> None:
    watched = Watched()
    stays = []
    for _ in range(3):
        for _ in range(2):
            watched.period({SEARCH: (4, SLOW)})
        since = watched.now
        while watched.moved:
            watched.period({})
        stays.append(watched.now - since)

    assert stays == [FIRST_STAY_SECONDS, 2 * FIRST_STAY_SECONDS, 4 * FIRST_STAY_SECONDS]


def test_number_of_moved_statements_is_bounded() -> None:
    watched = Watched()
    slow = {f"{SEARCH} {number}": (1, SLOW) for number in range(MAX_MOVED + 50)}
    for _ in range(4):
        watched.period(slow, quick=10_000)

    assert len(watched.moved) == MAX_MOVED


@pytest.mark.parametrize(("quick", "busy"), [(200, True), (4, False)])
def test_others_are_busy_when_they_use_connections(quick: int, busy: bool) -> None:
    watched = Watched()
    for _ in range(2):
        watched.period({SEARCH: (4, SLOW)})
    watched.period({SEARCH: (4, SLOW)}, quick=quick)

    assert watched.watch.others_are_busy is busy
