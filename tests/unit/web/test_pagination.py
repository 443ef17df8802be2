"""Cursors as query parameters."""

import pytest

from app.fields import BIGINT_MAX
from app.pagination.cursor import Cursors
from app.pagination.page import ListParams

# The longest encodings of a title's characters in a cursor: 4 bytes of UTF-8, 6 of a \u escape, 2 of a short escape.
LONGEST_TITLES = ["\U0001f600" * 200, "\x01" * 200, '"' * 200]


@pytest.mark.parametrize("title", LONGEST_TITLES, ids=["outside the BMP", "control characters", "quotes"])
def test_cursor_of_the_longest_title_is_accepted(title: str) -> None:
    cursors = Cursors("for tests only")

    cursor = cursors.write("context", title, BIGINT_MAX)

    assert ListParams(sort="title", cursor=cursor).cursor == cursor
    assert cursors.read(cursor, "context") == (title, BIGINT_MAX)
