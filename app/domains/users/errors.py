from app.errors import Conflict, NotFound


class EmailTaken(Conflict):
    slug = "email-taken"
    title = "E-mail address already registered"

    def __init__(self) -> None:
        super().__init__("This e-mail address is already registered.")


class UserNotFound(NotFound):
    def __init__(self, user_id: int) -> None:
        super().__init__(f"There is no user {user_id}.")
