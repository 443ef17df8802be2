from sqlalchemy import bindparam, func, select

from app.database import ReadSession
from app.domains.posts.errors import PostNotFound
from app.domains.posts.models import Post
from app.domains.posts.schemas import PostRead
from app.domains.users.errors import UserNotFound
from app.domains.users.models import User
from app.web.pagination import OffsetParams, Page

_POSTS = select(
    Post.id,
    Post.title,
    Post.content,
    Post.author_id,
    User.name.label("author_name"),
    Post.created_at,
    Post.updated_at,
).join(Post.author)
_BY_ID = _POSTS.where(Post.id == bindparam("post_id"))
_NEWEST = _POSTS.order_by(Post.created_at.desc(), Post.id.desc()).offset(bindparam("offset")).limit(bindparam("limit"))
_NEWEST_OF_AUTHOR = _NEWEST.where(Post.author_id == bindparam("author_id"))
_COUNT = select(func.count().label("total")).select_from(Post)
# No row for an unknown author, a row with 0 for one who has not written yet.
_COUNT_OF_AUTHOR = select(
    select(func.count()).where(Post.author_id == User.id).correlate(User).scalar_subquery().label("total")
).where(User.id == bindparam("author_id"))


class PostReader:
    def __init__(self, session: ReadSession) -> None:
        self._session = session

    async def get(self, post_id: int) -> PostRead:
        """Raises PostNotFound."""
        row = await self._session.first(_BY_ID, post_id=post_id)
        if row is None:
            raise PostNotFound(post_id)
        return PostRead.from_row(row)

    async def page(self, params: OffsetParams) -> Page[PostRead]:
        """Newest first."""
        counted = await self._session.first(_COUNT)
        rows = await self._session.all(_NEWEST, offset=params.offset, limit=params.limit)
        return Page[PostRead].by_offset(
            [PostRead.from_row(row) for row in rows], total=counted["total"] if counted else 0, params=params
        )

    async def page_of_author(self, author_id: int, params: OffsetParams) -> Page[PostRead]:
        """Newest first. Raises UserNotFound."""
        counted = await self._session.first(_COUNT_OF_AUTHOR, author_id=author_id)
        if counted is None:
            raise UserNotFound(author_id)
        rows = await self._session.all(_NEWEST_OF_AUTHOR, author_id=author_id, offset=params.offset, limit=params.limit)
        return Page[PostRead].by_offset([PostRead.from_row(row) for row in rows], total=counted["total"], params=params)
