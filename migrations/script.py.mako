"""${message}

Revises: ${down_revision | comma,n}

Locks: none that lasts (say which tables are locked, how strongly, and how long with the rows of production).

Before you commit:
- A change that the code of the release before does not survive is `contracting`: it belongs into a later release.
- A new NOT NULL column has a server default. An index on a table in use is built by `migrations.concurrently`.
- A constraint on a table in use is added with `postgresql_not_valid=True` and validated in a revision of its own.
- `downgrade()` reverts `upgrade()`: run `make migrate`, `make downgrade`, `make migrate`, then `make check-migrations`.
"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision: str = ${repr(up_revision)}
down_revision: str | None = ${repr(down_revision)}
kind: str = "additive"  # or "contracting"


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
