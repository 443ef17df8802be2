import logging
from functools import cache
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.security import OAuth2PasswordRequestForm

from app.domains.auth.errors import InvalidCredentials
from app.domains.auth.schemas import Token
from app.domains.auth.service import SignIn
from app.errors import InvalidInput, ServerBusy, TooManyAttempts
from app.web.problems import DATABASE_ERRORS, problem_responses

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/auth", tags=["auth"])


@router.post("/token", responses=problem_responses(InvalidCredentials, TooManyAttempts, ServerBusy, *DATABASE_ERRORS))
async def create_token(
    form: Annotated[OAuth2PasswordRequestForm, Depends()], request: Request, response: Response
) -> Token:
    """Sign in: `username` is the e-mail address."""
    if "\0" in form.username:  # PostgreSQL could not even look for it
        raise InvalidInput("username: must not contain a NUL character")
    sign_in: SignIn = request.app.state.sign_in
    address = request.client.host if request.client else unknown_address()
    token = await sign_in(email=form.username, password=form.password, address=address)
    response.headers["Cache-Control"] = "no-store"
    return Token(access_token=token, expires_in=sign_in.seconds)


@cache  # so that it is said once by each worker
def unknown_address() -> str:
    """Of a client on a Unix socket, for whom no proxy that is believed has named one."""
    logger.warning("clients have no address, so failed sign-ins of all of them count together: see FORWARDED_ALLOW_IPS")
    return "unknown"
