"""Raw-ASGI comparisons of plain FastAPI with FastAPI and `fast_routes.install`.

Nearly all cases were written against FastAPI's and Starlette's source, before their author had read the fast routes.
About 35 were added after that: patched functions, equal routes, swallowing exit stacks, orders of query parameters.
`Case.differs` explains the differences that remain; a case that no longer differs fails, too.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import chain

import pytest

from tests.support.asgi_comparison import Case, When
from tests.unit.web.fast_routes_cases import bodies, concurrency, dependencies, errors, parameters, responses, routing

CASES: Sequence[Case] = list(
    chain(
        bodies.CASES,
        parameters.CASES,
        dependencies.CASES,
        responses.CASES,
        errors.CASES,
        routing.CASES,
        concurrency.CASES,
    )
)
INSTALLED: Sequence[When] = ("first", "last")
LEAST_SHARE_ON_THE_FAST_PATH = 0.85


def test_cases_are_many_and_have_distinct_names() -> None:
    counts = Counter(case.id for case in CASES)
    assert len(counts) >= 200
    assert [name for name, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
async def test_exchange_with_fast_routes_equals_plain_fastapi(case: Case) -> None:
    plain = list((await case.run("never"))[0])
    outcomes = [(when, *await case.run(when)) for when in INSTALLED]  # all of them, as applications are shared
    for when, fast, taken in outcomes:
        if case.differs:
            assert list(fast) != plain
        else:
            assert (when, list(fast)) == (when, plain)
        assert (when, taken) == (when, case.expected_taken(when, fast.operations))


async def test_most_operations_take_the_fast_path() -> None:
    """The comparisons show nothing about requests that plain FastAPI serves."""
    operations = taken_in_all = 0
    for case in CASES:
        journal, taken = await case.run("first")
        operations += journal.operations
        taken_in_all += taken
    assert taken_in_all / operations >= LEAST_SHARE_ON_THE_FAST_PATH
