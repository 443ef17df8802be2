"""Types of parameters and fields that more than one domain uses."""

from typing import Annotated

from fastapi import Path
from pydantic import AfterValidator

BIGINT_MAX = 2**63 - 1


def _no_nul(value: str) -> str:
    # PostgreSQL stores every Unicode character but this one.
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    return value


NoNul = AfterValidator(_no_nul)
Id = Annotated[int, Path(ge=1, le=BIGINT_MAX)]
