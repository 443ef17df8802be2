"""Types of parameters and fields that more than one domain uses."""

from typing import Annotated, Any

from fastapi import Path
from pydantic import AfterValidator, BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

BIGINT_MAX = 2**63 - 1


def _no_nul(value: str) -> str:
    # PostgreSQL stores every Unicode character but this one.
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    return value


NoNul = AfterValidator(_no_nul)
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
