"""Cursors."""

import pytest

from app.fields import BIGINT_MAX
from app.pagination.cursor import Cursors
from app.pagination.page import ListParams

# What one character of a title can take in a cursor at the most: four bytes of UTF-8, six of an escape, two of another.
LONGEST_TITLES = ["\U0001f600" * 200, "\x01" * 200, '"' * 200]


@pytest.mark.parametrize("title", LONGEST_TITLES, ids=["outside the BMP", "control characters", "quotes"])
def test_a_cursor_for_the_longest_title_is_one_that_is_accepted(title: str) -> None:
    cursors = Cursors("for tests only")

    cursor = cursors.write("context", title, BIGINT_MAX)

    assert ListParams(sort="title", cursor=cursor).cursor == cursor
    assert cursors.read(cursor, "context") == (title, BIGINT_MAX)
