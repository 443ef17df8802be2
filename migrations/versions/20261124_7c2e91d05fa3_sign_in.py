"""Sign-in and administrators

Revises: 1b6f0a4d2c11
"""

import sqlalchemy as sa
from alembic import op

revision: str = "7c2e91d05fa3"
down_revision: str | None = "1b6f0a4d2c11"


def upgrade() -> None:
    op.add_column("users", sa.Column("is_active", sa.Boolean(), server_default=sa.true(), nullable=False))
    op.add_column("users", sa.Column("is_admin", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_table(
        "sign_in_attempts",
        sa.Column("subject", sa.String(80), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("subject", name="pk_sign_in_attempts"),
    )
    op.create_index("ix_sign_in_attempts_expires_at", "sign_in_attempts", ["expires_at"])


def downgrade() -> None:
    op.drop_table("sign_in_attempts")
    op.drop_column("users", "is_admin")
    op.drop_column("users", "is_active")
