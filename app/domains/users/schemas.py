from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, EmailStr, Field, StringConstraints

from app.web.pagination import ListParams
from app.web.types import NOT_BLANK, NOT_SENT, NoNul, Patch


def _address_alone(value: object) -> object:
    # pydantic also takes "Ann <ann@example.com>", and keeps the address.
    if isinstance(value, str) and "<" in value:
        raise ValueError("must be an address, without a name")
    return value


Email = Annotated[EmailStr, BeforeValidator(_address_alone)]
Name = Annotated[str, StringConstraints(strip_whitespace=True, max_length=100, pattern=NOT_BLANK)]
# The upper bound keeps a caller from making Argon2 chew a megabyte.
Password = Annotated[
    str,
    StringConstraints(min_length=8, max_length=128),
    Field(repr=False, json_schema_extra={"format": "password", "writeOnly": True}),
]


class SignUp(BaseModel):
    model_config = ConfigDict(extra="forbid")

    email: Email
    name: Name
    password: Password


class UserPatch(Patch):
    """`is_active` and `is_admin` are an administrator's to change."""

    email: Email = NOT_SENT
    name: Name = NOT_SENT
    password: Password = NOT_SENT
    is_active: bool = NOT_SENT
    is_admin: bool = NOT_SENT


class UserListParams(ListParams):
    q: Annotated[str, NoNul] | None = Field(
        default=None, max_length=100, description="Text to search for in names and addresses, whatever its case."
    )
    sort: Literal[
        "created_at", "-created_at", "name", "-name", "email", "-email", "id", "-id"
    ] = "-created_at"  # fmt: skip
    is_active: bool | None = None


class PublicUser(BaseModel):
    """What anyone may know of a user."""

    id: int
    name: str
    created_at: datetime


class OwnUser(BaseModel):
    """What users may know of themselves, and administrators of anyone."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    email: str
    name: str
    is_active: bool
    is_admin: bool
    created_at: datetime
    updated_at: datetime
