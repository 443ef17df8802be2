"""Responses of the auth domain."""

from typing import Literal

from pydantic import BaseModel, Field


class Token(BaseModel):
    """An access token, for the header `Authorization: Bearer ...`."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - a scheme, not a secret
    expires_in: int = Field(description="Lifetime of the token, in seconds.")
