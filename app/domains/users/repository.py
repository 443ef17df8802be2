from typing import NamedTuple

from sqlalchemy import bindparam, func, select, update

from app.database import ReadSession, WriteSession
from app.database.error_mapping import violations
from app.domains.users.errors import EmailTaken, UserGone, UserNotFound
from app.domains.users.models import User
from app.domains.users.schemas import OwnUser, PublicUser, UserListParams, own_user_of_row
from app.errors import Forbidden
from app.identity import Claim, Principal
from app.pagination.cursor import Cursors
from app.pagination.page import Page, read_page
from app.pagination.statements import ListStatements, contains

_BY_ID = bindparam("user_id", type_=User.id.type)
_PUBLIC = select(User.id, User.name, User.created_at).where(User.id == _BY_ID)
_OWN_COLUMNS = select(User.id, User.email, User.name, User.is_active, User.is_admin, User.created_at, User.updated_at)
_ME = _OWN_COLUMNS.where(User.id == _BY_ID, User.is_active)
_PRINCIPAL = select(User.id, User.is_admin).where(User.id == _BY_ID, User.is_active)
# One row in any case. What counts as the same address is the database's decision: Python folds some letters otherwise.
_ASKED = select(func.lower(bindparam("email", type_=User.email.type)).label("folded")).subquery()
_CREDENTIALS = select(_ASKED.c.folded, User.id, User.password_hash, User.is_active).outerjoin_from(
    _ASKED, User, func.lower(User.email) == _ASKED.c.folded
)
_LIST = ListStatements(
    "users",
    _OWN_COLUMNS,
    key=User.id,
    sorts={"created_at": User.created_at, "name": User.name, "email": User.email, "id": User.id},
    filters={
        "q": contains("q", User.name, User.email),
        "is_active": User.is_active == bindparam("is_active", type_=User.is_active.type),
    },
)


class Credentials(NamedTuple):
    """What is known of an address: the form in which it counts and, if it is somebody's, whose."""

    folded: str
    id: int | None
    password_hash: str | None
    is_active: bool | None


class UserReader:
    def __init__(self, session: ReadSession) -> None:
        self._session = session

    async def get(self, user_id: int) -> PublicUser:
        """Raises UserNotFound."""
        row = await self._session.first(_PUBLIC, user_id=user_id)
        if row is None:
            raise UserNotFound(user_id)
        return PublicUser(id=row["id"], name=row["name"], created_at=row["created_at"])

    async def get_me(self, claim: Claim) -> OwnUser:
        """Raises UserGone."""
        row = await self._session.first(_ME, user_id=claim.user_id)
        if row is None:
            raise UserGone
        return own_user_of_row(row)

    async def page(self, params: UserListParams, cursors: Cursors) -> Page[OwnUser]:
        """Raises InvalidCursor."""
        return await read_page(self._session, _LIST, params, cursors=cursors, make=own_user_of_row)

    async def principal(self, claim: Claim) -> Principal:
        """Raises UserGone."""
        row = await self._session.first(_PRINCIPAL, user_id=claim.user_id)
        if row is None:
            raise UserGone
        return Principal(id=row["id"], is_admin=row["is_admin"])


class UserRepository:
    def __init__(self, session: WriteSession) -> None:
        self._session = session

    async def add(self, user: User) -> None:
        """Raises EmailTaken."""
        self._session.add(user)
        await self.flush()

    async def get(self, user_id: int) -> User:
        """The user, locked until the transaction ends. Raises UserNotFound."""
        user = await self._session.get(User, user_id, with_for_update=True)
        if user is None:
            raise UserNotFound(user_id)
        return user

    async def require_still(self, principal: Principal) -> None:
        """Raises UserGone, Forbidden if the principal has lost what it was when the request came in."""
        now = await self._session.get(User, principal.id)
        if now is None or not now.is_active:
            raise UserGone
        if principal.is_admin and not now.is_admin:
            raise Forbidden("You are not an administrator any more.")

    async def flush(self) -> None:
        """Write what has changed. Raises EmailTaken."""
        with violations({"uq_users_email": EmailTaken()}):
            await self._session.flush()

    async def delete(self, user: User) -> None:
        """Their posts go with them: the database's ON DELETE CASCADE."""
        await self._session.delete(user)

    async def credentials(self, email: str) -> Credentials:
        row = (await self._session.execute(_CREDENTIALS, {"email": email})).one()
        return Credentials(row.folded, row.id, row.password_hash, row.is_active)

    async def replace_hash(self, user_id: int, *, old: str, new: str) -> None:
        """Unless the password was changed meanwhile."""
        await self._session.execute(
            update(User).where(User.id == user_id, User.password_hash == old).values(password_hash=new)
        )
