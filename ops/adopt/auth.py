"""Users and sign-in, which `make adopt name=orbit auth=no` takes out after the example.

In their place comes one small domain, notes, as `make domain name=notes` writes it in a service without sign-in: the
tests of the whole service need a table and its routes. FILES go as a whole. EDITS take the rest out of files that stay.
Put new code of users and sign-in into a file of its own.
"""

import re
from pathlib import Path

from ops.adopt import example
from ops.adopt.edits import Edit, OutOfDate, Part, functions, lines, replace, section, substitute
from ops.domain.rendering import FILES as FILES_OF_A_DOMAIN
from ops.domain.rendering import TEMPLATES, Names, after_imports, insert_before_end

NOTES = Names("notes")
FIRST_REVISION = "migrations/versions/20261128_5b0c7e19d2a4_notes.py"
# Packages that nothing else needs.
PACKAGES = (
    *("argon2-cffi", "argon2-cffi-bindings", "cffi", "dnspython", "email-validator", "pwdlib", "pycparser", "pyjwt"),
)

FILES = (
    "app/cli/create_admin.py",
    "app/cli/samples.py",
    "app/domains/auth",
    "app/domains/users",
    "app/identity.py",
    "app/web/auth.py",
    "docs/decisions/0012-sign-in-limits.md",
    example.FIRST_REVISION[1],
    "tests/integration/domains/test_auth.py",
    "tests/integration/domains/test_bad_users.py",
    "tests/integration/domains/test_users.py",
    "tests/integration/test_authorisation.py",
    "tests/integration/test_fixture_sign_up.py",
    "tests/stack/test_contract_users.py",
    "tests/stack/test_create_admin.py",
    "tests/stack/test_prod_sign_in.py",
    "tests/support/hashing.py",
    "tests/support/people.py",
    "tests/unit/domains/test_auth.py",
    "tests/unit/domains/test_tokens.py",
    "tests/unit/domains/test_users.py",
)


def _apply(text: str, *edits: Edit) -> str:
    for edit in edits:
        text = edit(text)
    return text


# The generated domain without sign-in: the same edits of the templates, and of the page that builds the domain.
_ROUTER = (
    replace("from app.errors import Forbidden, NotAuthenticated\n"),
    replace("from app.web.auth import SignedIn\n"),
    replace("NotAuthenticated, Forbidden, "),
    replace("NotAuthenticated, "),
    replace("principal: SignedIn, "),
    replace(", principal: SignedIn)", ")"),
    replace("    principal.require_admin()\n"),
    replace(" For signed-in users."),
    replace(" For administrators."),
)
_UNIT_TEST = (substitute(r"\n\nasync def test_\S+_without_sign_in_is_refused\(.*\n    assert .*\n"),)
_INTEGRATION_TEST = (
    replace("\nfrom tests.support.fixtures import SignUp\n"),
    replace("test_signed_in_user_adds_", "test_client_adds_"),
    replace(", sign_up: SignUp)", ")"),
    substitute(r"^    (ann|admin) = await sign_up\(.*\n(\n(?=    created))?"),
    substitute(r'^    assert \(await ann\("PATCH".* == 403\n'),
    replace("_is_changed_and_deleted_by_administrators_only", "_is_changed_and_deleted"),
    substitute(r'\b(?:ann|admin)\("(POST|PATCH|DELETE)", ', lambda call: f"client.{call[1].lower()}("),
)
_OPERATIONS = (
    replace("statuses=ANYONE, "),
    substitute(r"statuses=\(.*?\), "),
    replace("Cost(5)", "Cost(4)"),
    replace('costs={"": Cost(2)}', 'costs={"": Cost(1)}'),
)
TEMPLATE_EDITS: dict[str, tuple[Edit, ...]] = {
    "router.py": _ROUTER,
    "unit_test.py": _UNIT_TEST,
    "integration_test.py": _INTEGRATION_TEST,
    "operations": _OPERATIONS,
}


def _rendered(template: str) -> str:
    """Return a file of the domain notes."""
    text = (TEMPLATES / f"{template}.tmpl").read_text(encoding="utf-8")
    return NOTES.fill(_apply(text, *TEMPLATE_EDITS.get(template, ())))


def _locked(removed: tuple[str, ...], gone_above: tuple[str, ...] = ()) -> Edit:
    """Remove packages from a list of `make lock`, where they are also origins of others.

    `gone_above` are no longer in requirements/app.txt, which was an origin of their versions here.
    """

    def edit(text: str) -> str:
        kept = []
        for block in re.split(r"^(?=[a-z])", text, flags=re.MULTILINE):
            name = block.partition("==")[0]
            if name in removed:
                continue
            given, found, listed = block.partition("    # via")
            if found:
                origins = [origin.strip("# ") for origin in listed.strip().splitlines() if origin.strip("# ")]
                left = [
                    origin
                    for origin in origins
                    if origin not in removed and not (name in gone_above and origin == "-c requirements/app.txt")
                ]
                lines_of_origins = (
                    [f"    # via {left[0]}"] if len(left) == 1 else ["    # via", *(f"    #   {each}" for each in left)]
                )
                if left != origins:
                    block = given + "\n".join(lines_of_origins) + "\n"
            kept.append(block)
        changed = "".join(kept)
        if changed == text:
            raise OutOfDate(str(removed or gone_above))
        return changed

    return edit


_TO_NOTES = substitute(r"\busers\b", "notes")
_SEEDED = replace("seed(users=", "seed(notes=")
_CALLER = (
    lines("from tests.support.people"),
    replace('await person(client, "Admin", database_url, is_admin=True)', "Caller(client)"),
)
_CREATE = """    created = client.post(PATH, json=new(key)).raise_for_status()
    return Row(created.headers["location"], {})
"""

# Calls of Python functions, 10 % above those measured on 2026-11-28.
_CALLS_OF_NOTES = (
    replace("Cost(2, counts=1)", "Cost(2, 520, counts=1)"),
    replace('"?limit=100&cursor=": Cost(1)', '"?limit=100&cursor=": Cost(1, 380)'),
    replace(
        '"GET /notes/{note_id}": Operation(costs={"": Cost(1)})',
        '"GET /notes/{note_id}": Operation(costs={"": Cost(1, 230)})',
    ),
)
_CALLS = """| `GET /notes?q=&sort=` | anyone | 200, a page |
| `POST /notes` `{name}` | anyone | 201 and `Location`; 409 for a known name |
| `GET /notes/{id}` | anyone | 200; 404 |
| `PATCH`, `DELETE /notes/{id}` | anyone | 200, 204; 404 |
"""
_SESSION = """curl -s 127.0.0.1:8000/notes -H 'content-type: application/json' -d '{"name": "Hello"}'
curl -s '127.0.0.1:8000/notes?q=hello&limit=2'
curl -s '127.0.0.1:8000/notes?cursor=&limit=2'
```
"""
_TEST_OF_A_LIST = """    make: Factory, sign_up: SignUp, assert_statements: AssertStatements
) -> None:
    admin = await sign_up("Admin", is_admin=True)
    for _ in range(3):
        await make(User)

    with assert_statements(3):  # the query for the administrator, the page and the count
        await admin("GET", "/users?limit=2")
"""
_TEST_OF_A_LIST_OF_NOTES = """    make: Factory, client: AsyncClient, assert_statements: AssertStatements
) -> None:
    for _ in range(3):
        await make(Note)

    with assert_statements(2):  # the page and the count
        await client.get("/notes?limit=2")
"""
_TEST_OF_A_CONFLICT = """(sign_up: SignUp, fail_statement: FailStatement) -> None:
    ann = await sign_up("Ann")
    fail_statement("UPDATE users", sqlstate="40001")

    assert (await ann("PATCH", f"/users/{ann.id}", json={"name": "Anna"})).status_code == 503
"""
_TEST_OF_A_CONFLICT_OF_NOTES = """(client: AsyncClient, fail_statement: FailStatement) -> None:
    fail_statement("INSERT INTO notes", sqlstate="40001")

    assert (await client.post("/notes", json={"name": "first"})).status_code == 503
"""

EDITS: dict[str, tuple[Edit, ...]] = {
    "app/cli/main.py": (
        replace("in another terminal: users", "in another terminal: notes"),
        lines("headroom create-admin --email"),
        replace(
            '"--users", type=_count, default=1_000, metavar="N", help="users to add',
            '"--notes", type=_count, default=1_000, metavar="N", help="notes to add',
        ),
        substitute(r"^    admin = add\((?:.*\n)+?\n"),
        functions("_create_admin"),
        replace("password = seed(url=url, users=options.users)", "seed(url=url, notes=options.notes)"),
        replace(
            "{options.users} users added; every new user has the password {password}", "{options.notes} notes added"
        ),
    ),
    "app/budget/model.py": (replace(" `headroom create-admin`,"),),
    "app/models.py": (replace("User", "Note"),),
    "app/registry.py": (
        lines("from app.domains.auth", "from app.domains.users"),
        replace("(auth, users)", "(notes,)"),
        replace("(provide_sign_in,)", "()"),
        lambda text: after_imports(
            text,
            "from app.domains.notes.models import Note as Note\nfrom app.domains.notes.router import router as notes\n",
        ),
    ),
    "app/settings.py": (
        replace("    # Authentication.\n", "    # Signatures.\n"),
        replace("Key that signs access tokens and cursors,", "Key that signs cursors,"),
        replace(
            "Further keys whose access tokens and cursors are accepted,", "Further keys whose cursors are accepted,"
        ),
        substitute(r"^    access_token_seconds: int(?:.*\n)+?(?=\n    # HTTP)"),
        replace("the address of sign-in and `Location` headers contain it", "and `Location` headers contain it"),
        replace("the key that signs access tokens and cursors", "the key that signs cursors"),
    ),
    "README.md": (
        replace(
            "It is\nalso not a finished user system: it has sign-in with tokens, but no e-mail confirmation and no"
            " password reset.",
            "It has\nno users and no sign-in.",
        ),
        replace(
            "[A session with curl](docs/api.md#a-session-with-curl) signs a user up and in. In a second terminal:",
            "In a second terminal ([a session with curl](docs/api.md#a-session-with-curl)):",
        ),
        replace("make seed users=1000", "make seed notes=1000"),
        replace("seed --users 1000", "seed --notes 1000"),
        replace("and sign-in comes first.", "and what must not be refused comes first."),
    ),
    "Makefile": (
        replace("make seed users=1000", "make seed notes=1000"),
        replace("$(if $(users),--users $(users))", "$(if $(notes),--notes $(notes))"),
    ),
    "SECURITY.md": (
        lines("| guessed passwords", "| finding out which addresses", "| forged tokens"),
        replace("limits of requests and of sign-ins at the proxy", "a limit of requests at the proxy"),
        replace("bounded queues for connections and for password hashes;", "a bounded queue for connections;"),
        replace(
            "- **Sign-up is open**, and answers 409 for an address that has an account.\n",
            "- **There is no sign-in**: anyone who reaches the API may read and write notes.\n",
        ),
        substitute(r"^- \*\*Tokens cannot be revoked.*\n.*\n"),
        lines("- **An account can be locked out**"),
        replace("have no sign-in.** They", "require no authentication.** They"),
    ),
    "docs/adding-a-domain.md": (
        replace(
            "| `POST /tags` `{name}` | signed in | `StatementDb` | 2: the caller, the INSERT |",
            "| `POST /tags` `{name}` | anyone | `StatementDb` | 1 |",
        ),
        replace(
            "| `PATCH /tags/{id}` | admin | `WriteDb` | 5: the caller, BEGIN, SELECT, UPDATE, COMMIT |",
            "| `PATCH /tags/{id}` | anyone | `WriteDb` | 4: BEGIN, SELECT, UPDATE, COMMIT |",
        ),
        replace("| `DELETE /tags/{id}` | admin | `WriteDb` | 5 |", "| `DELETE /tags/{id}` | anyone | `WriteDb` | 4 |"),
        *_ROUTER,
        replace(
            "from app.domains.auth.router import router as auth", "from app.domains.notes.router import router as notes"
        ),
        replace("(auth, users", "(notes,"),
        replace("(notes,, tags)", "(notes, tags)"),
        replace("import User\n", "import Note\n"),
        replace("import Tag, User", "import Note, Tag"),
        replace('["User"]', '["Note"]'),
        replace('["Tag", "User"]', '["Note", "Tag"]'),
        substitute(r"\n\nasync def test_\S+_without_sign_in_is_refused\(.*\n    assert .*\n", "\n"),
        replace(" `sign_up` creates a user who is signed in."),
        *_INTEGRATION_TEST,
        replace(
            "Three more tests send every operation of the API: to check who may call it, what it costs, and"
            " that it works behind\nPgBouncer. They",
            "Two more tests send every operation of the API: to check what it costs, and that it works behind\n"
            "PgBouncer. They",
        ),
        replace(
            "`OPERATIONS` has, for each operation, the status for an anonymous caller, another user, the owner"
            " and an administrator.\n",
            "",
        ),
        replace(
            "`request` is a body that succeeds. `costs` has",
            "In `OPERATIONS`, `request` is a body that succeeds. `costs` has",
        ),
        replace(
            "`insert` is one statement that inserts many rows; the caller is an\n"
            "administrator and has the lowest id of all users. `created_by` is the operation with which the owner"
            " creates a row.",
            "`insert` is one statement that inserts many rows.\n`created_by` is the operation that creates a row.",
        ),
        replace(
            "Name the `PUT` in `after` of its `GET`: the owner\nsends it first.",
            "Name the `PUT` in `after` of its `GET`: it is\nsent first.",
        ),
        *_OPERATIONS,
        substitute(r"Operation\(\n\+?\s+(request=.*)\n\+?\s+\)", r"Operation(\1)"),
        replace('costs={"": Cost(6)}', 'costs={"": Cost(5)}'),
        substitute(r"^- `SignedIn` queries the user(?:.*\n)+?(?=- A relationship)"),
        replace(
            '`select(Article.id, User.name.label("writer_name")).join(User)`',
            '`select(Article.id, Writer.name.label("writer_name")).join(Writer)`',
        ),
        replace("`/users/{user_id}/comments`", "`/articles/{article_id}/comments`"),
        replace("`20261127_3c9e5a70d1b8` makes", "`20261128_5b0c7e19d2a4` makes"),
        replace(
            " If only trusted callers read it, its class may allow\n`total=exact`, as `UserListParams` does.",
            " If only trusted callers read it, its class may allow\n`total=exact`.",
        ),
    ),
    "docs/api.md": (
        replace("Users and sign-in. ", ""),
        section("## Signing in"),
        replace("/users/7", "/notes/7"),
        replace("127.0.0.1:8000/users/1", "127.0.0.1:8000/notes/1"),
        substitute(r"^\| `POST /auth/token`.*\n(?:\| .*\n)+?(?=\| `GET /livez`)", _CALLS),
        replace("such as `/users`", "such as `/notes`"),
        replace(" The sign-in limits of the proxy in\n`compose.prod.yml` apply to `/auth/token` without a prefix."),
        replace(
            "| `exact` | `total`, counted to the end. Only `GET /users` allows it |",
            "| `exact` | `total`, counted to the end. A list must allow it |",
        ),
        replace("`created_at`, `id`, `name` or `email`, with", "`created_at`, `id` or `name`, with"),
        replace("searches names and addresses,", "searches names,"),
        replace(
            "refuses such a `q` with 422; other filters, such\nas `is_active`, make the list shorter",
            "refuses such a `q` with 422; other filters\nmake the list shorter",
        ),
        replace(", `/problems/invalid-credentials`"),
        replace("`/problems/email-taken`", "`/problems/note-taken`"),
        substitute(r"^curl -s 127.0.0.1:8000/users (?:.*\n)+\Z", _SESSION),
    ),
    "benchmarks/metrics.py": (
        replace("USERS", "NOTES"),
        replace("/users/", "/notes/"),
        replace("INSERT INTO users (email, name, password_hash)", "INSERT INTO notes (name)"),
        replace(" SELECT 'u' || n, 'U', 'x' FROM", " SELECT 'name' || n FROM"),
    ),
    "docs/architecture.md": (
        replace(", and\n`app/domains/auth/service.py` for an example."),
        replace("app/domains: auth, users", "app/domains: notes"),
        replace(" identity.py,"),
        replace("`headroom seed` and `headroom create-admin` find", "and `headroom seed` find"),
        replace("`make migrate`, and", "`make migrate` and"),
        lines("| who is calling |"),
    ),
    "docs/connections.md": (
        replace("`GET /users?offset=0`", "`GET /notes?offset=0`"),
        lines("| `headroom create-admin` |"),
        replace("| critical | `POST /auth/token` |", "| critical | routes that declare it |"),
    ),
    "docs/decisions/README.md": (lines("| [0012-sign-in-limits]"),),
    "docs/deploying.md": (
        replace("signs access tokens and cursors", "signs cursors"),
        replace(
            "at once, which signs\n  every user out, or after `ACCESS_TOKEN_SECONDS` (30 minutes), when every token of"
            " the old key has expired.",
            "every\n  cursor of the old key then becomes invalid.",
        ),
    ),
    "docs/expand-and-contract.md": (replace("`app/domains/users/models.py`", "The model of release 3:"),),
    "docs/kubernetes.md": (
        replace(
            "and after 100 failed sign-ins each of them gets 429\n([api.md](api.md#signing-in)).",
            "in the log and in limits of your own.",
        ),
        replace("No token becomes invalid:", "No cursor becomes invalid:"),
        replace(
            "After `ACCESS_TOKEN_SECONDS`, or at once if", "When clients have no old cursors any more, or at once if"
        ),
        replace("`GET /users/{id}`", "those of one row"),
    ),
    "docs/metrics.md": (
        replace(
            "SELECT users.id, users.name FROM users WHERE users.id =",
            "SELECT notes.id, notes.name FROM notes WHERE notes.id =",
        ),
        replace("%2Fusers%2F%7Buser_id%7D", "%2Fnotes%2F%7Bnote_id%7D"),
    ),
    "docs/migrations.md": (
        replace("20261127_3c9e5a70d1b8_users_and_sign_in.py", "20261128_5b0c7e19d2a4_notes.py"),
        replace("ix_users_name_id", "ix_notes_name_id"),
        replace('"users"', '"notes"'),
    ),
    "docs/production.md": (
        lines("| `PROXY_SIGN_IN_LIMIT`", "| create an administrator |"),
        replace("4. Create an administrator (below).\n5. ", "4. "),
        replace("\n6. Let [alerts]", "\n5. Let [alerts]"),
        replace("\n7. If the machine has swap", "\n6. If the machine has swap"),
        replace("\n8. Copy the key", "\n7. Copy the key"),
        replace("\n  Failed sign-ins are counted by this address. If", "\n  It is in the log. If"),
    ),
    "docs/read-replicas.md": (
        replace(
            ": a user may\n  have been deactivated a moment ago. Signing in, `SignedIn` and `GET /users/me` do so.",
            ": what\n  decides may have changed a moment ago.",
        ),
    ),
    "docs/runbooks.md": (
        replace(
            "| critical | Sign-in finds no connection, although it comes first:",
            "| critical | Such a request finds no connection, although it comes first:",
        ),
    ),
    "docs/swarm.md": (
        replace("two deploys, below; tokens stay valid", "two deploys, below; cursors stay valid"),
        replace(
            "After `ACCESS_TOKEN_SECONDS`, or at once if", "When clients have no old cursors any more, or at once if"
        ),
    ),
    "docs/testing.md": (
        replace('`ann = await make(User, name="Ann")`', '`note = await make(Note, name="first")`'),
        lines("| `sign_up` |"),
        replace(_TEST_OF_A_LIST, _TEST_OF_A_LIST_OF_NOTES),
        replace(_TEST_OF_A_CONFLICT, _TEST_OF_A_CONFLICT_OF_NOTES),
        replace("(sign_up: SignUp) -> None: ...", "(client: AsyncClient) -> None: ..."),
    ),
    "pyproject.toml": (
        substitute(r'^    "email-validator>=2.2",  .*\n'),
        substitute(r'^    "pwdlib.*\n(?=    "pydantic-settings)'),
        substitute(r'^    "pyjwt.*\n(?=    "python-multipart)'),
        replace("# the OAuth2 password form", "# bodies of forms"),
        replace("fields | identity | settings", "fields | settings"),
        lines('"app.identity",'),
        replace(', "(passwords) | (tokens)"'),
    ),
    "requirements/app.txt": (_locked(PACKAGES),),
    "requirements/dev.txt": (_locked(tuple(sorted({*PACKAGES} - {"cffi", "pycparser"})), ("cffi", "pycparser")),),
    "requirements/fastapi-suite.txt": (_locked((), PACKAGES),),
    "tests/integration/conftest.py": (lines("from tests.support.hashing"),),
    "tests/integration/database/test_standby.py": (
        substitute(r"^\n +# Access is decided on the primary\.\n(?: +.*\n)+"),
    ),
    "tests/integration/domains/test_answers_are_stored.py": (
        *_CALLER,
        functions("password_is_stored"),
        lines('"SignUp.password"', '"UserPatch.password"'),
        replace("Sends every field as an administrator and", "Sends every field and"),
    ),
    "tests/integration/migrations/test_old_release.py": (
        _TO_NOTES,
        replace("is_admin", "updated_at"),
        replace("test_users.py", "test_notes.py"),
        replace("*_sign_in.py", "*_notes.py"),
        replace("sa.String(80)", "sa.String(length=50)"),
        replace("sa.String(81)", "sa.String(length=51)"),
    ),
    "tests/integration/migrations/test_schema_versions.py": (
        _TO_NOTES,
        replace("is_admin", "updated_at"),
        replace("sa.Boolean()", "sa.DateTime(timezone=True)"),
        substitute(r"^CREATE_ADMIN = .*\n\n\n"),
        replace('[["seed"], CREATE_ADMIN], ids=["seed", "create-admin"]', '[["seed"]], ids=["seed"]'),
    ),
    "tests/integration/migrations/test_under_load.py": (_TO_NOTES,),
    "tests/integration/test_costs.py": (
        *_CALLER,
        functions("test_failed_sign_in_of_any_cause_sends_the_same_statements"),
        lines("from tests.support.postgres import connect"),
    ),
    "tests/integration/test_fixtures.py": (
        replace("from app.models import User", "from app.models import Note"),
        replace("make(User", "make(Note"),
        replace("get_one(User,", "get_one(Note,"),
    ),
    "tests/integration/test_migrations.py": (replace("ix_users_name_email_trgm", "ix_notes_name_trgm"),),
    "tests/integration/test_smoke_pgbouncer.py": (
        *_CALLER,
        replace('await person(client, "Owner", database_url)', "Caller(client)"),
        lines("assert response.status_code == OPERATIONS[operation].statuses[-1]"),
        replace("    assert response.is_success\n", "    assert response.is_success, response.text\n"),
        functions("test_users_behind_pgbouncer_are_as_written"),
    ),
    "tests/old_release/run.py": (replace(', "tests/integration/test_authorisation.py"'),),
    "tests/stack/test_contract.py": (_SEEDED,),
    "tests/stack/test_dumps.py": (_SEEDED, replace('("users", "sign_in_attempts")', '("notes", "schema_revisions")')),
    "tests/stack/test_external_postgres.py": (
        lines("from tests.support.people"),
        replace('await person(client, "Admin", database, is_admin=True)', "Caller(client)"),
        replace('await person(client, "Owner", database)', "Caller(client)"),
        replace("assert response.status_code == operation.statuses[-1]", "assert response.is_success"),
        replace("through the proxy, as an administrator.", "through the proxy."),
    ),
    "tests/stack/test_postgres_upgrade.py": (
        _SEEDED,
        replace('"alembic_version", "schema_revisions", "users"', '"alembic_version", "notes", "schema_revisions"'),
        replace(
            '{len(TABLES) + 1} tables, " in upgraded.stdout  # and sign_in_attempts',
            '{len(TABLES)} tables, " in upgraded.stdout',
        ),
        replace("with users.", "with notes."),
    ),
    "tests/stack/test_proxy.py": (
        substitute(r'^ATTACK = """\n(?:.*\n)+?"""\n+'),
        functions("test_sign_ins_of_one_client_are_limited_and_no_other_clients"),
    ),
    "tests/stack/test_schemathesis.py": (
        _SEEDED,
        functions("administrator_token"),
        lines('"--header",', 'f"Authorization: Bearer'),
        substitute(r"^# Generated ids are small.*\nADMIN_ID = .*\n"),
        lines('PASSWORD = "correct horse"', "from tests.support.postgres", "import httpx"),
    ),
    "tests/support/fixtures.py": (
        functions("SignUp", "sign_up"),
        lines("from tests.support.people"),
        replace("make(User", "make(Note"),
        replace("INSERT INTO users", "INSERT INTO notes"),
    ),
    "tests/support/factories.py": (
        replace('ann = await make(User, name="Ann")', 'note = await make(Note, name="first")'),
    ),
    "tests/support/operations.py": (
        lines("from tests.support.people"),
        replace("who may call it, an example", "an example"),
        substitute(r"^    `statuses` are those.*\n    the body,", "    `request` has the body,"),
        lines("statuses: tuple[int, int, int, int]"),
        substitute(r"^ANYONE = .*\n\n"),
        replace("Operation(statuses=ANYONE)", "Operation()"),
        substitute(r'^    "POST /auth/token"(?:.*\n)+?(?=^})'),
        substitute(r'^    "user_id": Parameter\((?:.*\n)+?    \),\n'),
        replace('    if isinstance(owner, Person):\n        ids["user_id"] = owner.id\n'),
        replace(" and the query for the signed-in user,", ","),
        replace(", or that has no JSON body, or that hashes a password.", ", or that has no JSON body."),
        replace("`test_authorisation.py`, `test_costs.py`", "`test_costs.py`"),
        lambda text: insert_before_end(text, "PARAMETERS", _rendered("parameters")),
        lambda text: insert_before_end(text, "OPERATIONS", _apply(_rendered("operations"), *_CALLS_OF_NOTES)),
    ),
    "tests/support/sample.py": (
        replace('"/users"', '"/notes"'),
        replace('"users"', '"notes"'),
        replace("`/users/{id}`", "`/notes/{id}`"),
        substitute(r'^    return \{"email".*\n', '    return {"name": key}\n'),
        substitute(r"^    data = new\(key\)\n(?:.*\n)+\Z", _CREATE),
    ),
    "tests/support/stacks.py": (lines('"PROXY_SIGN_IN_LIMIT"'),),
    "tests/unit/cli/test_main.py": (
        replace('"--users"', '"--notes"'),
        lines('(["headroom", "create-admin"'),
    ),
    "tests/unit/test_settings.py": (lines('"ACCESS_TOKEN_SECONDS=', '"SIGN_IN_WINDOW='),),
    "tests/unit/web/test_http_habits.py": (lines("[scheme] = document", 'assert scheme["flows"]'),),
    "ops/kubernetes/headroom/templates/NOTES.txt": (replace(", also for the limit of failed sign-ins:", ":"),),
    "tests/unit/ops/test_domain.py": (
        replace('(("users",), "exists")', '(("notes",), "exists")'),
        replace(
            '("writers", "user"), "app/models.py has a model User"',
            '("writers", "note"), "app/models.py has a model Note"',
        ),
    ),
    "tests/unit/test_docs.py": (
        replace('{"auth", "users"}', '{"notes"}'),
        replace('{"User"}', '{"Note"}'),
    ),
    "tests/unit/test_operations.py": (
        replace("import ANYONE, ", "import "),
        replace("statuses=ANYONE, "),
    ),
    "tests/unit/web/test_sessions.py": (
        lines("from app.web.auth"),
        substitute(r'^    @inner.get\("/me"\)\n(?:.+\n)+\n'),
        substitute(r'^    response = await client.get\(f"\{prefix\}/me"\)\n.*\n'),
    ),
    "tests/unit/web/test_openapi.py": (
        functions(
            "test_response_schema_has_no_password",
            "test_security_scheme_names_the_token_url",
            "test_operation_that_hashes_passwords_documents_server_busy",
        ),
        replace('{"GET /users"}', '{"GET /notes"}'),
    ),
    "ops/proxy/haproxy.cfg": (
        lines("acl is_sign_in", "http-request track-sc1", "acl too_many sc_http_req_rate(1,sign_ins)"),
        substitute(r"^backend sign_ins from clients\n.*\n\n"),
    ),
    "compose.prod.yml": (
        lines("PROXY_SIGN_IN_LIMIT"),
        replace("76 MB, and 64 MB for each of its two concurrent password hashes. Threads", "76 MB. Threads"),
    ),
    "ops/kubernetes/headroom/values.yaml": (replace("76 MB, and 64 MB for each of two password hashes.", "76 MB."),),
    "ops/docs/pictures.py": (
        replace('("/users/1", "/users/2", "/readyz")', '("/notes/1", "/notes/2", "/readyz")'),
        replace("users=1_000", "notes=1_000"),
    ),
    "tests/integration/ops/test_domain.py": (lines('"tests/integration/test_authorisation.py"'),),
    "tests/integration/ops/test_roles.py": (
        replace("(email, name, password_hash) VALUES ('a', 'a', '')", "(name) VALUES ('a')"),
        replace("uq_users_email", "uq_notes_name"),
        _TO_NOTES,
    ),
    **{f"ops/domain/templates/{name}.tmpl": edits for name, edits in TEMPLATE_EDITS.items()},
}


def part(root: Path) -> Part:
    """Return users and sign-in, as a part to take out after the example."""
    added = {NOTES.fill(path): _rendered(template) for path, template in FILES_OF_A_DOMAIN.items()}
    added |= {
        "app/cli/samples.py": (root / "ops/adopt/samples_notes.py.tmpl").read_text(encoding="utf-8"),
        FIRST_REVISION: _first_revision((root / example.FIRST_REVISION[0]).read_text(encoding="utf-8")),
    }
    return Part("ops/adopt/auth.py", FILES, EDITS, added)


def _first_revision(text: str) -> str:
    """Return the first revision of the template with notes in the place of users and sign-in."""
    upgrade = _rendered("upgrade").strip()
    return _apply(
        text,
        replace("Users and sign-in", "Notes"),
        replace("3c9e5a70d1b8", "5b0c7e19d2a4"),
        substitute(
            r'^    op.create_table\(\n        "users"(?:.*\n)+?(?=    if _ensure)', lambda _: f"    {upgrade}\n"
        ),
        replace("ix_users_name_email_trgm", "ix_notes_name_trgm"),
        replace('["name", "email"]', '["name"]'),
        replace(', "email": "gin_trgm_ops"'),
        replace('            "users",', '            "notes",'),
        lines('op.drop_table("sign_in_attempts")'),
        replace('op.drop_table("users")', 'op.drop_table("notes")'),
    )
