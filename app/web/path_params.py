"""Types of path parameters that several domains use."""

from typing import Annotated

from fastapi import Path
from starlette.convertors import StringConvertor, register_url_convertor

from app.fields import BIGINT_MAX


class _IdConvertor(StringConvertor):
    """Matches `{user_id:id}` in a path against digits only.

    `/things/latest` then does not match the path of one thing. A path whose id is no number is a 404 instead of a 422.
    """

    regex = "[0-9]+"


register_url_convertor("id", _IdConvertor())
Id = Annotated[int, Path(ge=1, le=BIGINT_MAX)]
