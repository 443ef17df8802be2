from app.database import WriteSession
from app.domains.users.models import User
from app.domains.users.passwords import hash_password
from app.domains.users.repository import UserRepository
from app.domains.users.schemas import SignUp


async def sign_up(session: WriteSession, data: SignUp) -> User:
    """Raises EmailTaken."""
    # Before the session's first statement: no connection is held while the password is hashed.
    password_hash = await hash_password(data.password)
    user = User(email=data.email, name=data.name, password_hash=password_hash)
    await UserRepository(session).add(user)
    return user
