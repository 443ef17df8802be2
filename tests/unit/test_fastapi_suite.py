"""The digests of the outcomes on plain FastAPI save half of `make test-fastapi`, if they belong to the lock file."""

from tests.fastapi_suite import run


def test_outcomes_are_recorded_for_the_locked_packages() -> None:
    recorded = {key.rpartition(", ")[2] for key in run._recorded()}

    assert recorded == {run._locked()}, "run .venv/bin/python -m tests.fastapi_suite.run --record"
