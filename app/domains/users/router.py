"""Routes of users."""

from fastapi import APIRouter, Response

from app.domains.users.errors import EmailTaken, UserNotFound
from app.domains.users.repository import UserReader
from app.domains.users.schemas import OwnUser, PublicUser, SignUp, UserListParams, UserPatch, own_user_of_entity
from app.domains.users.service import change_user, delete_user, sign_up
from app.errors import Forbidden, NotAuthenticated, ServerBusy
from app.pagination.page import Page
from app.web.auth import Claimed, SignedIn
from app.web.deps import PrimaryReadDb, ReadDb, WriteDb
from app.web.pagination import CursorCodec, ListQuery
from app.web.path_params import Id
from app.web.problems import DATABASE_ERRORS, problem_responses

router = APIRouter(prefix="/users", tags=["users"])


@router.post("", status_code=201, responses=problem_responses(EmailTaken, ServerBusy, *DATABASE_ERRORS))
async def create_user(data: SignUp, db: WriteDb, response: Response) -> OwnUser:
    """Create an account."""
    user = await sign_up(db, data)
    response.headers["Location"] = f"/users/{user.id}"
    return own_user_of_entity(user)


@router.get("", responses=problem_responses(NotAuthenticated, Forbidden))
async def list_users(
    params: ListQuery[UserListParams], db: ReadDb, cursors: CursorCodec, principal: SignedIn
) -> Page[OwnUser]:
    """List users. Only administrators may do this."""
    principal.require_admin()
    return await UserReader(db).page(params, cursors)


@router.get("/me", responses=problem_responses(NotAuthenticated))
async def get_me(db: PrimaryReadDb, claim: Claimed) -> OwnUser:
    """Return the own account."""
    return await UserReader(db).get_me(claim)


@router.get("/{user_id:id}", responses=problem_responses(UserNotFound))
async def get_user(user_id: Id, db: ReadDb) -> PublicUser:
    """Return the public part of an account."""
    return await UserReader(db).get(user_id)


@router.patch(
    "/{user_id:id}",
    responses=problem_responses(NotAuthenticated, Forbidden, UserNotFound, EmailTaken, ServerBusy, *DATABASE_ERRORS),
)
async def update_user(user_id: Id, patch: UserPatch, db: WriteDb, principal: SignedIn) -> OwnUser:
    """Change an account. Only the user and administrators may do this.

    Only administrators may change `is_active` and `is_admin`.
    """
    return own_user_of_entity(await change_user(db, user_id, patch, principal))


@router.delete("/{user_id:id}", status_code=204, responses=problem_responses(NotAuthenticated, Forbidden, UserNotFound))
async def remove_user(user_id: Id, db: WriteDb, principal: SignedIn) -> None:
    """Delete an account and what belongs to it. Only the user and administrators may do this."""
    await delete_user(db, user_id, principal)
