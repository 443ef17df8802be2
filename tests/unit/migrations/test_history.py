"""The checksum of a revision."""

import pytest

from migrations.history import checksum

SOURCE = '''"""Add a column."""

import sqlalchemy as sa
from alembic import op

revision = "a"


def upgrade() -> None:
    op.add_column("users", sa.Column("nickname", sa.Text()))
'''
SAME = {
    "docstring": SOURCE.replace("Add a column.", "Add the nickname."),
    "docstring of the function": SOURCE.replace("    op.", '    """Add it."""\n    op.'),
    "comment": SOURCE.replace("def upgrade", "# locks the table\ndef upgrade"),
    "layout": SOURCE.replace('op.add_column("users", ', 'op.add_column(\n        "users",\n        ').replace(
        "()))", "()),\n    )"
    ),
    "line ends": SOURCE.replace("\n", "\r\n"),
}
OTHER = {
    "type": SOURCE.replace("sa.Text()", "sa.String(50)"),
    "name": SOURCE.replace("nickname", "nick"),
    "statement": SOURCE + '    op.execute("SELECT 1")\n',
    "kind": SOURCE.replace('"a"\n', '"a"\nkind = "contracting"\n'),
}


@pytest.mark.parametrize("case", SAME)
def test_checksum_ignores_text_for_people(case: str) -> None:
    assert SAME[case] != SOURCE
    assert checksum(SAME[case]) == checksum(SOURCE)


@pytest.mark.parametrize("case", OTHER)
def test_checksum_differs_for_other_code(case: str) -> None:
    assert checksum(OTHER[case]) != checksum(SOURCE)
