"""What the routes and dependencies of sign-in read from `app.state`."""

from starlette.datastructures import State

from app.database import Database
from app.domains.auth.service import Authenticator, SignIn, SignInLimits
from app.domains.auth.tokens import Tokens
from app.settings import Settings


def provide_sign_in(state: State, database: Database, settings: Settings) -> None:
    """Set `sign_in` and `authenticator`. Raise ConfigurationError without a SECRET_KEY."""
    tokens = Tokens(settings.require_secret_key(), settings.access_token_seconds, settings.secret_key_fallbacks)
    limits = SignInLimits(
        per_account=settings.sign_in_account_limit,
        per_address=settings.sign_in_address_limit,
        window_seconds=settings.sign_in_window,
    )
    state.sign_in = SignIn(database, tokens, limits)
    state.authenticator = Authenticator(database, tokens)
