"""Sign-in, administrators, search and the orders of the lists

Revises: 1b6f0a4d2c11
"""

import logging

import sqlalchemy as sa
from alembic import op

revision: str = "7c2e91d05fa3"
down_revision: str | None = "1b6f0a4d2c11"

logger = logging.getLogger("headroom.migrations")

# Not in the models: they exist only where the server has the extension, and `migrations/env.py` leaves them out of the
# search for drift.
SEARCH_INDEXES = {
    "ix_posts_title_content_trgm": ("posts", ["title", "content"]),
    "ix_users_name_email_trgm": ("users", ["name", "email"]),
}


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

    # Concurrently: a table that is in use stays in use.
    with op.get_context().autocommit_block():
        for name, table, columns in (
            ("ix_users_created_at_id", "users", ["created_at", "id"]),
            ("ix_users_name_id", "users", ["name", "id"]),
            ("ix_users_email_id", "users", ["email", "id"]),
            ("ix_posts_title_id", "posts", ["title", "id"]),
        ):
            op.create_index(name, table, columns, postgresql_concurrently=True, if_not_exists=True)
        if _has_trigrams():
            for name, (table, columns) in SEARCH_INDEXES.items():
                op.create_index(
                    name,
                    table,
                    columns,
                    postgresql_concurrently=True,
                    postgresql_using="gin",
                    postgresql_ops=dict.fromkeys(columns, "gin_trgm_ops"),
                    if_not_exists=True,
                )


def downgrade() -> None:
    # The extension stays: it may have been there before, and somebody else may use it.
    for name, (table, _) in SEARCH_INDEXES.items():
        op.drop_index(name, table, if_exists=True)
    op.drop_index("ix_posts_title_id", "posts")
    op.drop_index("ix_users_email_id", "users")
    op.drop_index("ix_users_name_id", "users")
    op.drop_index("ix_users_created_at_id", "users")
    op.drop_table("sign_in_attempts")
    op.drop_column("users", "is_admin")
    op.drop_column("users", "is_active")


def _has_trigrams() -> bool:
    """Whether the extension is there, after trying to bring it in. Says so where it is not."""
    if op.get_context().as_sql:  # a script cannot ask
        op.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
        return True
    connection = op.get_bind()
    installed, available = connection.execute(
        sa.text("SELECT count(installed_version) > 0, count(*) > 0 FROM pg_available_extensions WHERE name = 'pg_trgm'")
    ).one()
    if installed:
        return True
    may_create = connection.scalar(sa.text("SELECT has_database_privilege(current_database(), 'CREATE')"))
    if available and may_create:
        op.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
        return True
    reason = "this role may not create it" if available else "this server does not have it"
    logger.warning("search reads whole tables: the extension pg_trgm is missing, and %s", reason)
    return False
