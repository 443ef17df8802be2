"""The domains of this service.

To add a domain, create its folder in `app/domains` and import its models and its router here.
"""

from app.domains.auth.models import SignInAttempts as SignInAttempts
from app.domains.auth.router import router as auth
from app.domains.posts.models import Post as Post
from app.domains.posts.router import router as posts
from app.domains.users.models import User as User
from app.domains.users.router import router as users

routers = (auth, users, posts)
