"""Starlette, asyncpg's own pool and orjson: no validation beyond what runs, no metrics, no log, no bounds.

With RESET=0 the pool does not reset returned connections. This is the variant `ceiling`.
"""

import base64
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import jwt
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

USER = "SELECT id, name, created_at FROM users WHERE id = $1"
POST = """
    SELECT p.id, p.title, p.content, p.author_id, u.name, p.created_at, p.updated_at
    FROM posts p JOIN users u ON u.id = p.author_id
"""
ONE_POST = f"{POST} WHERE p.id = $1"
NEWEST = f"{POST} ORDER BY p.created_at DESC, p.id DESC LIMIT $1"
WRITE = """
    WITH u AS (SELECT id, name FROM users WHERE id = $1 AND deactivated_at IS NULL),
         p AS (INSERT INTO posts (author_id, title, content) SELECT id, $2, $3 FROM u RETURNING *)
    SELECT p.id, p.title, p.content, p.author_id, u.name, p.created_at, p.updated_at FROM p, u
"""


class ConnectionWithoutReset(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    def get_reset_query(self) -> str:
        return ""


pool: Any


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    global pool
    url = os.environ["DATABASE_URL"].replace("+asyncpg", "")
    connection = asyncpg.Connection if os.environ.get("RESET", "1") == "1" else ConnectionWithoutReset
    async with asyncpg.create_pool(url, min_size=5, max_size=15, connection_class=connection) as pool:
        yield


def answer(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, "application/json")


def post(row: Any) -> dict[str, Any]:
    return {
        "id": row["id"],
        "title": row["title"],
        "content": row["content"],
        "author": {"id": row["author_id"], "name": row["name"]},
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }


async def get_user(request: Request) -> Response:
    async with pool.acquire() as connection:
        row = await connection.fetchrow(USER, int(request.path_params["id"]))
    return answer(dict(row)) if row else answer({}, 404)


async def list_posts(request: Request) -> Response:
    limit = int(request.query_params["limit"])
    async with pool.acquire() as connection:
        rows = await connection.fetch(NEWEST, limit + 1)
    items = [post(row) for row in rows[:limit]]
    last = items[-1]
    cursor = base64.urlsafe_b64encode(orjson.dumps([last["created_at"], last["id"]])).decode()
    more = len(rows) > limit
    return answer({"items": items, "limit": limit, "has_more": more, "next_cursor": cursor if more else None})


async def get_post(request: Request) -> Response:
    async with pool.acquire() as connection:
        row = await connection.fetchrow(ONE_POST, int(request.path_params["id"]))
    return answer(post(row)) if row else answer({}, 404)


async def create_post(request: Request) -> Response:
    token = request.headers.get("authorization", "").removeprefix("Bearer ")
    try:
        claims = jwt.decode(
            token, os.environ["SECRET_KEY"], algorithms=["HS256"], issuer="headroom", audience="headroom-api"
        )
    except jwt.InvalidTokenError:
        return answer({}, 401)
    data = orjson.loads(await request.body())
    async with pool.acquire() as connection:
        row = await connection.fetchrow(WRITE, int(claims["sub"]), data["title"], data["content"])
    return answer(post(row), 201, {"location": f"/posts/{row['id']}"}) if row else answer({}, 401)


async def hold(request: Request) -> Response:
    async with pool.acquire() as connection:
        await connection.fetchrow("SELECT pg_sleep($1)", float(request.query_params["ms"]) / 1000)
    return answer({})


async def livez(request: Request) -> Response:
    return answer({})


app = Starlette(
    routes=[
        Route("/users/{id}", get_user),
        Route("/posts", list_posts, methods=["GET"]),
        Route("/posts", create_post, methods=["POST"]),
        Route("/posts/{id}", get_post),
        Route("/hold", hold),
        Route("/livez", livez),
    ],
    lifespan=lifespan,
)
