from fastapi import APIRouter, Response

from app.domains.users.errors import EmailTaken, UserNotFound
from app.domains.users.repository import UserReader
from app.domains.users.schemas import OwnUser, PublicUser, SignUp, UserListParams, UserPatch, own_user_of_entity
from app.domains.users.service import change_user, delete_user, sign_up
from app.errors import Forbidden, NotAuthenticated, ServerBusy
from app.pagination.page import Page
from app.web.auth import Claimed, SignedIn
from app.web.deps import ReadDb, WriteDb
from app.web.pagination import CursorCodec, ListQuery
from app.web.path_params import Id
from app.web.problems import DATABASE_ERRORS, problem_responses

router = APIRouter(prefix="/users", tags=["users"])


@router.post("", status_code=201, responses=problem_responses(EmailTaken, ServerBusy, *DATABASE_ERRORS))
async def create_user(data: SignUp, db: WriteDb, response: Response) -> OwnUser:
    """Sign up."""
    user = await sign_up(db, data)
    response.headers["Location"] = f"/users/{user.id}"
    return own_user_of_entity(user)


@router.get("", responses=problem_responses(NotAuthenticated, Forbidden))
async def list_users(
    params: ListQuery[UserListParams], db: ReadDb, cursors: CursorCodec, principal: SignedIn
) -> Page[OwnUser]:
    """For administrators."""
    principal.require_admin()
    return await UserReader(db).page(params, cursors)


@router.get("/me", responses=problem_responses(NotAuthenticated))
async def get_me(db: ReadDb, claim: Claimed) -> OwnUser:
    return await UserReader(db).get_me(claim)


@router.get("/{user_id:id}", responses=problem_responses(UserNotFound))
async def get_user(user_id: Id, db: ReadDb) -> PublicUser:
    return await UserReader(db).get(user_id)


@router.patch(
    "/{user_id:id}",
    responses=problem_responses(NotAuthenticated, Forbidden, UserNotFound, EmailTaken, ServerBusy, *DATABASE_ERRORS),
)
async def update_user(user_id: Id, patch: UserPatch, db: WriteDb, principal: SignedIn) -> OwnUser:
    """For the user, and administrators."""
    return own_user_of_entity(await change_user(db, user_id, patch, principal))


@router.delete("/{user_id:id}", status_code=204, responses=problem_responses(NotAuthenticated, Forbidden, UserNotFound))
async def remove_user(user_id: Id, db: WriteDb, principal: SignedIn) -> None:
    """For the user, and administrators. The user's posts go too."""
    await delete_user(db, user_id, principal)
