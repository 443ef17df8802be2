"""Types of path parameters that more than one domain uses."""

from typing import Annotated

from fastapi import Path
from starlette.convertors import StringConvertor, register_url_convertor

from app.fields import BIGINT_MAX


class _IdConvertor(StringConvertor):
    """Match `{user_id:id}` in a path against digits only.

    `/users/me` is then not a user's path, and a path with an impossible id is a 404 instead of a 422.
    """

    regex = "[0-9]+"


register_url_convertor("id", _IdConvertor())
Id = Annotated[int, Path(ge=1, le=BIGINT_MAX)]
