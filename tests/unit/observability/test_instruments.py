"""What a worker counts, beside the catalogue that says what it is."""

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from prometheus_client import REGISTRY

from app.database.pool_events import INVALIDATION_CAUSES
from app.observability import catalogue
from app.observability.catalogue import metrics_table
from app.observability.pool_metrics import PoolMetrics


def count(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0


def test_every_name_is_in_the_table_once_and_counters_end_as_they_should() -> None:
    described = list(catalogue.described())

    assert len({each.name for each in described}) == len(described) == metrics_table().count("\n") - 1
    assert all(each.name.endswith("_total") == (each.kind == "counter") for each in described)
    assert all(each.help.endswith(".") for each in described)


def test_a_series_is_there_before_its_first_event() -> None:
    PoolMetrics("quiet")

    for name in ("timeouts", "rejections", "connect_errors", "leaks", "waits", "checkouts"):
        assert REGISTRY.get_sample_value(f"db_pool_{name}_total", {"pool": "quiet"}) == 0
    for cause in INVALIDATION_CAUSES:
        labels = {"pool": "quiet", "kind": "hard", "cause": cause}
        assert REGISTRY.get_sample_value("db_pool_invalidations_total", labels) == 0


@pytest.mark.parametrize(
    ("method", "path", "labels"),
    [
        ("GET", "/users/123456", {"method": "GET", "route": "/users/{user_id}", "status": "404"}),
        ("GET", "/no/such/thing", {"method": "GET", "route": "unmatched", "status": "404"}),
        ("PUT", "/users/1", {"method": "PUT", "route": "/users/{user_id}", "status": "405"}),
        ("BREW", "/livez", {"method": "other", "route": "/livez", "status": "405"}),
        ("GET", "/openapi.json", {"method": "GET", "route": "/openapi.json", "status": "200"}),
    ],
)
async def test_a_request_counts_by_its_template_never_by_its_path(
    client: AsyncClient, method: str, path: str, labels: dict[str, str]
) -> None:
    duration = {name: value for name, value in labels.items() if name != "status"}
    before = count("http_requests_total", **labels), count("http_request_duration_seconds_count", **duration)

    await client.request(method, path)

    after = count("http_requests_total", **labels), count("http_request_duration_seconds_count", **duration)
    assert after == (before[0] + 1, before[1] + 1)


async def test_a_request_that_fails_counts_with_the_status_that_its_client_read(
    app: FastAPI, client: AsyncClient
) -> None:
    @app.get("/failing")
    async def failing() -> None:
        raise LookupError

    await client.get("/failing")

    assert count("http_requests_total", method="GET", route="/failing", status="500") == 1
