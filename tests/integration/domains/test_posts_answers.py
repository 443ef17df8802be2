"""The check of test_answers_are_stored.py finds fields that are not stored, on routes with posts."""

from typing import cast

import pytest
from fastapi import FastAPI, Response
from httpx import AsyncClient
from sqlalchemy import URL

from app.domains.posts.repository import PostReader
from app.domains.posts.schemas import PostCreate, PostPatch, PostRead, post_of_entity
from app.domains.posts.service import change_post, write_post
from app.fields import NOT_SENT
from app.web.auth import Claimed, SignedIn
from app.web.deps import ReadDb, StatementDb, WriteDb
from app.web.path_params import Id
from tests.integration.domains.test_answers_are_stored import Checker
from tests.support.people import person


class Draft(PostCreate):
    """A request schema with a field that no table has."""

    subtitle: str


class DraftPatch(PostPatch):
    """Changes to a post, and a field that no table has."""

    subtitle: str = NOT_SENT


class DraftRead(PostRead, total=False):
    """An answer that may contain the field."""

    subtitle: str


@pytest.mark.parametrize("is_echoed", [False, True], ids=["ignored", "echoed"])
async def test_field_without_column_is_found(
    app: FastAPI, client: AsyncClient, database_url: URL, is_echoed: bool
) -> None:
    """A field that is only in the schema."""

    @app.post("/drafts", status_code=201)
    async def create_draft(data: Draft, db: StatementDb, claim: Claimed, response: Response) -> DraftRead:
        post = await write_post(db, data, claim)
        response.headers["Location"] = f"/drafts/{post['id']}"
        return cast("DraftRead", {**post, "subtitle": data.subtitle} if is_echoed else post)

    @app.get("/drafts/{draft_id:id}")
    async def get_draft(draft_id: Id, db: ReadDb) -> DraftRead:
        return cast("DraftRead", await PostReader(db).get(draft_id))

    admin = await person(client, "Admin", database_url, is_admin=True)
    found = await Checker(app, admin).check_all()

    assert found
    assert {tuple(line.split(": ")[:2]) for line in found} == {("POST /drafts", "subtitle")}


async def test_field_that_put_does_not_store_is_found(app: FastAPI, client: AsyncClient, database_url: URL) -> None:
    @app.put("/posts/{post_id:id}")
    async def replace_post(post_id: Id, data: PostCreate, db: WriteDb, principal: SignedIn) -> PostRead:
        return post_of_entity(await change_post(db, post_id, PostPatch(title=data.title), principal))

    admin = await person(client, "Admin", database_url, is_admin=True)
    found = await Checker(app, admin).check_all()

    assert {tuple(line.split(": ")[:2]) for line in found} == {("PUT /posts/{post_id}", "content")}


async def test_item_created_under_its_parent_is_checked(app: FastAPI, client: AsyncClient, database_url: URL) -> None:
    """It is created at `/posts/{post_id}/replies`, but read and changed at `/replies/{reply_id}`."""

    @app.post("/posts/{post_id:id}/replies", status_code=201)
    async def create_reply(post_id: Id, data: Draft, db: StatementDb, claim: Claimed, response: Response) -> PostRead:
        post = await write_post(db, data, claim)
        response.headers["Location"] = f"/replies/{post['id']}"
        return post

    @app.get("/replies/{reply_id:id}")
    async def get_reply(reply_id: Id, db: ReadDb) -> PostRead:
        return await PostReader(db).get(reply_id)

    @app.patch("/replies/{reply_id:id}")
    async def update_reply(reply_id: Id, patch: DraftPatch, db: WriteDb, principal: SignedIn) -> PostRead:
        title = PostPatch.model_validate(patch.model_dump(exclude={"subtitle"}, exclude_unset=True))
        return post_of_entity(await change_post(db, reply_id, title, principal))

    admin = await person(client, "Admin", database_url, is_admin=True)
    found = await Checker(app, admin).check_all()

    assert {tuple(line.split(": ")[:2]) for line in found} == {
        ("POST /posts/{post_id}/replies", "subtitle"),
        ("PATCH /replies/{reply_id}", "subtitle"),
    }
