"""Errors of the users domain."""

from app.errors import Conflict, NotAuthenticated, NotFound


class EmailTaken(Conflict):
    """Another user has the e-mail address."""

    slug = "email-taken"
    title = "E-mail address already registered"

    def __init__(self) -> None:
        super().__init__("This e-mail address is already registered.")


class UserGone(NotAuthenticated):
    """The user of a valid access token was deleted or deactivated."""

    def __init__(self) -> None:
        super().__init__("The user of this access token no longer exists or is inactive.")


class UserNotFound(NotFound):
    """No user has the requested id."""

    def __init__(self, user_id: int) -> None:
        super().__init__(f"There is no user {user_id}.")
