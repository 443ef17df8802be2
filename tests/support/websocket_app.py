"""The API with a WebSocket route: `/users/count` answers each message with the number of users.

The image has no tests, so a test mounts this module into a container. It must not import anything of `tests`.
"""

from fastapi import FastAPI, WebSocket
from sqlalchemy import func, select

from app.main import create_app
from app.models import User
from app.web.deps import ReadDb

_COUNT = select(func.count(User.id).label("users"))


def create() -> FastAPI:
    """Return the application, with the route added."""
    app = create_app()

    @app.websocket("/users/count")
    async def count_users(websocket: WebSocket, db: ReadDb) -> None:
        await websocket.accept()
        async for message in websocket.iter_text():
            row = await db.first(_COUNT)
            assert row is not None
            await websocket.send_text(f"{message}: {row['users']}")

    return app
