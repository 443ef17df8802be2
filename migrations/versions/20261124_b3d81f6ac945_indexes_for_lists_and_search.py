"""Indexes for sorted lists and for search

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
# Not in the models: they need the extension pg_trgm. `migrations/env.py` excludes them from the drift check.
SEARCH_INDEXES = {
    "ix_posts_title_content_trgm": ("posts", ["title", "content"]),
    "ix_users_name_email_trgm": ("users", ["name", "email"]),
}


def upgrade() -> None:
    for name, (table, columns) in INDEXES.items():
        create_index(name, table, columns)
    if _ensure_trgm_extension():
        for name, (table, columns) in SEARCH_INDEXES.items():
            create_index(
                name,
                table,
                columns,
                postgresql_using="gin",
                postgresql_ops=dict.fromkeys(columns, "gin_trgm_ops"),
            )


def downgrade() -> None:
    # The extension stays: it may be older than this revision, and other schemas may use it.
    for name, (table, _) in (INDEXES | SEARCH_INDEXES).items():
        drop_index(name, table)


def _ensure_trgm_extension() -> bool:
    """Create the extension pg_trgm if possible. Return True if it exists; log a warning otherwise."""
    if op.get_context().as_sql:  # a script cannot query the server
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
    reason = "this server does not provide it"
    if available:
        try:
            with op.get_context().autocommit_block():
                op.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
        except DBAPIError as error:
            # Tried, not looked up: a server can restrict each extension, beyond privileges.
            if getattr(error.orig, "sqlstate", None) != "42501":
                raise
            reason = "this role is not allowed to create it"
        else:
            return True
    logger.warning("search reads whole tables: the extension pg_trgm is missing and %s", reason)
    return False
