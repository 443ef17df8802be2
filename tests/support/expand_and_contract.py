"""The statements of each release of docs/expand-and-contract.md, and clients that use them while the schema changes."""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import psycopg
from psycopg.rows import scalar_row
from sqlalchemy import URL

from app.database.conninfo import parameters

EXPANDED = "2f5a9c7be310"
FILLED = "5c80d1e6f294"
SWITCHED = "9a17f3c25e08"
CONTRACTED = "d06c4e8b91a7"
BEFORE = "b3d81f6ac945"


class Release(NamedTuple):
    """What the code of a release says about active accounts. Each statement returns one value."""

    sign_up: str
    deactivate: str
    activate: str
    rename: str
    is_active: str
    can_post: str
    is_listed: str


# Releases 1 and 2: the expanding release ignores the new column, and the trigger writes it.
OLD = Release(
    sign_up="INSERT INTO users (email, name, password_hash, is_active) VALUES (%(email)s, 'Ann', '', %(active)s)"
    " RETURNING id",
    deactivate="UPDATE users SET is_active = false, updated_at = now() WHERE id = %(id)s RETURNING id",
    activate="UPDATE users SET is_active = true, updated_at = now() WHERE id = %(id)s RETURNING id",
    rename="UPDATE users SET name = %(email)s, updated_at = now() WHERE id = %(id)s RETURNING id",
    is_active="SELECT is_active FROM users WHERE id = %(id)s",
    can_post="SELECT count(*) = 1 FROM users WHERE id = %(id)s AND is_active",
    is_listed="SELECT count(*) = 1 FROM users WHERE is_active = true AND email = %(email)s",
)
# Releases 3 and 4.
NEW = Release(
    sign_up="INSERT INTO users (email, name, password_hash, deactivated_at)"
    " VALUES (%(email)s, 'Ann', '', CASE WHEN %(active)s THEN NULL ELSE now() END) RETURNING id",
    deactivate="UPDATE users SET deactivated_at = now(), updated_at = now() WHERE id = %(id)s RETURNING id",
    activate="UPDATE users SET deactivated_at = NULL, updated_at = now() WHERE id = %(id)s RETURNING id",
    rename="UPDATE users SET name = %(email)s, updated_at = now() WHERE id = %(id)s RETURNING id",
    is_active="SELECT deactivated_at IS NULL FROM users WHERE id = %(id)s",
    can_post="SELECT count(*) = 1 FROM users WHERE id = %(id)s AND deactivated_at IS NULL",
    is_listed="SELECT count(*) = 1 FROM users WHERE (deactivated_at IS NULL) = true AND email = %(email)s",
)
READS = ("is_active", "can_post", "is_listed")


class Clients:
    """Clients that change and read accounts of their own, and know the right value of each.

    Each statement is that of any release that serves. A failed statement or a wrong value ends its client.
    """

    def __init__(self, url: URL, count: int) -> None:
        self._url = url
        self._count = count
        self._serving: tuple[Release, ...] = ()
        self._rounds = [0] * count
        self._stopped = threading.Event()
        self.done: Counter[str] = Counter()
        self.slowest = 0.0

    @contextmanager
    def running(self, *releases: Release) -> Iterator[None]:
        """Run the clients during the block, and raise the first error of a client."""
        self._serving = releases
        with ThreadPoolExecutor(self._count) as executor:
            self._jobs = [executor.submit(self._run, number) for number in range(self._count)]
            try:
                yield
                self.serve(*self._serving)
            finally:
                self._stopped.set()
            for job in self._jobs:
                job.result()

    def serve(self, *releases: Release) -> None:
        """Change the releases that serve, and let each client do several rounds with them."""
        self._serving = releases
        before = list(self._rounds)
        while not all(now >= then + 20 for now, then in zip(self._rounds, before, strict=True)):
            for job in self._jobs:
                if job.done():
                    job.result()
            time.sleep(0.01)

    def _run(self, number: int) -> None:
        choice = random.Random(number)
        with psycopg.connect(**parameters(self._url), autocommit=True, row_factory=scalar_row) as connection:
            while not self._stopped.is_set():
                self._round(connection, choice, number)
                self._stopped.wait(0.005)  # leaves the processor to the migration

    def _round(self, connection: "psycopg.Connection[object]", choice: random.Random, number: int) -> None:
        """Sign up, change the account a few times, and read after each change."""
        serving = self._serving
        email = f"{number}-{self._rounds[number]}@example.com"
        active = choice.random() < 0.5
        values: dict[str, object] = {"email": email, "active": active}

        def execute(operation: str) -> object:
            started = time.monotonic()
            value = connection.execute(getattr(choice.choice(serving), operation).encode(), values).fetchone()
            self.slowest = max(self.slowest, time.monotonic() - started)
            self.done[operation] += 1
            return value

        values["id"] = execute("sign_up")
        for change in ("", *choice.choices(("deactivate", "activate", "rename"), k=3)):
            if change:
                assert execute(change) == values["id"]
                active = {"deactivate": False, "activate": True}.get(change, active)
            for read in READS:
                assert execute(read) == active, f"{read} after {change or 'sign-up'} of user {values['id']}"
        self._rounds[number] += 1
