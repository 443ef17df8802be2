from sqlalchemy import bindparam, select

from app.database import ReadSession, WriteSession
from app.database.integrity import violations
from app.domains.users.errors import EmailTaken, UserNotFound
from app.domains.users.models import User
from app.domains.users.schemas import PublicUser

_BY_ID = select(User.id, User.name, User.created_at).where(User.id == bindparam("user_id"))


class UserReader:
    def __init__(self, session: ReadSession) -> None:
        self._session = session

    async def get(self, user_id: int) -> PublicUser:
        """Raises UserNotFound."""
        row = await self._session.first(_BY_ID, user_id=user_id)
        if row is None:
            raise UserNotFound(user_id)
        return PublicUser(id=row["id"], name=row["name"], created_at=row["created_at"])


class UserRepository:
    def __init__(self, session: WriteSession) -> None:
        self._session = session

    async def add(self, user: User) -> None:
        """Raises EmailTaken."""
        self._session.add(user)
        with violations({"uq_users_email": EmailTaken(user.email)}):
            await self._session.flush()
