"""The API with a WebSocket route: `/tables` answers each message with the number of tables `added`.

The image has no tests, so a test mounts this module into a container. It must not import anything of `tests`.
"""

from fastapi import FastAPI, WebSocket
from sqlalchemy import column, func, select, table

from app.main import create_app
from app.web.deps import ReadDb

# A table of the server: the one of a domain would bind the tests of WebSockets to it.
_COUNT = select(func.count().label("tables")).select_from(table("pg_tables")).where(column("tablename") == "test_added")


def create() -> FastAPI:
    """Return the application, with the route added."""
    app = create_app()

    @app.websocket("/tables")
    async def count_tables(websocket: WebSocket, db: ReadDb) -> None:
        await websocket.accept()
        async for message in websocket.iter_text():
            row = await db.first(_COUNT)
            assert row is not None
            await websocket.send_text(f"{message}: {row['tables']}")

    return app
