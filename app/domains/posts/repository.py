"""Reads and writes posts."""

from sqlalchemy import bindparam, insert, literal_column, select
from sqlalchemy.orm import joinedload

from app.database import KeyedSelect, ReadSession, SharedInsert, StatementSession, WriteSession
from app.database.error_mapping import violations
from app.database.session import Row
from app.domains.posts.errors import PostNotFound
from app.domains.posts.models import Post
from app.domains.posts.schemas import PostCreate, PostListParams, PostRead, PostsOfUserParams, post_of_row
from app.domains.users.errors import UserGone, UserNotFound
from app.domains.users.models import User
from app.identity import Claim
from app.pagination.cursor import Cursors
from app.pagination.page import Page, read_page
from app.pagination.statements import ListStatements, contains

_COLUMNS = (Post.id, Post.title, Post.content, Post.author_id, Post.created_at, Post.updated_at)
# The columns that a new post takes from the request: the fields of PostCreate.
_SENT = (Post.title, Post.content)
_POSTS = select(*_COLUMNS, User.name.label("author_name")).join(Post.author)
_BY_ID = KeyedSelect(_POSTS, Post.id)
# A literal column: SQLAlchemy would add `posts`, the table of the INSERT, to the FROM clause of the subquery.
_AUTHOR_NAME = select(User.name).where(User.id == literal_column("posts.author_id")).scalar_subquery()
_USER_EXISTS = KeyedSelect(select(User.id), User.id)
# Inserts nothing unless the author exists and is active. That saves a query before the INSERT.
_INSERT = SharedInsert(
    insert(Post)
    .from_select(
        ["author_id", *(column.key for column in _SENT)],
        select(User.id, *(bindparam(column.key, type_=column.type) for column in _SENT)).where(
            User.id == bindparam("author_id", type_=User.id.type), User.is_active
        ),
    )
    .returning(*_COLUMNS, _AUTHOR_NAME.label("author_name"))
)
_LIST = ListStatements(
    "posts",
    _POSTS,
    key=Post.id,
    sorts={"created_at": Post.created_at, "title": Post.title, "id": Post.id},
    filters={
        "q": contains("q", Post.title, Post.content),
        "author_id": Post.author_id == bindparam("author_id", type_=Post.author_id.type),
    },
    counted=select(Post.id),  # each post has one author, so the join changes no count
)


class PostReader:
    """Reads posts without a transaction."""

    def __init__(self, session: ReadSession) -> None:
        self._session = session

    async def get(self, post_id: int) -> PostRead:
        """Return a post. Raise PostNotFound."""
        row = await self._session.one(_BY_ID, post_id)
        if row is None:
            raise PostNotFound(post_id)
        return post_of_row(row)

    async def page(self, params: PostListParams, cursors: Cursors) -> Page[PostRead]:
        """Return a page of all posts. Raise InvalidCursor."""
        return await read_page(self._session, _LIST, params, cursors=cursors, make=post_of_row)

    async def page_of_author(self, author_id: int, params: PostsOfUserParams, cursors: Cursors) -> Page[PostRead]:
        """Return a page of one author's posts. Raise UserNotFound, InvalidCursor."""
        if await self._session.one(_USER_EXISTS, author_id) is None:
            raise UserNotFound(author_id)
        return await read_page(
            self._session, _LIST, params, cursors=cursors, make=post_of_row, also={"author_id": author_id}
        )


class PostWriter:
    """Inserts posts in one statement each."""

    def __init__(self, session: StatementSession) -> None:
        self._session = session

    async def add(self, claim: Claim, data: PostCreate) -> Row:
        """Insert a post and return the stored row. Raise UserGone."""
        with violations({"fk_posts_author_id_users": UserGone()}):  # a concurrent request deletes the author
            row = await self._session.returned(_INSERT, author_id=claim.user_id, **vars(data))
        if row is None:
            raise UserGone
        return row


class PostRepository:
    """Posts as entities of a write session."""

    def __init__(self, session: WriteSession) -> None:
        self._session = session

    async def get(self, post_id: int) -> Post:
        """Return a post with its author. The post is locked until the transaction ends. Raise PostNotFound."""
        post = await self._session.scalar(
            select(Post)
            .where(Post.id == post_id)
            .options(joinedload(Post.author, innerjoin=True))
            .with_for_update(of=Post)
        )
        if post is None:
            raise PostNotFound(post_id)
        return post

    async def flush(self) -> None:
        """Write the changes to the database."""
        await self._session.flush()

    async def delete(self, post: Post) -> None:
        """Delete a post."""
        await self._session.delete(post)
