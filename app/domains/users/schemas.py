"""Requests and responses of the users domain."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, EmailStr, Field, StringConstraints, TypeAdapter
from typing_extensions import TypedDict

from app.database.session import Row
from app.domains.users.models import User
from app.fields import NOT_BLANK, NOT_SENT, NoNul, Patch, Trimmed
from app.pagination.page import ListParams


def _reject_display_name(value: object) -> object:
    # pydantic would accept "Ann <ann@example.com>" and keep the address only.
    if isinstance(value, str) and "<" in value:
        raise ValueError("must be an e-mail address without a display name")
    return value


Email = Annotated[EmailStr, BeforeValidator(_reject_display_name)]
_EMAIL = TypeAdapter(Email)


def normalised_email(text: str) -> str:
    """Return an e-mail address as sign-up stores it; the text itself if sign-up would refuse it."""
    try:
        return _EMAIL.validate_python(text)
    except ValueError:
        return text


Name = Annotated[str, StringConstraints(max_length=100, pattern=NOT_BLANK), Trimmed]
# The upper bound limits the time that one hash takes.
Password = Annotated[
    str,
    StringConstraints(min_length=8, max_length=128),
    Field(repr=False, json_schema_extra={"format": "password", "writeOnly": True}),
]


class SignUp(BaseModel):
    """A new account."""

    model_config = ConfigDict(extra="forbid")

    email: Email
    name: Name
    password: Password


class UserPatch(Patch):
    """Changes to an account. Only administrators may change `is_active` and `is_admin`."""

    email: Email = NOT_SENT
    name: Name = NOT_SENT
    password: Password = NOT_SENT
    is_active: bool = NOT_SENT
    is_admin: bool = NOT_SENT


class UserListParams(ListParams):
    """The query parameters of the list of users."""

    q: Annotated[str, NoNul] | None = Field(
        default=None, max_length=100, description="Text to search for in names and e-mail addresses, case-insensitive."
    )
    sort: Literal[
        "created_at", "-created_at", "name", "-name", "email", "-email", "id", "-id"
    ] = "-created_at"  # fmt: skip
    # Only administrators read this list.
    total: Literal["bounded", "none", "exact"] = ListParams.model_fields["total"].default  # type: ignore[assignment]
    is_active: bool | None = Field(default=None, description="Only active, or only inactive, users.")


class PublicUser(TypedDict):
    """The public part of an account."""

    id: int
    name: str
    created_at: datetime


class OwnUser(TypedDict):
    """An account, as its user and administrators see it."""

    id: int
    email: str
    name: str
    is_active: bool
    deactivated_at: datetime | None
    is_admin: bool
    created_at: datetime
    updated_at: datetime


def own_user_of_row(row: Row) -> OwnUser:
    """Return the response for a row."""
    return {
        "id": row["id"],
        "email": row["email"],
        "name": row["name"],
        "is_active": row["deactivated_at"] is None,
        "deactivated_at": row["deactivated_at"],
        "is_admin": row["is_admin"],
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }


def own_user_of_entity(user: User) -> OwnUser:
    """Return the response for an entity."""
    return {
        "id": user.id,
        "email": user.email,
        "name": user.name,
        "is_active": user.is_active,
        "deactivated_at": user.deactivated_at,
        "is_admin": user.is_admin,
        "created_at": user.created_at,
        "updated_at": user.updated_at,
    }
