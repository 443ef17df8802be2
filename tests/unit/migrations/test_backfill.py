"""What a back-fill learns from the exporter."""

import socket
from threading import Thread

import pytest

from migrations.backfill import pending_requests


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
