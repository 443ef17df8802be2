"""The sign-in route."""

import logging
from functools import cache
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.security import OAuth2PasswordRequestForm

from app.domains.auth.errors import InvalidCredentials
from app.domains.auth.schemas import Token
from app.domains.auth.service import SignIn
from app.domains.users.schemas import normalised_email
from app.errors import InvalidInput, ServerBusy, TooManyAttempts
from app.web.deps import lane
from app.web.problems import DATABASE_ERRORS, problem_responses

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/auth", tags=["auth"])

UNKNOWN_ADDRESS = "unknown"


@router.post(
    "/token",
    responses=problem_responses(InvalidCredentials, TooManyAttempts, ServerBusy, *DATABASE_ERRORS),
    dependencies=[lane("critical")],
)
async def create_token(
    form: Annotated[OAuth2PasswordRequestForm, Depends()], request: Request, response: Response
) -> Token:
    """Sign in and get an access token.

    `username` is the e-mail address. Repeated failures for an account or from a client address are answered with 429.
    """
    if "\0" in form.username:  # PostgreSQL cannot compare text with a NUL character
        raise InvalidInput("username: must not contain a NUL character")
    sign_in: SignIn = request.app.state.sign_in
    if request.client is None:
        warn_of_unknown_addresses()
    address = request.client.host if request.client else UNKNOWN_ADDRESS
    email = normalised_email(form.username)
    token = await sign_in(email=email, password=form.password, address=address)
    response.headers["Cache-Control"] = "no-store"
    return Token(access_token=token, expires_in=sign_in.token_seconds)


@cache  # one warning per worker
def warn_of_unknown_addresses() -> None:
    """Log that clients have no address: they connect to a Unix socket, and no trusted proxy names one."""
    logger.warning("client addresses are unknown: all clients share one sign-in limit; check FORWARDED_ALLOW_IPS")
