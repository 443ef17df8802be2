"""The parts of the example domain, posts, which `make adopt name=orbit example=no` removes.

FILES go as a whole. EDITS take the rest out of files that stay. Put new code of the example into a file of its own.
"""

from pathlib import Path

from ops.adopt.edits import Edit, Part, functions, lines, replace, section, substitute, targets

# Benchmarks with posts. `make bench-kubernetes` and others have none, and stay.
TARGETS = (
    *("bench", "bench-capacity", "bench-pages", "bench-overload", "bench-lanes", "bench-deploy", "bench-restarts"),
    *("bench-swarm", "bench-ddl", "fault"),
)
FILES = (
    "app/domains/posts",
    *(f"benchmarks/{name}.py" for name in ("bench", "capacity", "deploy", "endpoints", "lanes", "measuring")),
    *(f"benchmarks/{name}.py" for name in ("overload", "pages", "restarts", "swarm", "variants")),
    "benchmarks/fault",
    "benchmarks/rivals",
    "migrations/versions/*.py",  # FIRST_REVISION takes their place
    "tests/fault/test_deploy.py",
    "tests/fault/test_faults.py",
    "tests/fault/test_full_load_containers.py",
    "tests/fault/test_planned_restarts.py",
    "tests/fault/test_replicas.py",
    "tests/integration/benchmarks",
    "tests/integration/domains/test_cursor_walk.py",
    "tests/integration/domains/test_posts*.py",
    "tests/integration/migrations/test_backfill_command.py",
    "tests/integration/migrations/test_benchmark_revisions.py",
    "tests/integration/migrations/test_expand_and_contract.py",
    "tests/stack/test_contract_posts.py",
    "tests/support/expand_and_contract.py",
    "tests/unit/benchmarks/test_deploy.py",
    "tests/unit/benchmarks/test_fault_*.py",
    "tests/unit/domains/test_posts.py",
)
# The revisions of the template, squashed and without posts.
FIRST_REVISION = ("ops/adopt/first_revision.py.tmpl", "migrations/versions/20261127_3c9e5a70d1b8_users_and_sign_in.py")

_SEEDED = substitute(r", posts=[\d_]+")
_MEASURED = (
    "The figures are those of the template with its example, users who write posts"
    " ([adopting.md](adopting.md#without-the-example)).\n\n"
)
EDITS: dict[str, tuple[Edit, ...]] = {
    "Makefile": (
        targets(*TARGETS),
        replace("make seed users=1000 posts=5000", "make seed users=1000"),
        replace(" $(if $(posts),--posts $(posts))"),
    ),
    "README.md": (
        replace("make seed users=1000 posts=5000\ncurl -s '127.0.0.1:8000/posts?limit=2'\n", "make seed users=1000\n"),
        replace(" --users 1000 --posts 5000", " --users 1000"),
        replace(
            "The example domain is users and posts. `make domain name=comments` writes another\none, and",
            "`make domain name=comments` writes a domain,\nand",
        ),
    ),
    "app/cli/main.py": (
        replace("in another terminal: users and posts", "in another terminal: users"),
        lines('seed.add_argument("--posts"'),
        replace(", posts=options.posts"),
        replace("{options.users} users and {options.posts} posts added", "{options.users} users added"),
    ),
    "app/cli/samples.py": (
        replace(", posts: int) -> str:", ") -> str:"),
        replace("Add users and posts in one transaction,", "Add users in one transaction,"),
        replace(
            "Raise ConfigurationError for posts without any user to write them, and what `load` raises.",
            "Raise what `load` raises.",
        ),
        substitute(r"^    def post_rows(?:.*\n)+?\n"),
        lines('SampleTable("posts"'),
        functions("_post_rows"),
        substitute(r"^WORDS = (?:.*\n)+?\n", "\n"),
        lines("from app.errors"),
    ),
    "app/domains/users/models.py": (replace(" It replaced the column `is_active` (docs/expand-and-contract.md)."),),
    "app/models.py": (replace("import Post, User", "import User"), replace('"Post", ')),
    "app/registry.py": (lines("from app.domains.posts"), replace("users, posts)", "users)")),
    "compose.prod.yml": (replace("/posts?limit=1", "/readyz"),),
    "docs/adding-a-domain.md": (
        substitute(r"^`app/domains/posts` is the example: .*\n\n(?:\|.*\n)+\n"),
        replace(", as the `INSERT` of a post does"),
        replace("never the reverse: posts import users.", "never the reverse."),
        replace(
            "So the route `/users/{user_id}/posts` is in the posts domain.",
            "So a route such as `/users/{user_id}/comments` is in the domain of the child.",
        ),
        section("## Removing the example"),
        replace(
            "from app.domains.posts.router import router as posts", "from app.domains.auth.router import router as auth"
        ),
        replace("(auth, users, posts", "(auth, users"),
        replace("Post, Tag, User", "Tag, User"),
        replace("import Post, User", "import User"),
        replace('"Post", '),
        replace(
            '`select(Post.id, User.name.label("author_name")).join(Post.author)`.',
            '`select(Article.id, User.name.label("writer_name")).join(User)`.',
        ),
        replace("counted=select(Post.id)", "counted=select(Article.id)"),
        replace("`20261124_b3d81f6ac945` makes", "`20261127_3c9e5a70d1b8` makes"),
    ),
    "docs/api.md": (
        replace("The example service: users who write posts. ", "Users and sign-in. "),
        replace("; deletes the user's posts too"),
        lines("| `GET /users/{id}/posts", "| `POST /posts`", "| `GET /posts", "| `PATCH`, `DELETE /posts"),
        replace("such as `/posts`", "such as `/users`"),
        replace(
            "`created_at`, `id`, `title` (posts), `name` or `email` (users)", "`created_at`, `id`, `name` or `email`"
        ),
        replace("searches titles and contents, or names and addresses", "searches names and addresses"),
        replace("as `author_id`", "as `is_active`"),
        replace("/posts/7", "/users/7"),
        replace("'127.0.0.1:8000/posts?q=hello'", "127.0.0.1:8000/users/1"),
        substitute(
            r"^curl -s 127.0.0.1:8000/posts (?:.*\n)+?```",
            'curl -s 127.0.0.1:8000/users/me -H "authorization: Bearer $TOKEN"\n```',
        ),
    ),
    "docs/architecture.md": (replace("auth, users, posts", "auth, users"),),
    "docs/connections.md": (replace("`GET /posts?offset=0`", "`GET /users?offset=0`"),),
    "docs/decisions/0022-fault-harness.md": (
        replace("Code: `benchmarks/fault/`", "Code: the template"),
        replace("`tests/fault/test_faults.py` runs a selection", "A test of the template runs a selection"),
    ),
    "docs/deploying.md": (replace("`/posts?limit=1`", "`/readyz`"),),
    "docs/expand-and-contract.md": (
        replace("with a change of this\nrepository, so that you can copy them:", "with a change of the\ntemplate:"),
        replace("This repository has all four in one:", "The template has all four in one:"),
        substitute(r"^`tests/integration/migrations/test_expand_and_contract.py` .*\n\n"),
        substitute(r"^`migrations/versions/\d+_(\w{12})_\w+\.py`$", r"Revision `\1`:"),
    ),
    "docs/faults.md": (
        section("## Running it"),
        replace("## How a trial works\n", f"{_MEASURED}## How a trial works\n"),
    ),
    "docs/kubernetes.md": (
        replace("`GET /posts?cursor=&limit=20`, *writes* `POST /posts`", "lists of 20 rows, *writes* one `INSERT`"),
    ),
    "docs/migrations.md": (
        replace(
            "`migrations/versions/20261124_b3d81f6ac945_indexes_for_lists_and_search.py` does",
            "`migrations/versions/20261127_3c9e5a70d1b8_users_and_sign_in.py` does",
        ),
    ),
    "docs/performance.md": (
        section("## Running the benchmarks"),
        replace("- [Comparison", f"{_MEASURED}- [Comparison"),
    ),
    "docs/postgres-upgrade.md": (replace("900,000 posts", "900,000 other rows"),),
    "docs/testing.md": (substitute(r"^`make fault` goes further (?:.*\n)+?\n"),),
    "ops/docs/pictures.py": (
        replace('("/posts?cursor=", "/users/1", "/posts/1", "/posts?q=cache")', '("/users/1", "/users/2", "/readyz")'),
        replace("users=1_000, posts=5_000", "users=1_000"),
    ),
    "ops/kubernetes/try": (
        lines("[[ $(request '/posts?limit=1')"),
        replace("/posts?limit=1", "/readyz"),
    ),
    "tests/stack/test_contract.py": (_SEEDED,),
    "tests/stack/test_dumps.py": (_SEEDED, replace('("users", "posts")', '("users", "sign_in_attempts")')),
    "tests/stack/test_postgres_upgrade.py": (
        _SEEDED,
        replace('"alembic_version", "posts", ', '"alembic_version", '),
        replace("with users and posts.", "with users."),
    ),
    "tests/stack/test_prometheus.py": (replace('"/posts?cursor=", '),),
    "tests/stack/test_schemathesis.py": (_SEEDED,),
    "tests/stack/test_slow_clients.py": (
        functions("large_page", "test_slow_reader_of_a_response_holds_no_connection"),
    ),
    "tests/support/operations.py": (
        substitute(r'^    "GET /users/\{user_id\}/posts"(?:.*\n)+?(?=^\})'),
        substitute(r'^    "post_id": Parameter\((?:.*\n)+?    \),\n'),
    ),
    "tests/unit/cli/test_main.py": (replace('{"--help", "--users", "--posts"}', '{"--help", "--users"}'),),
    "tests/unit/test_docs.py": (
        replace('{"auth", "users", "posts"}', '{"auth", "users"}'),
        replace('{"Post", "User"}', '{"User"}'),
        functions("test_steps_of_expand_and_contract_are_those_of_the_history"),
    ),
    "tests/unit/web/test_openapi.py": (replace('["users"], ["posts"]', '["users"]'),),
    "tests/integration/test_migrations.py": (
        replace('DATA_REVISIONS = {"5c80d1e6f294"}', "DATA_REVISIONS: set[str] = set()"),
    ),
}


def part(root: Path) -> Part:
    """Return the example, as a part to take out."""
    source, target = FIRST_REVISION
    return Part("ops/adopt/example.py", FILES, EDITS, {target: (root / source).read_text(encoding="utf-8")}, TARGETS)
