"""Creates, changes and deletes posts."""

from app.database import StatementSession, WriteSession
from app.domains.posts.models import Post
from app.domains.posts.repository import PostRepository, PostWriter
from app.domains.posts.schemas import PostCreate, PostPatch, PostRead, post_of_row
from app.errors import Forbidden
from app.identity import Claim, Principal


async def write_post(session: StatementSession, data: PostCreate, claim: Claim) -> PostRead:
    """Create a post and return it as it is stored. Raise UserGone."""
    return post_of_row(await PostWriter(session).add(claim, data))


async def change_post(session: WriteSession, post_id: int, patch: PostPatch, principal: Principal) -> Post:
    """Change a post. Raise PostNotFound, Forbidden."""
    posts = PostRepository(session)
    post = await posts.get(post_id)
    _require_author_or_admin(post, principal)
    for field, value in patch.changes().items():
        setattr(post, field, value)
    await posts.flush()
    return post


async def delete_post(session: WriteSession, post_id: int, principal: Principal) -> None:
    """Delete a post. Raise PostNotFound, Forbidden."""
    posts = PostRepository(session)
    post = await posts.get(post_id)
    _require_author_or_admin(post, principal)
    await posts.delete(post)


def _require_author_or_admin(post: Post, principal: Principal) -> None:
    if post.author_id != principal.id and not principal.is_admin:
        raise Forbidden("Only the author or an administrator may do this.")
