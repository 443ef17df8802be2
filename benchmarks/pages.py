"""Pages at depth, search, and whether the time of a sign-in reveals an account: `make bench-pages`.

Needs Docker: the embedded PostgreSQL has no pg_trgm.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from time import perf_counter

import httpx

from app.settings import Settings
from benchmarks.tables import print_header, print_row
from tests.support.postgres import connect
from tests.support.stacks import ComposeStack, LocalStack, Stack

USERS = 1_000
RARE_WORD, RARE_POSTS = "Rhododendron", 5
SIGN_INS = 60
PAGE_LIMIT = 100
SELECT = "SELECT p.*, u.name FROM posts p JOIN users u ON u.id = p.author_id"
NEWEST = "ORDER BY p.created_at DESC, p.id DESC LIMIT 21"
MATCHING = "WHERE p.title ILIKE '%{0}%' OR p.content ILIKE '%{0}%'"


def measure_pages(stack: Stack, depth: int, rounds: int) -> None:
    """Print the time of pages by cursor, by offset and by search, over HTTP."""
    _add_rare_word(stack)
    first = "/posts?limit=20&cursor="
    with httpx.Client(base_url=stack.api, timeout=120) as client:
        deepest = Settings().list_max_offset
        cases = {
            "first page, by cursor": first,
            f"page at depth {depth:,}, by cursor": f"{first}{cursor_at(client, depth)}",
            "first page, by offset": "/posts?limit=20",
            "first page, not counted": "/posts?limit=20&total=none",
            f"page at depth {deepest:,}, by offset": f"/posts?limit=20&offset={deepest}",
            "search, no hit": f"{first}&q=zzzyyyxxx",
            "search, no hit, by offset": "/posts?limit=20&q=zzzyyyxxx",
            f"search, {RARE_POSTS} hits": f"{first}&q={RARE_WORD.lower()}",
            "search, many hits": f"{first}&q=cache",
        }
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(rounds):  # interleaved: a slow moment of the machine affects all cases
            for name, path in cases.items():
                started = perf_counter()
                client.get(path).raise_for_status()
                times[name].append((perf_counter() - started) * 1000)
    base = statistics.median(times["first page, by cursor"])
    print(f"\nMilliseconds over HTTP, {rounds} interleaved rounds\n")
    print_header(("page", "median", "min", "max", "of the first page"))
    for name, each in times.items():
        median = statistics.median(each)
        print_row((name, f"{median:.1f}", f"{min(each):.1f}", f"{max(each):.1f}", f"{median / base:.2f}"))


def _add_rare_word(stack: Stack) -> None:
    """Append a word to the titles of a few random posts."""
    with connect(stack.database_url()) as connection:
        connection.execute(
            "UPDATE posts SET title = title || %s WHERE id IN (SELECT id FROM posts ORDER BY random() LIMIT %s)",
            (f" {RARE_WORD}", RARE_POSTS),
        )
        connection.execute("VACUUM (ANALYZE) posts")


def cursor_at(client: httpx.Client, depth: int) -> str:
    """Return the cursor of the page after `depth` posts."""
    cursor = ""
    for _ in range(depth // PAGE_LIMIT):
        cursor = client.get(f"/posts?limit={PAGE_LIMIT}&cursor={cursor}").json()["next_cursor"]
    return cursor


def explain_pages(stack: Stack, depth: int) -> None:
    """Print how PostgreSQL executes each kind of page."""
    with connect(stack.database_url()) as connection:
        row = connection.execute(
            "SELECT created_at, id FROM posts ORDER BY created_at DESC, id DESC OFFSET %s LIMIT 1", (depth,)
        ).fetchone()
        assert row is not None
        queries = {
            "first page": f"{SELECT} {NEWEST}",
            "cursor at depth": f"{SELECT} WHERE (p.created_at, p.id) < ('{row[0]}', {row[1]}) {NEWEST}",
            "offset at depth": f"{SELECT} {NEWEST} OFFSET {depth}",
            "search, no hit": f"{SELECT} {MATCHING.format('zzzyyyxxx')} {NEWEST}",
            f"search, {RARE_POSTS} hits": f"{SELECT} {MATCHING.format(RARE_WORD)} {NEWEST}",
            "search, many hits": f"{SELECT} {MATCHING.format('cache')} {NEWEST}",
        }
        print()
        print_header(("query", "top line of EXPLAIN ANALYZE", "scan of posts"))
        for name, query in queries.items():
            plan = connection.execute(f"EXPLAIN (ANALYZE, SUMMARY OFF) {query}".encode())
            lines = [line[0].strip() for line in plan]
            scan = next(line for line in lines if " posts" in line or "_trgm" in line)
            print_row((name, lines[0], scan.removeprefix("->").strip()))


def measure_sign_ins(stack: Stack) -> None:
    """Compare a wrong password for a known account with a sign-in for an unknown account."""
    known = {"email": "known@example.com", "name": "Known", "password": "correct horse"}
    httpx.post(f"{stack.api}/users", json=known, timeout=30).raise_for_status()
    times: dict[str, list[float]] = {"known": [], "unknown": []}
    with httpx.Client(base_url=stack.api, timeout=30) as client:
        for _ in range(SIGN_INS):
            for name, each in times.items():
                started = perf_counter()
                form = {"username": f"{name}@example.com", "password": "wrong horse"}
                assert client.post("/auth/token", data=form).status_code == 401
                each.append((perf_counter() - started) * 1000)
    wrong, unknown = (statistics.median(each) for each in times.values())
    print(
        f"\nWrong password {wrong:.1f} ms, unknown account {unknown:.1f} ms: ratio {wrong / unknown:.3f}"
        f" (medians of {SIGN_INS})"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posts", type=int, default=1_000_000, help="rows in posts (default: 1000000)")
    parser.add_argument("--depth", type=int, default=500_000, help="posts before the deep page (default: 500000)")
    parser.add_argument("--rounds", type=int, default=15, help="requests per page (default: 15)")
    options = parser.parse_args()
    compose = ComposeStack("headroom-bench")
    with compose.running():
        compose.seed(users=USERS, posts=options.posts)
        print(f"{USERS:,} users, {options.posts:,} posts")
        measure_pages(compose, options.depth, options.rounds)
        explain_pages(compose, options.depth)
    with tempfile.TemporaryDirectory() as directory:
        limits = {"SIGN_IN_ACCOUNT_LIMIT": "1000000", "SIGN_IN_ADDRESS_LIMIT": "1000000"}
        with LocalStack(Path(directory), **limits).running() as local:
            measure_sign_ins(local)


if __name__ == "__main__":
    main()
