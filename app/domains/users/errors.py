from app.errors import Conflict, NotAuthenticated, NotFound


class EmailTaken(Conflict):
    slug = "email-taken"
    title = "E-mail address already registered"

    def __init__(self) -> None:
        super().__init__("This e-mail address is already registered.")


class UserGone(NotAuthenticated):
    def __init__(self) -> None:
        super().__init__("The user of this token does not exist any more, or is not active.")


class UserNotFound(NotFound):
    def __init__(self, user_id: int) -> None:
        super().__init__(f"There is no user {user_id}.")
