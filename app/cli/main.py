"""The parser of `headroom COMMAND`. A command is imported when it runs, so that `--help` does not wait for it."""

import argparse
import sys
from collections.abc import Sequence

from app.errors import HeadroomError

EXAMPLES = """\
try it:
  headroom up                      everything on this machine, until Ctrl-C
  headroom seed                    in another terminal: users and posts
  headroom create-admin --email you@example.com

in production, after `alembic upgrade head`:
  headroom budget --suggest        does the pool fit? the largest that does
  headroom api                     one replica; `headroom exporter` serves its metrics

Settings are environment variables, or lines in .env: `headroom settings` lists them.
Complete commands with Tab:  source <(headroom completion bash)    (zsh and fish too)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Return 0 if it succeeded, otherwise 1 after printing the reason on stderr."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (HeadroomError, OSError) as error:
        print(f"headroom {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headroom",
        description="A FastAPI + PostgreSQL stack with a connection budget.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parser.set_defaults(commands=commands.choices)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")

    up = add("up", "run the whole stack as local processes, with an embedded PostgreSQL")
    up.set_defaults(run=_up)

    dev = add("dev", "run the API for development: one worker that reloads, and warnings")
    dev.add_argument("--sql", action="store_true", help="log each statement, with its route and its line of code")
    dev.set_defaults(run=_dev)

    api = add("api", "run one replica of the API: WEB_CONCURRENCY workers under Gunicorn")
    api.set_defaults(run=_api)

    exporter = add("exporter", "serve the metrics of every replica on this host")
    exporter.set_defaults(run=_exporter)

    budget = add("budget", "show the connection budget; exit with 1 if it is exceeded")
    source = budget.add_mutually_exclusive_group()
    source.add_argument("--offline", action="store_true", help="use the settings alone, without querying the server")
    source.add_argument(
        "--file",
        metavar="FILE",
        help="use a Compose file, or Kubernetes manifests such as those of `helm template`; - for stdin",
    )
    budget.add_argument("--json", action="store_true", help="print JSON")
    budget.add_argument("--suggest", action="store_true", help="also print the largest pool that fits")
    budget.set_defaults(run=_budget)

    seed = add("seed", "add plausible data to the database")
    seed.add_argument("--users", type=_count, default=1_000, metavar="N", help="users to add (default: %(default)s)")
    seed.add_argument("--posts", type=_count, default=5_000, metavar="N", help="posts to add (default: %(default)s)")
    seed.set_defaults(run=_seed)

    admin = add("create-admin", "create an administrator; prompts for the password, or reads stdin")
    admin.add_argument("--email", required=True)
    admin.add_argument("--name", default="Administrator", help="(default: %(default)s)")
    admin.set_defaults(run=_create_admin)

    schema = add(
        "schema", "show the revisions of this release and of the database; exit with 1 if this release may not run"
    )
    schema.add_argument("--json", action="store_true", help="print JSON")
    schema.set_defaults(run=_schema)

    backfill = add("backfill", "run a back-fill before its migration, next to a live system")
    backfill.add_argument("name", nargs="?", metavar="NAME", help="(default: list the back-fills and their progress)")
    backfill.set_defaults(run=_backfill)

    routes = add("routes", "list the API's operations: fast or why not, sessions, commits")
    routes.set_defaults(run=_routes)

    settings = add("settings", "print the table of settings")
    settings.set_defaults(run=_settings)

    metrics = add("metrics", "print the table of metrics")
    metrics.set_defaults(run=_metrics)

    completion = add("completion", "print a script that completes commands in a shell")
    completion.add_argument("shell", choices=["bash", "zsh", "fish"], help="source <(headroom completion bash)")
    completion.set_defaults(run=_completion)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text!r}")
    return int(text)


def _up(options: argparse.Namespace) -> None:
    from app.cli.up import up

    up()


def _dev(options: argparse.Namespace) -> None:
    import math

    from app.cli.up import up

    server = ["-m", "app.development.server", *(["--sql"] if options.sql else [])]
    # Without a limit: code that does not start may be fixed at any time.
    up({"api": server}, ready_within=math.inf)


def _api(options: argparse.Namespace) -> None:
    import os
    from pathlib import Path

    from app.paths import GUNICORN_CONFIG
    from app.settings import load_settings

    # Gunicorn and Uvicorn read WEB_CONCURRENCY themselves, and fail with a traceback if it is wrong or empty.
    load_settings()
    if not os.environ.get("WEB_CONCURRENCY"):
        os.environ.pop("WEB_CONCURRENCY", None)
    gunicorn = Path(sys.executable).with_name("gunicorn")
    os.execv(gunicorn, [str(gunicorn), "-c", str(GUNICORN_CONFIG)])  # noqa: S606


def _exporter(options: argparse.Namespace) -> None:
    from app.exporter.app import serve
    from app.observability.logging import configure_logging
    from app.settings import load_settings

    settings = load_settings()
    configure_logging(format=settings.log_format, level=settings.log_level)
    serve(settings)


def _budget(options: argparse.Namespace) -> None:
    from app.cli.budget import show_budget

    show_budget(offline=options.offline, file=options.file, as_json=options.json, suggest=options.suggest)


def _seed(options: argparse.Namespace) -> None:
    import asyncio
    from time import monotonic

    from app.cli.samples import seed
    from app.cli.seed import APPLICATION_NAME
    from app.database.schema_version import check_schema
    from app.settings import load_settings

    settings = load_settings()
    url = settings.require_migration_database_url()
    if url.get_backend_name() == "postgresql":
        deadline = monotonic() + settings.startup_timeout
        asyncio.run(check_schema(url, deadline=deadline, application_name=APPLICATION_NAME))
    password = seed(url=url, users=options.users, posts=options.posts)
    print(f"{options.users} users and {options.posts} posts added; every new user has the password {password}")


def _create_admin(options: argparse.Namespace) -> None:
    from app.cli.create_admin import run_create_admin

    run_create_admin(email=options.email, name=options.name)


def _schema(options: argparse.Namespace) -> None:
    from app.cli.schema import show_schema

    show_schema(as_json=options.json)


def _backfill(options: argparse.Namespace) -> None:
    from app.cli.backfill import list_backfills, run_backfill

    if options.name is None:
        list_backfills()
    else:
        run_backfill(options.name)


def _routes(options: argparse.Namespace) -> None:
    from app.cli.routes import show_routes

    show_routes()


def _settings(options: argparse.Namespace) -> None:
    from app.settings import settings_table

    print(settings_table())


def _completion(options: argparse.Namespace) -> None:
    from app.cli.completion import completion

    print(completion("headroom", options.commands, options.shell), end="")


def _metrics(options: argparse.Namespace) -> None:
    from app.observability.catalogue import metrics_table

    print(metrics_table())


if __name__ == "__main__":
    sys.exit(main())
