"""The script of a back-fill, and what it learns from the exporter."""

import io
import socket
from threading import Thread

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext

from migrations.backfill import Backfill, pending_requests, run_in_revision


def test_script_has_the_colons_of_the_statement() -> None:
    """A word after a colon is no parameter, whose value would be NULL."""
    script = io.StringIO()
    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "output_buffer": script, "literal_binds": True}
    )
    backfill = Backfill(
        name="notes", table="things", set="meta = '{\"state\":new}'::jsonb", where="note = 'at :once' AND meta IS NULL"
    )

    with Operations.context(context):
        run_in_revision(backfill)

    assert script.getvalue().strip() == (
        "UPDATE things SET meta = '{\"state\":new}'::jsonb WHERE note = 'at :once' AND meta IS NULL;"
    )


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n# TYPE db_pool_pend",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n# TYPE",
        b"not HTTP\r\n\r\n",
        b"",
    ],
)
def test_exporter_that_stops_within_its_answer_is_an_oserror(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        thread = Thread(target=serve)
        thread.start()
        try:
            with pytest.raises(OSError):  # noqa: PT011 - whatever the message
                pending_requests(f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            thread.join()
