"""Routes that declare a lane."""

from typing import Annotated

import pytest
from fastapi import Depends, FastAPI
from httpx import AsyncClient

from app import lanes
from app.database.lanes import current_lane
from app.lanes import LaneSpec
from app.web import fast_routes
from app.web.deps import lane


async def lane_of_dependency() -> str:
    return current_lane.get()


@pytest.mark.parametrize("mode", ["auto", "off"])
async def test_route_and_its_dependencies_are_in_the_declared_lane(
    client: AsyncClient, app: FastAPI, mode: str
) -> None:
    if mode == "off":
        fast_routes.install(app, "off")

    @app.get("/report", dependencies=[lane("expensive")])
    async def report(inner: Annotated[str, Depends(lane_of_dependency)]) -> list[str]:
        return [inner, current_lane.get()]

    @app.get("/other")
    async def other() -> list[str]:
        return [current_lane.get()]

    assert (await client.get("/report")).json() == ["expensive", "expensive"]
    assert (await client.get("/other")).json() == ["normal"]


async def test_route_may_be_in_a_lane_of_the_application(
    client: AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "OWN_LANES", (LaneSpec("reports", 0.5, 10, 5.0),))

    @app.get("/report", dependencies=[lane("reports")])
    async def report() -> str:
        return current_lane.get()

    assert (await client.get("/report")).json() == "reports"


def test_route_in_an_unknown_lane_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"no lane 'report'; the lanes are critical, normal, expensive \(app/lanes.py\)"
    ):
        lane("report")
