"""Callers of the API."""

from collections.abc import Mapping
from typing import Any

from httpx import AsyncClient, Response


class Caller:
    """Sends requests with the headers of one caller."""

    def __init__(self, client: AsyncClient, headers: Mapping[str, str] | None = None) -> None:
        self.client = client
        self.headers = dict(headers or {})

    async def __call__(self, method: str, path: str, **request: Any) -> Response:
        return await self.client.request(method, path, headers=self.headers, **request)
