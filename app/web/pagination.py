"""Pages: what a list asks for and what it answers."""

from collections.abc import Sequence
from typing import Annotated, Generic, Self, TypeVar

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from app.web.types import BIGINT_MAX


class OffsetParams(BaseModel):
    """`?offset=&limit=`. Any other parameter is refused: ignoring a filter would answer another question."""

    model_config = ConfigDict(extra="forbid")

    offset: int = Field(default=0, ge=0, le=BIGINT_MAX, description="Items to skip.")
    limit: int = Field(default=20, ge=1, le=100, description="Items to return at most.")


OffsetQuery = Annotated[OffsetParams, Query()]


Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    items: Sequence[Item]
    total: int | None = Field(description="Items in all; null where they are not counted.")
    offset: int | None = Field(description="Items before this page; null where it is not known.")
    limit: int
    has_more: bool
    next_cursor: str | None = Field(default=None, description="Where the next page starts; null in a page by offset.")

    @classmethod
    def by_offset(cls, items: Sequence[Item], *, total: int, params: OffsetParams) -> Self:
        has_more = params.offset + len(items) < total
        return cls(items=items, total=total, offset=params.offset, limit=params.limit, has_more=has_more)
