"""Which changes are contracting, and that no revision of the project makes one without declaring it."""

from pathlib import Path

import pytest
from alembic.script import Script

from app.database.schema_version import scripts
from migrations.kinds import Upgrade, undeclared
from tests.support.migrations import Release

CONTRACTING = {
    "drop table": "op.drop_table('books')",
    "rename table": "op.rename_table('books', 'articles')",
    "drop column": "op.drop_column('users', 'name')",
    "rename column": "op.alter_column('users', 'name', new_column_name='full_name')",
    "batch": "with op.batch_alter_table('users') as batch: batch.drop_column('name')",
    "set not null": "op.alter_column('users', 'nickname', nullable=False)",
    "drop default": "op.alter_column('users', 'is_admin', server_default=None)",
    "narrower text": "op.alter_column('users', 'name', type_=sa.String(50), existing_type=sa.String(100))",
    "unknown type before": "op.alter_column('users', 'name', type_=sa.String(200))",
    "narrower integer": "op.alter_column('a', 'b', type_=sa.Integer(), existing_type=sa.BigInteger())",
    "another type": "op.alter_column('a', 'b', type_=sa.Date(), existing_type=sa.DateTime())",
    "not null column without default": "op.add_column('users', sa.Column('age', sa.Integer(), nullable=False))",
    "unique column": "op.add_column('users', sa.Column('age', sa.Integer(), unique=True))",
    "unique constraint": "op.create_unique_constraint('uq_users_name', 'users', ['name'])",
    "check constraint": "op.create_check_constraint('ck_users_name', 'users', \"name <> ''\")",
    "foreign key": "op.create_foreign_key('fk', 'books', 'users', ['author_id'], ['id'])",
    "unique index": "op.create_index('uq_users_name', 'users', ['name'], unique=True)",
    "drop unique index": "op.drop_index('uq_users_email', 'users')",
    "drop unique constraint": "op.drop_constraint('uq_a', 'users')",
    "value of an enum": "from alembic_postgresql_enum import TableReference\n"
    "op.sync_enum_values(enum_schema='public', enum_name='colour', new_values=['red'], enum_values_to_rename=[],"
    " affected_columns=[TableReference(table_schema='public', table_name='t', column_name='c')])",
    "connection": "op.get_bind().execute(sa.text('ALTER TABLE users DROP COLUMN name'))",
    "sql: drop column": "op.execute('ALTER TABLE users DROP COLUMN name')",
    "sql: rename": "op.execute('ALTER TABLE users RENAME name TO full_name')",
    "sql: not null": "op.execute('ALTER TABLE users ALTER name SET NOT NULL')",
    "sql: type": "op.execute('ALTER TABLE users ALTER COLUMN name TYPE varchar(10)')",
    "sql: not valid": "op.execute(\"ALTER TABLE users ADD CONSTRAINT c CHECK (name <> '') NOT VALID\")",
    "sql: column": "op.execute('ALTER TABLE users ADD age int NOT NULL')",
    "sql: second statement": "op.execute('SELECT 1; TRUNCATE books')",
}
ADDITIVE = {
    "create table": "op.create_table('tags', sa.Column('id', sa.Integer(), primary_key=True))",
    "constraint of a new table": "op.create_table('tags', sa.Column('id', sa.Integer()))\n"
    "op.create_unique_constraint('uq_tags_id', 'tags', ['id'])\n"
    "op.create_index('uq_tags', 'tags', ['id'], unique=True)",
    "nullable column": "op.add_column('users', sa.Column('age', sa.Integer()))",
    "column with default": "op.add_column('users', sa.Column('age', sa.Integer(), server_default='0', nullable=False))",
    "identity": "op.add_column('users', sa.Column('n', sa.Integer(), sa.Identity(), nullable=False))",
    "index": "op.create_index('ix', 'users', ['name'])",
    "drop index": "op.drop_index('ix', 'users')",
    "drop check": "op.drop_constraint('ck_users_name', 'users', type_='check')",
    "wider text": "op.alter_column('users', 'name', type_=sa.Text(), existing_type=sa.String(100))",
    "wider integer": "op.alter_column('a', 'b', type_=sa.BigInteger(), existing_type=sa.Integer())",
    "drop not null": "op.alter_column('users', 'name', nullable=True)",
    "set default": "op.alter_column('users', 'name', server_default='x')",
    "comment": "op.create_table_comment('users', 'People. DROP COLUMN')",
    "new enum": "sa.Enum('red', name='colour').create(op.get_bind())",
    "new value of an enum": "op.add_enum_value(enum_schema='public', enum_name='colour', new_value='blue')",
    "sql: back-fill": "op.execute(\"UPDATE users SET name = 'DROP TABLE users'\")",
    "sql: validate": "op.execute('ALTER TABLE users VALIDATE CONSTRAINT c')",
    "sql: column with default": "op.execute('ALTER TABLE users ADD age int NOT NULL DEFAULT 0')",
}


def written(directory: Path, upgrade: str, kind: str | None = None, reason: str | None = None) -> Script:
    release = Release(directory)
    release.add("changed", upgrade, kind=kind)
    if reason:
        release.file("changed").write_text(f"additive_because = {reason!r}\n{release.file('changed').read_text()}")
    return release.newest


@pytest.mark.parametrize("case", CONTRACTING)
def test_contracting_change_must_be_declared(tmp_path: Path, case: str) -> None:
    assert undeclared(written(tmp_path, CONTRACTING[case]))
    assert undeclared(written(tmp_path, CONTRACTING[case], kind="contracting")) == []
    assert undeclared(written(tmp_path, CONTRACTING[case], reason="the code before does not use it")) == []


@pytest.mark.parametrize("case", ADDITIVE)
def test_additive_change_needs_no_declaration(tmp_path: Path, case: str) -> None:
    assert undeclared(written(tmp_path, ADDITIVE[case])) == []


@pytest.mark.parametrize("script", list(scripts().walk_revisions()), ids=lambda script: script.revision)
def test_revision_declares_its_contracting_changes(script: Script) -> None:
    assert undeclared(script) == [], "declare kind = 'contracting', or additive_because = '...'"


def test_operations_are_recorded_for_one_revision_only(tmp_path: Path) -> None:
    script = written(tmp_path, ADDITIVE["index"])

    assert len(Upgrade(script).operations) == len(Upgrade(script).operations) == 2  # and the statements of no operation
    assert "CREATE INDEX ix ON users (name)" in Upgrade(script).sql
