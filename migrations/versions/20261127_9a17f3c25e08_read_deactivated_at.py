"""Prove that the back-fill is complete. The code reads users.deactivated_at from here on: switch

Revises: 83e4b6170d5f

Locks: none that others wait for. Reads the whole table once.

A release that reads the new column must not start before this revision, and the contracting revision names it as the
oldest whose code may still run.
"""

from alembic import op

revision: str = "9a17f3c25e08"
down_revision: str | None = "83e4b6170d5f"
kind: str = "additive"


def upgrade() -> None:
    op.execute("ALTER TABLE users VALIDATE CONSTRAINT ck_users_deactivated_at")


def downgrade() -> None:
    # PostgreSQL has no statement that takes a validation back.
    op.drop_constraint(op.f("ck_users_deactivated_at"), "users", type_="check")
    op.create_check_constraint(
        op.f("ck_users_deactivated_at"), "users", "is_active = (deactivated_at IS NULL)", postgresql_not_valid=True
    )
