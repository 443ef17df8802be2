import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from prometheus_client import REGISTRY

from tests.support import contacts


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0


@pytest.mark.parametrize(
    ("method", "path", "labels"),
    [
        ("GET", "/test-contacts/123456", {"method": "GET", "route": "/test-contacts/{contact_id}", "status": "404"}),
        ("GET", "/no/such/thing", {"method": "GET", "route": "unmatched", "status": "404"}),
        ("PATCH", "/test-contacts/1", {"method": "PATCH", "route": "/test-contacts/{contact_id}", "status": "405"}),
        ("BREW", "/livez", {"method": "other", "route": "/livez", "status": "405"}),
        ("GET", "/openapi.json", {"method": "GET", "route": "/openapi.json", "status": "200"}),
    ],
)
async def test_request_is_counted_by_route_template(
    app: FastAPI, client: AsyncClient, method: str, path: str, labels: dict[str, str]
) -> None:
    duration_labels = {name: value for name, value in labels.items() if name != "status"}

    def counts() -> tuple[float, float]:
        return (
            sample("http_requests_total", **labels),
            sample("http_request_duration_seconds_count", **duration_labels),
        )

    app.include_router(contacts.router)
    requests, durations = counts()
    await client.request(method, path)

    assert counts() == (requests + 1, durations + 1)


async def test_request_with_an_unhandled_exception_is_counted_as_500(app: FastAPI, client: AsyncClient) -> None:
    @app.get("/failing")
    async def failing() -> None:
        raise LookupError

    await client.get("/failing")

    assert sample("http_requests_total", method="GET", route="/failing", status="500") == 1
