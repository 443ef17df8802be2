"""At full load the server counts as many connections as the budget says, and not one more."""

from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.support import sample
from tests.support.full_load import assert_honest, attack, locked, maximum_opened
from tests.support.postgres import as_role
from tests.support.serving import holding_api

pytestmark = pytest.mark.alone


# Two replicas and PgBouncer run in containers.
def test_one_replica_at_full_load_opens_what_the_budget_says(database: URL, tmp_path: Path) -> None:
    with (
        holding_api(as_role(database, "headroom_app"), tmp_path) as api,
        maximum_opened(database) as seen,
        locked(database, sample.TABLE),
    ):
        answers = attack([api], "/names?after=")
    assert_honest(answers)
    assert seen == [4 * (5 + 10)]
