"""A table with a deferred constraint, which fails at COMMIT."""

from sqlalchemy import URL, BigInteger, Column, MetaData, Table

from tests.support.postgres import connect

NOTES = Table("notes", MetaData(), Column("author_id", BigInteger))


def create_notes(url: URL) -> None:
    """Create the table. Its constraint `deferred`, a foreign key to `users`, is checked at COMMIT."""
    with connect(url) as admin:
        admin.execute(
            "CREATE TABLE notes (author_id bigint CONSTRAINT deferred REFERENCES users DEFERRABLE INITIALLY DEFERRED)"
        )
        admin.execute("GRANT ALL ON notes TO PUBLIC")
