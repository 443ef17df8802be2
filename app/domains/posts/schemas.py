from datetime import datetime
from typing import Self

from pydantic import BaseModel

from app.database.session import Row


class Author(BaseModel):
    id: int
    name: str


class PostRead(BaseModel):
    id: int
    title: str
    content: str
    author: Author
    created_at: datetime
    updated_at: datetime

    @classmethod
    def from_row(cls, row: Row) -> Self:
        return cls(
            id=row["id"],
            title=row["title"],
            content=row["content"],
            author=Author(id=row["author_id"], name=row["author_name"]),
            created_at=row["created_at"],
            updated_at=row["updated_at"],
        )
