"""The setting DB_STATEMENT_COMMENTS: statements name the route of their request."""

from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from sqlalchemy import URL, func, select

from app.main import create_app
from app.settings import Settings
from app.web.deps import ReadDb
from tests.integration.conftest import SECRET_KEY

OWN_TEXT = select(func.current_query().label("text"))


async def test_statement_names_the_template_of_its_route(database_url: URL) -> None:
    app = create_app(Settings(database_url=database_url, secret_key=SECRET_KEY, db_statement_comments=1))
    mounted = FastAPI()
    app.mount("/mounted", mounted)

    @mounted.get("/text/{number}")
    async def text(db: ReadDb, number: int) -> str:
        row = await db.first(OWN_TEXT)
        return row["text"] if row else ""

    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        texts = {(await client.get(f"/mounted/text/{number}")).json() for number in range(3)}

    assert texts == {"SELECT current_query() AS text /*lane='normal',route='%2Fmounted%2Ftext%2F%7Bnumber%7D'*/"}
