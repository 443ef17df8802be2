"""Reads and writes users."""

from typing import NamedTuple

from sqlalchemy import bindparam, func, select, update

from app.database import KeyedSelect, ReadSession, WriteSession
from app.database.error_mapping import violations
from app.domains.users.errors import EmailTaken, UserGone, UserNotFound
from app.domains.users.models import User
from app.domains.users.schemas import OwnUser, PublicUser, UserListParams, own_user_of_row
from app.errors import Forbidden
from app.identity import Claim, Principal
from app.pagination.cursor import Cursors
from app.pagination.page import Page, read_page
from app.pagination.statements import ListStatements, contains

_PUBLIC = KeyedSelect(select(User.id, User.name, User.created_at), User.id)
_OWN_COLUMNS = select(
    User.id, User.email, User.name, User.deactivated_at, User.is_admin, User.created_at, User.updated_at
)
_ME = KeyedSelect(_OWN_COLUMNS.where(User.is_active), User.id)
_PRINCIPAL = KeyedSelect(select(User.id, User.is_admin).where(User.is_active), User.id)
# Always one row, with or without a user. The database folds the case: Python folds some letters differently.
_REQUESTED = select(func.lower(bindparam("email", type_=User.email.type)).label("folded_email")).subquery()
_CREDENTIALS = select(_REQUESTED.c.folded_email, User.id, User.password_hash, User.deactivated_at).outerjoin_from(
    _REQUESTED, User, func.lower(User.email) == _REQUESTED.c.folded_email
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
    """An e-mail address in the lower case of the database, with the account of that address, active or not.

    `id` is None if there is no account.
    """

    folded_email: str
    id: int | None
    password_hash: str | None
    is_active: bool


class UserReader:
    """Reads users without a transaction."""

    def __init__(self, session: ReadSession) -> None:
        self._session = session

    async def get(self, user_id: int) -> PublicUser:
        """Return what anyone may read of a user. Raise UserNotFound."""
        row = await self._session.one(_PUBLIC, user_id)
        if row is None:
            raise UserNotFound(user_id)
        return PublicUser(id=row["id"], name=row["name"], created_at=row["created_at"])

    async def get_me(self, claim: Claim) -> OwnUser:
        """Return the own record of a claim's user. Raise UserGone."""
        row = await self._session.one(_ME, claim.user_id)
        if row is None:
            raise UserGone
        return own_user_of_row(row)

    async def page(self, params: UserListParams, cursors: Cursors) -> Page[OwnUser]:
        """Return a page of users. Raise InvalidCursor."""
        return await read_page(self._session, _LIST, params, cursors=cursors, make=own_user_of_row)

    async def principal(self, claim: Claim) -> Principal:
        """Return the active user of a claim. Raise UserGone."""
        row = await self._session.one(_PRINCIPAL, claim.user_id)
        if row is None:
            raise UserGone
        return Principal(id=row["id"], is_admin=row["is_admin"])


class UserRepository:
    """Users as entities of a write session."""

    def __init__(self, session: WriteSession) -> None:
        self._session = session

    async def add(self, user: User) -> None:
        """Insert a user. Raise EmailTaken."""
        self._session.add(user)
        await self.flush()

    async def get(self, user_id: int) -> User:
        """Return a user, locked until the transaction ends. Raise UserNotFound."""
        user = await self._session.get(User, user_id, with_for_update=True)
        if user is None:
            raise UserNotFound(user_id)
        return user

    async def recheck(self, principal: Principal) -> None:
        """Raise UserGone or Forbidden if the principal was deleted, deactivated or demoted during the request."""
        current = await self._session.get(User, principal.id)
        if current is None or not current.is_active:
            raise UserGone
        if principal.is_admin and not current.is_admin:
            raise Forbidden("You are no longer an administrator.")

    async def flush(self) -> None:
        """Write the changes to the database. Raise EmailTaken."""
        with violations({"uq_users_email": EmailTaken()}):
            await self._session.flush()

    async def load_deactivation(self, user: User) -> None:
        """Load the time of a deactivation, which the database has set."""
        await self._session.refresh(user, ["deactivated_at"])

    async def delete(self, user: User) -> None:
        """Delete a user. The database deletes rows that belong to the user (ON DELETE CASCADE)."""
        await self._session.delete(user)

    async def credentials(self, email: str) -> Credentials:
        """Return the credentials for an e-mail address."""
        row = (await self._session.execute(_CREDENTIALS, {"email": email})).one()
        is_active = row.id is not None and row.deactivated_at is None
        return Credentials(row.folded_email, row.id, row.password_hash, is_active)

    async def replace_hash(self, user_id: int, *, old: str, new: str) -> None:
        """Replace a password hash, unless the password was changed in the meantime."""
        await self._session.execute(
            update(User).where(User.id == user_id, User.password_hash == old).values(password_hash=new)
        )
