"""The outcome that clients received for each write, compared with the rows in the database."""

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from random import Random
from typing import NamedTuple
from uuid import uuid4


class Outcome(StrEnum):
    """What the client of a write knows. UNKNOWN: no answer, or the answer `outcome-unknown`."""

    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class Comparison(NamedTuple):
    """Numbers of writes. Any `acknowledged_missing`, `refused_present` or `stored_twice` is an error."""

    acknowledged: int
    acknowledged_missing: int
    refused: int
    refused_present: int
    unanswered_present: int
    unanswered_absent: int
    stored_twice: int


class Ledger:
    """Every write has a title of its own, which begins with the ledger's `prefix`."""

    def __init__(self) -> None:
        self.prefix = f"fault {uuid4().hex[:12]} "
        self._outcomes: dict[str, Outcome] = {}
        self._readable: list[tuple[str, str]] = []
        self._random = Random()

    def begin(self) -> str:
        """Return the title of a new write. Until the client gets an answer, its outcome is unknown."""
        title = f"{self.prefix}{uuid4()}"
        self._outcomes[title] = Outcome.UNKNOWN
        return title

    def acknowledge(self, title: str, location: str) -> None:
        """Record a success. `location` is the path at which the write can be read."""
        self._outcomes[title] = Outcome.ACKNOWLEDGED
        self._readable.append((location, title))

    def refuse(self, title: str) -> None:
        """Record an answer that says that the write was not done."""
        self._outcomes[title] = Outcome.REFUSED

    def any_acknowledged(self) -> tuple[str, str] | None:
        """Return the location and the title of a random acknowledged write; None if there is none yet."""
        return self._random.choice(self._readable) if self._readable else None

    def compare(self, stored: Iterable[str]) -> Comparison:
        """Compare the outcomes with the titles that the database holds, in any order and with duplicates."""
        copies = Counter(stored)
        present = Counter(outcome for title, outcome in self._outcomes.items() if title in copies)
        total = Counter(self._outcomes.values())
        return Comparison(
            acknowledged=total[Outcome.ACKNOWLEDGED],
            acknowledged_missing=total[Outcome.ACKNOWLEDGED] - present[Outcome.ACKNOWLEDGED],
            refused=total[Outcome.REFUSED],
            refused_present=present[Outcome.REFUSED],
            unanswered_present=present[Outcome.UNKNOWN],
            unanswered_absent=total[Outcome.UNKNOWN] - present[Outcome.UNKNOWN],
            stored_twice=sum(copies[title] > 1 for title in self._outcomes),
        )
