"""Routes of posts."""

from fastapi import APIRouter, Response

from app.domains.posts.errors import PostNotFound
from app.domains.posts.repository import PostReader
from app.domains.posts.schemas import PostCreate, PostListParams, PostPatch, PostRead, PostsOfUserParams, post_of_entity
from app.domains.posts.service import change_post, delete_post, write_post
from app.domains.users.errors import UserNotFound
from app.errors import Forbidden, NotAuthenticated
from app.pagination.page import Page
from app.web.auth import Claimed, SignedIn
from app.web.deps import ReadDb, StatementDb, WriteDb
from app.web.pagination import CursorCodec, ListQuery
from app.web.path_params import Id
from app.web.problems import problem_responses

router = APIRouter(tags=["posts"])


@router.post("/posts", status_code=201, responses=problem_responses(NotAuthenticated))
async def create_post(data: PostCreate, db: StatementDb, claim: Claimed, response: Response) -> PostRead:
    """Create a post. The signed-in user becomes its author."""
    post = await write_post(db, data, claim)
    response.headers["Location"] = f"/posts/{post['id']}"
    return post


@router.get("/posts")
async def list_posts(params: ListQuery[PostListParams], db: ReadDb, cursors: CursorCodec) -> Page[PostRead]:
    """List the posts of all users."""
    return await PostReader(db).page(params, cursors)


@router.get("/posts/{post_id:id}", responses=problem_responses(PostNotFound))
async def get_post(post_id: Id, db: ReadDb) -> PostRead:
    """Return a post."""
    return await PostReader(db).get(post_id)


@router.patch("/posts/{post_id:id}", responses=problem_responses(NotAuthenticated, Forbidden, PostNotFound))
async def update_post(post_id: Id, patch: PostPatch, db: WriteDb, principal: SignedIn) -> PostRead:
    """Change a post. Only the author and administrators may do this."""
    return post_of_entity(await change_post(db, post_id, patch, principal))


@router.delete(
    "/posts/{post_id:id}", status_code=204, responses=problem_responses(NotAuthenticated, Forbidden, PostNotFound)
)
async def remove_post(post_id: Id, db: WriteDb, principal: SignedIn) -> None:
    """Delete a post. Only the author and administrators may do this."""
    await delete_post(db, post_id, principal)


@router.get("/users/{user_id:id}/posts", responses=problem_responses(UserNotFound))
async def list_posts_of_user(
    user_id: Id, params: ListQuery[PostsOfUserParams], db: ReadDb, cursors: CursorCodec
) -> Page[PostRead]:
    """List the posts of one user."""
    return await PostReader(db).page_of_author(user_id, params, cursors)
