"""Check that users.is_active and users.deactivated_at are equal, for new rows

Revises: 5c80d1e6f294

Locks: `users`, for a few milliseconds: existing rows are not read. It must follow the back-fill. A row that was not
filled would violate the constraint at its next update.
"""

from alembic import op

revision: str = "83e4b6170d5f"
down_revision: str | None = "5c80d1e6f294"
kind: str = "additive"
additive_because = "the trigger keeps both columns equal for every release"


def upgrade() -> None:
    op.create_check_constraint(
        op.f("ck_users_deactivated_at"), "users", "is_active = (deactivated_at IS NULL)", postgresql_not_valid=True
    )


def downgrade() -> None:
    op.drop_constraint(op.f("ck_users_deactivated_at"), "users", type_="check")
