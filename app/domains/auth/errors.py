from app.errors import NotAuthenticated


class InvalidCredentials(NotAuthenticated):
    """The same for an unknown address, a wrong password and a user who is not active."""

    slug = "invalid-credentials"
    title = "Invalid credentials"

    def __init__(self) -> None:
        super().__init__("The e-mail address or the password is wrong.")
