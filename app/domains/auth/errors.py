"""Errors of the auth domain."""

from app.errors import NotAuthenticated


class InvalidCredentials(NotAuthenticated):
    """A sign-in failed. Unknown address, wrong password and inactive user are not distinguished."""

    slug = "invalid-credentials"
    title = "Invalid credentials"

    def __init__(self) -> None:
        super().__init__("The e-mail address or the password is wrong.")
