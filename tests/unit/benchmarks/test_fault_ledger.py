"""What clients were told is compared with what is stored."""

import pytest

from benchmarks.fault.ledger import Comparison, Ledger

NONE = Comparison(0, 0, 0, 0, 0, 0, 0)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def test_titles_differ_and_begin_with_the_prefix(ledger: Ledger) -> None:
    titles = {ledger.begin() for _ in range(100)}

    assert len(titles) == 100
    assert all(title.startswith(ledger.prefix) for title in titles)
    assert not any(title.startswith(Ledger().prefix) for title in titles)


@pytest.mark.parametrize(
    ("is_stored", "expected"),
    [
        (True, NONE._replace(acknowledged=1)),
        (False, NONE._replace(acknowledged=1, acknowledged_missing=1)),
    ],
)
def test_acknowledged_write_must_be_stored(ledger: Ledger, is_stored: bool, expected: Comparison) -> None:
    title = ledger.begin()
    ledger.acknowledge(title, "/posts/1")

    assert ledger.compare([title] * is_stored) == expected


@pytest.mark.parametrize(
    ("is_stored", "expected"),
    [(True, NONE._replace(refused=1, refused_present=1)), (False, NONE._replace(refused=1))],
)
def test_refused_write_must_not_be_stored(ledger: Ledger, is_stored: bool, expected: Comparison) -> None:
    title = ledger.begin()
    ledger.refuse(title)

    assert ledger.compare([title] * is_stored) == expected


@pytest.mark.parametrize(
    ("is_stored", "expected"),
    [(True, NONE._replace(unanswered_present=1)), (False, NONE._replace(unanswered_absent=1))],
)
def test_unanswered_write_may_be_stored_or_not(ledger: Ledger, is_stored: bool, expected: Comparison) -> None:
    title = ledger.begin()

    assert ledger.compare([title] * is_stored) == expected


def test_write_that_is_stored_twice_is_counted_once_as_twice(ledger: Ledger) -> None:
    title, other = ledger.begin(), ledger.begin()
    ledger.acknowledge(title, "/posts/1")

    assert ledger.compare([title, other, title, title]) == Comparison(1, 0, 0, 0, 1, 0, 1)


def test_rows_of_other_ledgers_do_not_count(ledger: Ledger) -> None:
    assert ledger.compare([Ledger().begin()]) == NONE


def test_only_acknowledged_writes_can_be_read_back(ledger: Ledger) -> None:
    refused, acknowledged = ledger.begin(), ledger.begin()
    ledger.refuse(refused)
    assert ledger.any_acknowledged() is None
    ledger.acknowledge(acknowledged, "/posts/7")

    assert ledger.any_acknowledged() == ("/posts/7", acknowledged)
