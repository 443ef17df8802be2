from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, EmailStr, Field, StringConstraints

from app.web.types import NoNul


class SignUp(BaseModel):
    model_config = ConfigDict(extra="forbid")

    email: EmailStr
    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100), NoNul]
    # The upper bound keeps a caller from making Argon2 chew a megabyte.
    password: str = Field(
        min_length=8, max_length=128, repr=False, json_schema_extra={"format": "password", "writeOnly": True}
    )


class PublicUser(BaseModel):
    """What anyone may know of a user."""

    id: int
    name: str
    created_at: datetime


class OwnUser(BaseModel):
    """What users may know of themselves."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    email: str
    name: str
    created_at: datetime
    updated_at: datetime
