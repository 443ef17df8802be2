"""Errors of the posts domain."""

from app.errors import NotFound


class PostNotFound(NotFound):
    """No post has the requested id."""

    def __init__(self, post_id: int) -> None:
        super().__init__(f"There is no post {post_id}.")
