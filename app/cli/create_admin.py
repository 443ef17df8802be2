"""`headroom create-admin`: create an administrator."""

import asyncio
import getpass
import sys
from time import monotonic

from pydantic import ValidationError

from app.database import Database, PoolOptions, make_engine
from app.database.schema_version import check_schema
from app.domains.users.schemas import SignUp
from app.domains.users.service import create_admin
from app.errors import HeadroomError
from app.settings import load_settings

APPLICATION_NAME = "headroom:create-admin"


def run_create_admin(*, email: str, name: str) -> None:
    """Create an administrator. Read the password from the terminal, or from standard input if that is not a terminal.

    Raise HeadroomError for invalid input, EmailTaken, SchemaMismatch, and the errors of the database.
    """
    settings = load_settings()
    url = settings.require_database_url()
    password = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    try:
        data = SignUp(email=email, name=name, password=password)
    except ValidationError as error:
        complaints = "; ".join(f"{complaint['loc'][0]}: {complaint['msg']}" for complaint in error.errors())
        raise HeadroomError(complaints) from None

    async def create() -> None:
        if url.get_backend_name() == "postgresql":
            deadline = monotonic() + settings.startup_timeout
            await check_schema(url, deadline=deadline, application_name=APPLICATION_NAME)
        engine = make_engine(url=url, application_name=APPLICATION_NAME, pool=PoolOptions(size=1, max_overflow=0))
        try:
            await create_admin(Database(engine), data)
        finally:
            await engine.dispose()

    asyncio.run(create())
    print(f"{data.email} is an administrator")
