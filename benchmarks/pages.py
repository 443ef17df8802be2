"""What pages cost at depth, and whether a sign-in tells who has an account: `make bench-pages`.

Prints tables; asserts nothing, as figures depend on the machine. Needs Docker: the embedded PostgreSQL has no pg_trgm.
"""

import statistics
import tempfile
from pathlib import Path
from time import perf_counter

import httpx

from tests.support.postgres import connect
from tests.support.stacks import ComposeStack, LocalStack, Stack

USERS, POSTS, DEPTH, ROUNDS = 1_000, 1_000_000, 500_000, 15
RARE = "Rhododendron"


def main() -> None:
    compose = ComposeStack("headroom-bench")
    with compose.running():
        compose.seed(users=USERS, posts=POSTS)
        pages(compose)
    with tempfile.TemporaryDirectory() as directory:
        limits = {"SIGN_IN_ACCOUNT_LIMIT": "1000000", "SIGN_IN_ADDRESS_LIMIT": "1000000"}
        with LocalStack(Path(directory), **limits).running() as local:
            sign_ins(local)


def pages(stack: Stack) -> None:
    with connect(stack.database_url()) as connection:
        connection.execute(
            "UPDATE posts SET title = title || %s WHERE id IN (SELECT id FROM posts ORDER BY random() LIMIT 5)",
            (f" {RARE}",),
        )
        connection.execute("VACUUM (ANALYZE) posts")
    first = "/posts?limit=20&cursor="
    with httpx.Client(base_url=stack.api, timeout=120) as client:
        cases = {
            "first page, by cursor": first,
            f"page at depth {DEPTH:,}, by cursor": f"/posts?limit=20&cursor={cursor_at(client, DEPTH)}",
            "first page, by offset": "/posts?limit=20",
            f"page at depth {DEPTH:,}, by offset": f"/posts?limit=20&offset={DEPTH}",
            "search, no hit": f"{first}&q=zzzyyyxxx",
            "search, five hits": f"{first}&q={RARE.lower()}",
            "search, many hits": f"{first}&q=cache",
        }
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(ROUNDS):  # interleaved: a machine that slows down slows all of them down
            for name, path in cases.items():
                started = perf_counter()
                client.get(path).raise_for_status()
                times[name].append((perf_counter() - started) * 1000)
    base = statistics.median(times["first page, by cursor"])
    print(f"\n{USERS:,} users, {POSTS:,} posts; milliseconds over HTTP, {ROUNDS} interleaved rounds\n")
    print("| page | median | min | max | of the first page |\n| --- | --- | --- | --- | --- |")
    for name, each in times.items():
        median = statistics.median(each)
        print(f"| {name} | {median:.1f} | {min(each):.1f} | {max(each):.1f} | {median / base:.2f} |")
    explain(stack)


def cursor_at(client: httpx.Client, depth: int) -> str:
    cursor = ""
    for _ in range(depth // 100):
        cursor = client.get(f"/posts?limit=100&cursor={cursor}").json()["next_cursor"]
    return cursor


def explain(stack: Stack) -> None:
    select = "SELECT p.*, u.name FROM posts p JOIN users u ON u.id = p.author_id"
    newest = "ORDER BY p.created_at DESC, p.id DESC LIMIT 21"
    search = "WHERE p.title ILIKE '%{0}%' OR p.content ILIKE '%{0}%'"
    with connect(stack.database_url()) as connection:
        row = connection.execute(
            "SELECT created_at, id FROM posts ORDER BY created_at DESC, id DESC OFFSET %s LIMIT 1", (DEPTH,)
        ).fetchone()
        assert row is not None
        queries = {
            "first page": f"{select} {newest}",
            "cursor at depth": f"{select} WHERE (p.created_at, p.id) < ('{row[0]}', {row[1]}) {newest}",
            "offset at depth": f"{select} {newest} OFFSET {DEPTH}",
            "search, no hit": f"{select} {search.format('zzzyyyxxx')} {newest}",
            "search, five hits": f"{select} {search.format(RARE)} {newest}",
            "search, many hits": f"{select} {search.format('cache')} {newest}",
        }
        print("\n| query | top line of EXPLAIN ANALYZE | how posts are read |\n| --- | --- | --- |")
        for name, query in queries.items():
            lines = [line[0].strip() for line in connection.execute(f"EXPLAIN (ANALYZE, SUMMARY OFF) {query}")]
            scan = next(line for line in lines if " posts" in line or "_trgm" in line)
            print(f"| {name} | {lines[0]} | {scan.removeprefix('->').strip()} |")


def sign_ins(stack: Stack) -> None:
    known = {"email": "known@example.com", "name": "Known", "password": "correct horse"}
    httpx.post(f"{stack.api}/users", json=known, timeout=30).raise_for_status()
    times: dict[str, list[float]] = {"known": [], "unknown": []}
    with httpx.Client(base_url=stack.api, timeout=30) as client:
        for _ in range(60):
            for name, each in times.items():
                started = perf_counter()
                form = {"username": f"{name}@example.com", "password": "wrong horse"}
                assert client.post("/auth/token", data=form).status_code == 401
                each.append((perf_counter() - started) * 1000)
    wrong, unknown = (statistics.median(each) for each in times.values())
    print(f"\nwrong password {wrong:.1f} ms, unknown address {unknown:.1f} ms: {wrong / unknown:.3f} (medians of 60)")


if __name__ == "__main__":
    main()
