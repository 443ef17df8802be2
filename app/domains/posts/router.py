from fastapi import APIRouter

from app.domains.posts.errors import PostNotFound
from app.domains.posts.repository import PostReader
from app.domains.posts.schemas import PostRead
from app.domains.users.errors import UserNotFound
from app.web.deps import ReadDb
from app.web.pagination import OffsetQuery, Page
from app.web.problems import problem_responses
from app.web.types import Id

router = APIRouter(tags=["posts"])


@router.get("/posts")
async def list_posts(params: OffsetQuery, db: ReadDb) -> Page[PostRead]:
    """Newest first."""
    return await PostReader(db).page(params)


@router.get("/posts/{post_id}", responses=problem_responses(PostNotFound))
async def get_post(post_id: Id, db: ReadDb) -> PostRead:
    return await PostReader(db).get(post_id)


@router.get("/users/{user_id}/posts", responses=problem_responses(UserNotFound))
async def list_posts_of_user(user_id: Id, params: OffsetQuery, db: ReadDb) -> Page[PostRead]:
    """Newest first."""
    return await PostReader(db).page_of_author(user_id, params)
