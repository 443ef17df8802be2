"""Fill users.deactivated_at for accounts that were deactivated before: back-fill

Revises: 2f5a9c7be310

Locks: the rows of one batch at a time, for less than a second.

For a large table, run `headroom backfill users-deactivated-at` with this release before its migration. The
migration then finds nothing left to do.
"""

from migrations.backfill import Backfill, run_in_revision

revision: str = "5c80d1e6f294"
down_revision: str | None = "2f5a9c7be310"
kind: str = "additive"

backfill = Backfill(
    name="users-deactivated-at",
    table="users",
    # The time of the deactivation was not stored. The last change of the row is the best estimate.
    set="deactivated_at = updated_at",
    where="NOT is_active AND deactivated_at IS NULL",
)


def upgrade() -> None:
    run_in_revision(backfill)


def downgrade() -> None:
    pass  # the code before ignores the column
