"""Types of parameters and fields that more than one domain uses."""

from typing import Annotated, Any

from fastapi import Path
from pydantic import AfterValidator, BaseModel, ConfigDict, GetJsonSchemaHandler, StringConstraints
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from starlette.convertors import StringConvertor, register_url_convertor

BIGINT_MAX = 2**63 - 1


# PostgreSQL stores every Unicode character but NUL. A pattern, so that the OpenAPI document says so, too.
NO_NUL = r"^[^\x00]*$"
NoNul = StringConstraints(pattern=NO_NUL)
# The same, and something to read. Python trims four control characters more than the pattern's engine calls space.
NOT_BLANK = r"^[^\x00]*[^\s\x00\x1c-\x1f][^\x00]*$"
# After a text was validated: pydantic's strip_whitespace comes before, and so takes what is longer than the OpenAPI
# document admits.
Trimmed = AfterValidator(str.strip)


class _IdConvertor(StringConvertor):
    """`{user_id:id}` in a path: digits. So `/users/me` is no user's path, and a path that can be nobody's is a 404."""

    regex = "[0-9]+"


register_url_convertor("id", _IdConvertor())
Id = Annotated[int, Path(ge=1, le=BIGINT_MAX)]


# The default of every field of a Patch. It is not validated, so null is still refused where the type does not admit it.
NOT_SENT: Any = None


class Patch(BaseModel):
    """A partial change: a field that is not sent stays as it is."""

    model_config = ConfigDict(extra="forbid")

    def changes(self) -> dict[str, Any]:
        """What was sent."""
        return self.model_dump(exclude_unset=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = handler.resolve_ref_schema(handler(schema))
        for field in described.get("properties", {}).values():
            field.pop("default", None)  # it is no value that could be sent
        return described
