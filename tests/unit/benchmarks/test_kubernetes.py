"""The simulation of pods: the budget holds, and a mutation of its arithmetic or of its quota is noticed."""

import secrets

import pytest

from app.paths import PROJECT_ROOT
from benchmarks.kubernetes import CHART, CPU, MUTATIONS, capacity_table, need, play, simulate

DOCUMENT = (PROJECT_ROOT / "docs/kubernetes.md").read_text()


def test_budget_holds_in_random_histories() -> None:
    result = simulate(2_000, secrets.token_hex(4))

    assert result.exceeded == 0, f"replay it: play({result.first!r})"
    assert result.nearly_full > 50, "histories that never come near the supply prove nothing"


@pytest.mark.parametrize("name", [name for name, rules in MUTATIONS.items() if rules != CHART])
def test_mutation_exceeds_the_budget(name: str) -> None:
    result = simulate(500, "mutation", MUTATIONS[name])

    assert result.exceeded > 10


def test_history_of_a_seed_is_always_the_same() -> None:
    assert play("one") == play("one")


def test_capacity_table_is_in_the_document() -> None:
    assert capacity_table() in DOCUMENT


def test_need_grows_with_the_load_and_the_cost() -> None:
    """5,000 reads take 0.5 cores of the API: at 70 %, one pod of two cores."""
    assert need(5_000, "reads") == (1, 1)
    assert need(100_000, "reads") == (8, 4)


def test_cpu_times_are_those_of_the_performance_page() -> None:
    page = (PROJECT_ROOT / "docs/performance.md").read_text()

    for kind, (api, server) in CPU.items():
        assert f"| {api} | {server} |" in page, kind
