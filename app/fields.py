"""Types of schema fields that several domains use. Imports no web framework, so repositories can use it."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetJsonSchemaHandler, StringConstraints
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

BIGINT_MAX = 2**63 - 1

# PostgreSQL stores every Unicode character except NUL. A pattern also appears in the OpenAPI document.
NO_NUL = r"^[^\x00]*$"
NoNul = StringConstraints(pattern=NO_NUL)
# No NUL, and at least one visible character: no space, no control character, and none that Unicode shows as nothing or
# as a space. Written as escapes: the pattern is a part of the OpenAPI document, which clients read.
_INVISIBLE = (
    r"\s\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    r"\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
)
NOT_BLANK = rf"^[^\x00]*[^{_INVISIBLE}][^\x00]*$"
# Strips after validation. pydantic's strip_whitespace strips first, and then accepts text over the documented length.
Trimmed = AfterValidator(str.strip)

# The levels of objects and arrays that a JsonObject may have. pydantic raises if a response has about 256.
MAX_JSON_LEVELS = 100


def _require_few_levels(value: dict[str, Any]) -> dict[str, Any]:
    # Level by level: a recursive function would raise RecursionError for the values that this one has to refuse.
    level: list[Any] = [value]
    for _ in range(MAX_JSON_LEVELS):
        children = (child for each in level for child in (each.values() if isinstance(each, dict) else each))
        level = [child for child in children if isinstance(child, dict | list)]
        if not level:
            return value
    raise PydanticCustomError(
        "json_too_deep", "JSON should have at most {max_levels} levels", {"max_levels": MAX_JSON_LEVELS}
    )


# A JSON object of any shape, in a request: for a JSONB column.
JsonObject = Annotated[
    dict[str, Any],
    AfterValidator(_require_few_levels),
    Field(description=f"A JSON object with at most {MAX_JSON_LEVELS} levels of objects and arrays."),
]

# The default of every field of a Patch. pydantic does not validate defaults, so a field whose type excludes None still
# refuses an explicit null.
NOT_SENT: Any = None


class Patch(BaseModel):
    """A partial update. A field that was not sent keeps its value."""

    model_config = ConfigDict(extra="forbid")

    def changes(self) -> dict[str, Any]:
        """Return the fields that were sent, with their values."""
        return self.model_dump(exclude_unset=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = handler.resolve_ref_schema(handler(schema))
        for field in described.get("properties", {}).values():
            field.pop("default", None)  # a client cannot send NOT_SENT
        return described
