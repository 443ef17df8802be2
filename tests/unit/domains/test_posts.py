from httpx import AsyncClient

from app.database import Database
from app.models import Post, User


async def test_a_list_of_posts_has_their_authors(client: AsyncClient, database: Database) -> None:
    async with database.write() as session:
        ann = User(email="ann@example.com", name="Ann", password_hash="x")
        session.add_all([Post(author=ann, title=f"Post {number}", content="") for number in range(3)])

    page = (await client.get("/posts", params={"limit": 2})).json()

    assert [post["author"]["name"] for post in page["items"]] == ["Ann", "Ann"]
    assert (page["total"], page["has_more"]) == (3, True)
