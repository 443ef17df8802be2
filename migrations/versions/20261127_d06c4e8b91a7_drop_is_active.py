"""Drop users.is_active: contract

Revises: 9a17f3c25e08

Locks: `users`, for a few milliseconds. Rows lose the space of the column when they are next written. The downgrade
locks the table while it reads all rows.
"""

import sqlalchemy as sa
from alembic import op

revision: str = "d06c4e8b91a7"
down_revision: str | None = "9a17f3c25e08"
kind: str = "contracting"
# The code of 9a17f3c25e08 uses deactivated_at only.
oldest_that_may_run: str = "9a17f3c25e08"

squawk_exceptions = {
    "ban-drop-trigger": "the release before writes deactivated_at only",
    "ban-drop-function": "only the trigger calls it",
    "ban-drop-constraint": "it compares the column that goes",
}

# As in 2f5a9c7be310.
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
    # The table's lock comes first: a statement that runs the trigger cannot be between the two.
    op.execute("DROP TRIGGER users_synchronise_deactivated_at ON users")
    op.execute("DROP FUNCTION users_synchronise_deactivated_at()")
    op.drop_constraint(op.f("ck_users_deactivated_at"), "users", type_="check")
    op.drop_column("users", "is_active")


def downgrade() -> None:
    op.add_column("users", sa.Column("is_active", sa.Boolean(), server_default=sa.true(), nullable=False))
    op.execute("UPDATE users SET is_active = false WHERE deactivated_at IS NOT NULL")
    op.create_check_constraint(op.f("ck_users_deactivated_at"), "users", "is_active = (deactivated_at IS NULL)")
    op.execute(SYNCHRONISE)
    op.execute(TRIGGER)
