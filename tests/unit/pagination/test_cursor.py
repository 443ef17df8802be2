"""Cursors: what they contain, and which of them are refused."""

import math
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Boolean, Date, DateTime, Enum, Float, Integer, Numeric, Text, Time, Uuid, select
from sqlalchemy.types import TypeEngine

from app.fields import BIGINT_MAX
from app.pagination.cursor import Cursors, InvalidCursor
from app.pagination.order import codec_of
from app.pagination.page import ListParams
from app.pagination.statements import ListStatements
from tests.support.contacts import Contact
from tests.support.paged_lists import MODELS, Size, list_of

CURSORS = Cursors("for tests only")
CONTACTS = ListStatements(
    "contacts",
    select(Contact.id, Contact.created_at),
    key=Contact.id,
    sorts={"created_at": Contact.created_at},
    filters={},
)
# The longest encodings of a title's characters in a cursor: 4 bytes of UTF-8, 6 of a \u escape, 2 of a short escape.
LONGEST_TITLES = ["\U0001f600" * 200, "\x01" * 200, '"' * 200]
zones = st.sampled_from([None, UTC, ZoneInfo("Europe/Amsterdam"), ZoneInfo("Asia/Kathmandu")])
VALUES: dict[str, tuple[TypeEngine[Any], st.SearchStrategy[Any]]] = {
    "integer": (Integer(), st.integers(-(2**63), 2**63 - 1)),
    "text": (Text(), st.text(st.characters(exclude_categories=["Cs"]))),
    "boolean": (Boolean(), st.booleans()),
    "float": (Float(), st.floats()),
    "decimal": (Numeric(), st.decimals(allow_nan=False)),
    "date": (Date(), st.dates()),
    "time": (Time(), st.times()),
    "datetime": (DateTime(), st.datetimes(timezones=zones)),
    "UUID": (Uuid(), st.uuids()),
    "enum": (Enum(Size), st.sampled_from(Size)),
    "enum of strings": (Enum("b", "a", name="x"), st.sampled_from(["b", "a"])),
}


@pytest.mark.parametrize("title", LONGEST_TITLES, ids=["outside the BMP", "control characters", "quotes"])
def test_cursor_of_the_longest_title_is_accepted(title: str) -> None:
    cursor = CURSORS.write("context", [title, BIGINT_MAX])

    assert ListParams(sort="title", cursor=cursor).cursor == cursor
    assert CURSORS.read(cursor, "context") == [title, BIGINT_MAX]


def test_cursor_of_the_longest_supported_text_is_accepted() -> None:
    cursor = CURSORS.write("context", ["x" * 2_900, BIGINT_MAX])

    assert ListParams(sort="title", cursor=cursor).cursor == cursor


@pytest.mark.parametrize("kind", VALUES)
@given(data=st.data())
def test_value_of_each_type_survives_a_cursor(kind: str, data: st.DataObject) -> None:
    column_type, values = VALUES[kind]
    codec = codec_of(column_type)
    assert codec is not None
    value = data.draw(values)

    [stored] = CURSORS.read(CURSORS.write("context", [codec.encode(value) if codec.encode else value]), "context")
    read = codec.decode(stored) if codec.decode else stored

    assert type(read) is type(value)
    if isinstance(value, datetime):  # in a repeated hour, no other zone's time equals this one
        read, value = read.timestamp(), value.timestamp()
    assert read == value or (isinstance(value, float) and math.isnan(value) and math.isnan(read))
    assert not isinstance(value, float) or math.copysign(1, read) == math.copysign(1, value) or math.isnan(value)


def test_nan_and_infinity_of_numeric_survive_a_cursor() -> None:
    codec = codec_of(Numeric())
    assert codec is not None
    assert codec.encode is not None
    assert codec.decode is not None
    for text in ("NaN", "Infinity", "-Infinity", "1E+30", "0.10"):
        assert str(codec.decode(text)) == codec.encode(codec.decode(text)) == text


@pytest.mark.parametrize(
    "context",
    [["users -created_at datetime,int", {}], ["users -created_at datetime,int", {"q": "a"}], ["tags", {}]],
    ids=["other order", "other filters", "other list"],
)
def test_cursor_of_another_list_is_refused(context: list[Any]) -> None:
    cursor = CURSORS.write(["users created_at datetime,int", {}], ["2026-01-01T00:00:00", 1])

    with pytest.raises(InvalidCursor):
        CURSORS.read(cursor, context)


@pytest.mark.parametrize("cursor", ["x", "?", "AAAA", "A" * 30, "ä"])
def test_text_that_is_no_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidCursor):
        CURSORS.read(cursor, "context")


def test_cursor_of_an_older_version_is_refused() -> None:
    """It was signed for the list's name, the sort order and the filters, without the columns' types."""
    cursor = CURSORS.write(["contacts", "-created_at", {}], ["time", "2026-01-01T00:00:00+00:00", 1])

    with pytest.raises(InvalidCursor):
        CURSORS.read(cursor, [CONTACTS.order("-created_at").context, {}])


def test_cursor_with_a_removed_enum_member_is_refused() -> None:
    order = list_of(MODELS["integer"]).order("size")

    assert order.parameters(["SMALL", 1]) == {"after_0": Size.SMALL, "after_1": 1}
    with pytest.raises(InvalidCursor):
        order.parameters(["TINY", 1])


def test_common_position_is_the_sort_value_and_the_key() -> None:
    order = CONTACTS.order("-created_at")
    moment = datetime(2026, 1, 2, tzinfo=UTC)

    position = order.position({"created_at": moment, "id": 7})

    assert position == ["2026-01-02T00:00:00+00:00", 7]
    assert order.parameters(position) == {"after_0": moment, "after_1": 7}


def test_null_in_a_column_that_the_model_declares_not_null_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="created_at is NULL"):
        CONTACTS.order("created_at").position({"created_at": None, "id": 7})


def test_cursor_of_another_accepted_key_is_read() -> None:
    before, between, after = Cursors("old", ["new"]), Cursors("new", ["old"]), Cursors("new")

    cursor = between.write("context", [1])
    assert [cursors.read(cursor, "context") for cursors in (before, between, after)] == [[1], [1], [1]]
    assert between.read(before.write("context", [2]), "context") == [2]
    with pytest.raises(InvalidCursor):
        after.read(before.write("context", [2]), "context")
