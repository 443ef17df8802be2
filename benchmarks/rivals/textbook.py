"""The style of the FastAPI and SQLAlchemy documentation.

One `get_db`, pre-ping, a transaction around each read, ORM entities, `response_model`.
"""

import os
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated

import jwt
from fastapi import Depends, FastAPI, HTTPException, Response
from fastapi.security import OAuth2PasswordBearer
from pydantic import BaseModel, ConfigDict
from sqlalchemy import ForeignKey, func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

engine = create_async_engine(os.environ["DATABASE_URL"], pool_pre_ping=True, pool_size=5, max_overflow=10)
Session = async_sessionmaker(engine, expire_on_commit=False)
app = FastAPI()


class Base(DeclarativeBase): ...


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    name: Mapped[str]
    deactivated_at: Mapped[datetime | None]
    created_at: Mapped[datetime]


class Post(Base):
    __tablename__ = "posts"
    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    title: Mapped[str]
    content: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    author: Mapped[User] = relationship()


class UserOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    id: int
    name: str
    created_at: datetime


class AuthorOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    id: int
    name: str


class PostOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    id: int
    title: str
    content: str
    author: AuthorOut
    created_at: datetime
    updated_at: datetime


class PostsOut(BaseModel):
    items: list[PostOut]


class PostIn(BaseModel):
    title: str
    content: str


async def get_db() -> AsyncIterator[AsyncSession]:
    async with Session() as session:
        yield session


Db = Annotated[AsyncSession, Depends(get_db)]
bearer = OAuth2PasswordBearer(tokenUrl="token")


async def current_user(db: Db, token: Annotated[str, Depends(bearer)]) -> User:
    try:
        claims = jwt.decode(
            token, os.environ["SECRET_KEY"], algorithms=["HS256"], issuer="headroom", audience="headroom-api"
        )
    except jwt.InvalidTokenError:
        raise HTTPException(401) from None
    user = await db.get(User, int(claims["sub"]))
    if user is None or user.deactivated_at is not None:
        raise HTTPException(401)
    return user


@app.get("/users/{user_id}", response_model=UserOut)
async def get_user(user_id: int, db: Db) -> User:
    user = await db.get(User, user_id)
    if user is None:
        raise HTTPException(404)
    return user


@app.get("/posts", response_model=PostsOut)
async def list_posts(db: Db, cursor: str = "", limit: int = 20) -> dict[str, object]:
    newest = select(Post).options(selectinload(Post.author)).order_by(Post.created_at.desc(), Post.id.desc())
    return {"items": (await db.scalars(newest.limit(limit))).all()}


@app.get("/posts/{post_id}", response_model=PostOut)
async def get_post(post_id: int, db: Db) -> Post:
    post = await db.get(Post, post_id, options=[selectinload(Post.author)])
    if post is None:
        raise HTTPException(404)
    return post


@app.post("/posts", status_code=201, response_model=PostOut)
async def create_post(data: PostIn, db: Db, user: Annotated[User, Depends(current_user)], response: Response) -> Post:
    post = Post(title=data.title, content=data.content, author=user)
    db.add(post)
    await db.commit()
    await db.refresh(post)
    response.headers["Location"] = f"/posts/{post.id}"
    return post


@app.get("/hold")
async def hold(db: Db, ms: float) -> None:
    await db.execute(select(func.pg_sleep(ms / 1000)))


@app.get("/livez")
async def livez() -> None: ...
