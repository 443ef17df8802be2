"""Requests and responses of the posts domain."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from typing_extensions import TypedDict

from app.database.session import Row
from app.domains.posts.models import Post
from app.fields import BIGINT_MAX, NO_NUL, NOT_BLANK, NOT_SENT, NoNul, Patch, Trimmed
from app.pagination.page import ListParams

Title = Annotated[str, StringConstraints(max_length=200, pattern=NOT_BLANK), Trimmed]
Content = Annotated[str, StringConstraints(min_length=1, max_length=100_000, pattern=NO_NUL)]


class PostCreate(BaseModel):
    """A new post."""

    model_config = ConfigDict(extra="forbid")

    title: Title
    content: Content


class PostPatch(Patch):
    """Changes to a post."""

    title: Title = NOT_SENT
    content: Content = NOT_SENT


class PostsOfUserParams(ListParams):
    """The query parameters of the list of one user's posts."""

    q: Annotated[str, NoNul] | None = Field(
        default=None, max_length=100, description="Text to search for in titles and contents, case-insensitive."
    )
    sort: Literal["created_at", "-created_at", "title", "-title", "id", "-id"] = "-created_at"


class PostListParams(PostsOfUserParams):
    """The query parameters of the list of all posts."""

    author_id: int | None = Field(default=None, ge=1, le=BIGINT_MAX, description="Only posts of this user.")


class Author(TypedDict):
    """The author of a post."""

    id: int
    name: str


class PostRead(TypedDict):
    """A post with its author."""

    id: int
    title: str
    content: str
    author: Author
    created_at: datetime
    updated_at: datetime


def post_of_row(row: Row) -> PostRead:
    """Return the response for a row."""
    return {
        "id": row["id"],
        "title": row["title"],
        "content": row["content"],
        "author": {"id": row["author_id"], "name": row["author_name"]},
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }


def post_of_entity(post: Post) -> PostRead:
    """Return the response for an entity. Its author must be loaded."""
    return {
        "id": post.id,
        "title": post.title,
        "content": post.content,
        "author": {"id": post.author.id, "name": post.author.name},
        "created_at": post.created_at,
        "updated_at": post.updated_at,
    }
