"""The domains of this service.

To add a domain, create its folder in `app/domains` and import its models and its router here. A domain whose
dependencies read objects from `app.state` also has a function that sets them, in `providers`.
"""

from collections.abc import Callable

from starlette.datastructures import State

from app.database import Database
from app.domains.auth.models import SignInAttempts as SignInAttempts
from app.domains.auth.router import router as auth
from app.domains.auth.state import provide_sign_in
from app.domains.posts.models import Post as Post
from app.domains.posts.router import router as posts
from app.domains.users.models import User as User
from app.domains.users.router import router as users
from app.settings import Settings

routers = (auth, users, posts)
providers: tuple[Callable[[State, Database, Settings], None], ...] = (provide_sign_in,)
