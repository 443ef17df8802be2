"""A small domain for the tests of the platform, which must not depend on those of the service: a table and its routes.

The tests add `router` to their application, or run `create()` with Gunicorn. The routes need no sign-in. The prefix
`test` keeps the names free for domains of the service.
"""

from fastapi import APIRouter, FastAPI, Response
from pydantic import BaseModel
from sqlalchemy import BigInteger, Identity, Index, Integer, MetaData, String, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.database import Base, KeyedSelect, TimestampMixin, WriteSession
from app.database.base import NAMING_CONVENTION
from app.database.error_mapping import violations
from app.errors import Conflict, NotFound
from app.main import create_app
from app.web.deps import ReadDb, WriteDb
from app.web.path_params import Id

METADATA = MetaData(naming_convention=NAMING_CONVENTION)


class _Base(DeclarativeBase):
    """Not the base of the service: the migrations must match its metadata."""

    metadata = METADATA
    __mapper_args__ = Base.__mapper_args__


class Contact(TimestampMixin, _Base):
    """A contact with a unique, case-insensitive e-mail address."""

    __tablename__ = "test_contacts"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True)
    email: Mapped[str] = mapped_column(String(320))
    name: Mapped[str] = mapped_column(String(100))

    __table_args__ = (Index("uq_test_contacts_email", func.lower(email), unique=True),)


class EmailTaken(Conflict):
    """Another contact has the e-mail address."""

    slug = "email-taken"
    title = "E-mail address already taken"

    def __init__(self) -> None:
        super().__init__("Another contact has this e-mail address.")


class ContactNotFound(NotFound):
    """No contact has the requested id."""

    def __init__(self, contact_id: int) -> None:
        super().__init__(f"There is no contact {contact_id}.")


def new_contact(email: str = "ann@example.com") -> Contact:
    """Return a contact that is not stored yet."""
    return Contact(email=email, name="Ann")


class ContactFields(BaseModel):
    """A contact in a request and in a response."""

    email: str
    name: str


_BY_ID = KeyedSelect(select(Contact.id, Contact.email, Contact.name), Contact.id)

router = APIRouter(prefix="/test-contacts")


async def _stored(db: WriteSession, contact_id: int) -> Contact:
    contact = await db.get(Contact, contact_id)
    if contact is None:
        raise ContactNotFound(contact_id)
    return contact


@router.post("", status_code=201)
async def create_contact(data: ContactFields, db: WriteDb, response: Response) -> int:
    """Add a contact, and return its id."""
    contact = Contact(**data.model_dump())
    db.add(contact)
    with violations({"uq_test_contacts_email": EmailTaken()}, METADATA):
        await db.flush()
    response.headers["Location"] = f"/test-contacts/{contact.id}"
    return contact.id


@router.get("/{contact_id:id}")
async def get_contact(contact_id: Id, db: ReadDb) -> ContactFields:
    """Return a contact."""
    row = await db.one(_BY_ID, contact_id)
    if row is None:
        raise ContactNotFound(contact_id)
    return ContactFields(email=row["email"], name=row["name"])


@router.put("/{contact_id:id}", status_code=204)
async def replace_contact(contact_id: Id, data: ContactFields, db: WriteDb) -> None:
    """Change a contact."""
    contact = await _stored(db, contact_id)
    contact.email, contact.name = data.email, data.name


@router.delete("/{contact_id:id}", status_code=204)
async def remove_contact(contact_id: Id, db: WriteDb) -> None:
    """Delete a contact."""
    await db.delete(await _stored(db, contact_id))


def create() -> FastAPI:
    """Return the application with the routes added."""
    app = create_app()
    app.include_router(router)
    return app
