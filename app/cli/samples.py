"""`headroom seed`: plausible rows for the tables of the domains."""

import asyncio
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random

import psycopg
from sqlalchemy import URL

from app.cli.seed import SampleRow, SampleTable, load
from app.domains.users.passwords import hash_password
from app.errors import ConfigurationError

HISTORY = timedelta(days=730)
FIRST_NAMES = (
    "Ada Alan Barbara Claude Donald Edsger Frances Grace Hedy Ivan John Katherine Leslie Margaret Niklaus Radia Shafi "
    "Tim Vint Yukihiro"
).split()
LAST_NAMES = (
    "Allen Berners Cerf Dijkstra Goldwasser Hamilton Hopper Johnson Knuth Lamport Liskov Lovelace Matsumoto Neumann "
    "Perlman Shannon Sutherland Turing Wirth"
).split()
WORDS = (
    "a after already always an and answer backend because before budget by cache client commit connection count cursor "
    "database deadline deploy driver each error every exporter fast for from graceful headroom idle in index is it job "
    "keeps latency limit lock migration never node of on one overflow page pool query queue read replica request "
    "restart row server session slow statement table that the timeout to transaction under until wait when while with "
    "worker write"
).split()


def seed(*, url: URL, users: int, posts: int) -> str:
    """Add users and posts in one transaction, and return the password of all new users.

    Raise ConfigurationError for posts without any user to write them, and what `load` raises.
    """
    password = secrets.token_urlsafe(12)
    password_hash = asyncio.run(hash_password(password))
    random = Random()  # noqa: S311 - plausible, not secret
    start = datetime.now(UTC) - HISTORY

    def user_rows(connection: psycopg.Connection, ids: list[int]) -> Iterator[SampleRow]:
        return _user_rows(random, ids, start, password_hash)

    def post_rows(connection: psycopg.Connection, ids: list[int]) -> Iterator[SampleRow]:
        authors = [row[0] for row in connection.execute("SELECT id FROM users ORDER BY id")]
        if posts and not authors:
            raise ConfigurationError("--posts: there is no user to write them; add users with --users")
        return _post_rows(random, ids, authors, start)

    load(
        url=url,
        tables=[
            SampleTable(
                "users", ("id", "email", "name", "password_hash", "created_at", "updated_at"), users, user_rows
            ),
            SampleTable("posts", ("id", "author_id", "title", "content", "created_at", "updated_at"), posts, post_rows),
        ],
    )
    return password


def _user_rows(random: Random, ids: list[int], start: datetime, password_hash: str) -> Iterator[SampleRow]:
    for user_id in ids:
        first, last = random.choice(FIRST_NAMES), random.choice(LAST_NAMES)
        signed_up = start - timedelta(seconds=random.randrange(365 * 86_400))
        email = f"{first}.{last}.{user_id}@example.com".lower()
        yield user_id, email, f"{first} {last}", password_hash, signed_up, signed_up


def _post_rows(random: Random, ids: list[int], authors: list[int], start: datetime) -> Iterator[SampleRow]:
    for number, post_id in enumerate(ids):
        # Squared, so that a few users write many posts and most users write few.
        author = authors[int(len(authors) * random.random() ** 2)]
        title = " ".join(random.choices(WORDS, k=random.randint(3, 8))).capitalize()
        content = " ".join(random.choices(WORDS, k=random.randint(20, 80))).capitalize() + "."
        # In the order of the ids, like rows that were written one after the other.
        written = start + HISTORY * (number / len(ids))
        yield post_id, author, title, content, written, written
