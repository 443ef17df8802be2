"""A table with a deferred constraint, which fails at COMMIT."""

from sqlalchemy import URL, BigInteger, Column, MetaData, Table

from tests.support.postgres import connect

NOTES = Table("test_notes", MetaData(), Column("contact_id", BigInteger))


def create_notes(url: URL) -> None:
    """Create the table. Its constraint `deferred`, a foreign key to `test_contacts`, is checked at COMMIT."""
    with connect(url) as admin:
        admin.execute(
            "CREATE TABLE test_notes"
            " (contact_id bigint CONSTRAINT deferred REFERENCES test_contacts DEFERRABLE INITIALLY DEFERRED)"
        )
        admin.execute("GRANT ALL ON test_notes TO PUBLIC")
