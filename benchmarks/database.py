"""The PostgreSQL that the benchmarks run on."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import URL

from tests.support.postgres import Server, run_postgres

# Sized for the data of the benchmarks, and durable: a crash loses no committed transaction.
POSTGRES = "postgres -c max_connections=400 -c shared_buffers=1GB -c max_wal_size=4GB"


class BenchmarkDatabase(NamedTuple):
    """A server, a migrated database on it (the superuser's URL), and a directory for temporary files."""

    server: Server
    url: URL
    directory: Path


@contextmanager
def benchmark_database(command: str = POSTGRES) -> Iterator[BenchmarkDatabase]:
    """Run PostgreSQL, in a container if Docker is available, with a migrated database."""
    with (
        tempfile.TemporaryDirectory(prefix="headroom-bench-") as name,
        run_postgres(Path(name), command) as server,
        server.migrated() as url,
    ):
        yield BenchmarkDatabase(server, direct_url(server, url), Path(name))


def direct_url(server: Server, url: URL) -> URL:
    """Return the URL past Docker's port proxy, whose CPU time would be added to every variant's."""
    return url.set(host=server.address, port=5432) if server.address else url
