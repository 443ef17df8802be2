"""Indexes for the orders of the lists, and for search

Revises: 7c2e91d05fa3
"""

import logging

import sqlalchemy as sa
from alembic import op
from sqlalchemy.exc import DBAPIError

from migrations.concurrently import create_index, drop_index

revision: str = "b3d81f6ac945"
down_revision: str | None = "7c2e91d05fa3"

logger = logging.getLogger("headroom.migrations")

INDEXES = {
    "ix_users_created_at_id": ("users", ["created_at", "id"]),
    "ix_users_name_id": ("users", ["name", "id"]),
    "ix_users_email_id": ("users", ["email", "id"]),
    "ix_posts_title_id": ("posts", ["title", "id"]),
}
# Not in the models: they exist only where the server has the extension, and `migrations/env.py` leaves them out of the
# search for drift.
SEARCH_INDEXES = {
    "ix_posts_title_content_trgm": ("posts", ["title", "content"]),
    "ix_users_name_email_trgm": ("users", ["name", "email"]),
}


def upgrade() -> None:
    for name, (table, columns) in INDEXES.items():
        create_index(name, table, columns)
    if _has_trigrams():
        for name, (table, columns) in SEARCH_INDEXES.items():
            create_index(
                name,
                table,
                columns,
                postgresql_using="gin",
                postgresql_ops=dict.fromkeys(columns, "gin_trgm_ops"),
            )


def downgrade() -> None:
    # The extension stays: it may have been there before, and somebody else may use it.
    for name, (table, _) in (INDEXES | SEARCH_INDEXES).items():
        drop_index(name, table)


def _has_trigrams() -> bool:
    """Whether the extension is there, after trying to bring it in. Says so where it is not."""
    if op.get_context().as_sql:  # a script cannot ask
        op.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
        return True
    installed, available = (
        op.get_bind()
        .execute(
            sa.text(
                "SELECT count(installed_version) > 0, count(*) > 0 FROM pg_available_extensions WHERE name = 'pg_trgm'"
            )
        )
        .one()
    )
    if installed:
        return True
    reason = "this server does not have it"
    if available:
        try:
            with op.get_context().autocommit_block():
                op.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
        except DBAPIError as error:
            # Whether a role may is more than a privilege to look up: a server can restrict each extension.
            if getattr(error.orig, "sqlstate", None) != "42501":
                raise
            reason = "this role may not create it"
        else:
            return True
    logger.warning("search reads whole tables: the extension pg_trgm is missing, and %s", reason)
    return False
