from fastapi import APIRouter, Response

from app.domains.users.errors import EmailTaken, UserNotFound
from app.domains.users.repository import UserReader
from app.domains.users.schemas import OwnUser, PublicUser, SignUp
from app.domains.users.service import sign_up
from app.web.deps import ReadDb, WriteDb
from app.web.problems import problem_responses
from app.web.types import Id

router = APIRouter(prefix="/users", tags=["users"])


@router.post("", status_code=201, responses=problem_responses(EmailTaken))
async def create_user(data: SignUp, db: WriteDb, response: Response) -> OwnUser:
    """Sign up."""
    user = await sign_up(db, data)
    response.headers["Location"] = f"/users/{user.id}"
    return OwnUser.model_validate(user)


@router.get("/{user_id}", responses=problem_responses(UserNotFound))
async def get_user(user_id: Id, db: ReadDb) -> PublicUser:
    return await UserReader(db).get(user_id)
