"""Add users.deactivated_at, which replaces users.is_active: expand

Revises: b3d81f6ac945

Locks: `users`, for a few milliseconds. A nullable column without a default needs no rewrite.

The trigger keeps both columns equal, whichever one a release writes. So no release has to write both, and the change
can be rolled back at each step (docs/expand-and-contract.md).
"""

import sqlalchemy as sa
from alembic import op

revision: str = "2f5a9c7be310"
down_revision: str | None = "b3d81f6ac945"
kind: str = "additive"

# Fires only for statements that write one of the columns.
SYNCHRONISE = """
CREATE FUNCTION users_synchronise_deactivated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.deactivated_at IS NOT NULL THEN
            NEW.is_active := false;
        ELSIF NOT NEW.is_active THEN
            NEW.deactivated_at := now();
        END IF;
    ELSIF NEW.deactivated_at IS DISTINCT FROM OLD.deactivated_at THEN
        NEW.is_active := NEW.deactivated_at IS NULL;
    ELSIF NEW.is_active IS DISTINCT FROM OLD.is_active THEN
        NEW.deactivated_at := CASE WHEN NEW.is_active THEN NULL ELSE now() END;
    END IF;
    RETURN NEW;
END
$$
"""
TRIGGER = """
CREATE TRIGGER users_synchronise_deactivated_at BEFORE INSERT OR UPDATE OF is_active, deactivated_at ON users
FOR EACH ROW EXECUTE FUNCTION users_synchronise_deactivated_at()
"""


def upgrade() -> None:
    op.add_column("users", sa.Column("deactivated_at", sa.DateTime(timezone=True)))
    op.execute(SYNCHRONISE)
    op.execute(TRIGGER)


def downgrade() -> None:
    op.execute("DROP TRIGGER users_synchronise_deactivated_at ON users")
    op.execute("DROP FUNCTION users_synchronise_deactivated_at()")
    op.drop_column("users", "deactivated_at")
