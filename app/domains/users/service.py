"""Creates, changes and deletes users."""

from app.database import Database, WriteSession
from app.domains.users.models import User
from app.domains.users.passwords import NEW_PASSWORD_QUEUE, hash_password
from app.domains.users.repository import UserRepository
from app.domains.users.schemas import SignUp, UserPatch
from app.errors import Forbidden
from app.identity import Principal


async def sign_up(session: WriteSession, data: SignUp, *, is_admin: bool = False) -> User:
    """Create a user. Raise EmailTaken, ServerBusy."""
    # Before the session's first statement, so no connection is held while the password is hashed.
    with NEW_PASSWORD_QUEUE.slot():
        password_hash = await hash_password(data.password)
    user = User(email=data.email, name=data.name, password_hash=password_hash, is_admin=is_admin)
    await UserRepository(session).add(user)
    return user


async def create_admin(database: Database, data: SignUp) -> None:
    """Create an administrator in a transaction of its own. Raise EmailTaken."""
    async with database.write() as session:
        await sign_up(session, data, is_admin=True)


async def change_user(session: WriteSession, user_id: int, patch: UserPatch, principal: Principal) -> User:
    """Change a user. Raise Forbidden, NotAuthenticated, UserNotFound, EmailTaken, ServerBusy."""
    principal.require_self_or_admin(user_id)
    changes = patch.changes()
    if not principal.is_admin and changes.keys() & {"is_active", "is_admin"}:
        raise Forbidden("Only an administrator may change is_active and is_admin.")
    if "password" in changes:
        with NEW_PASSWORD_QUEUE.slot():
            changes["password_hash"] = await hash_password(changes.pop("password"))
    users = UserRepository(session)
    user = await users.get(user_id)
    if "password_hash" in changes:  # the principal may have changed while the password was hashed
        await users.recheck(principal)
    for field, value in changes.items():
        setattr(user, field, value)
    await users.flush()
    if changes.get("is_active") is False:
        await users.load_deactivation(user)
    return user


async def delete_user(session: WriteSession, user_id: int, principal: Principal) -> None:
    """Delete a user. Raise Forbidden, UserNotFound."""
    principal.require_self_or_admin(user_id)
    users = UserRepository(session)
    await users.delete(await users.get(user_id))
