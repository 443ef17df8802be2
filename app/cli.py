"""The command line: `headroom <command>`."""

import argparse
import sys
from collections.abc import Sequence

from app.errors import HeadroomError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it did what it says, else 1 and a line on stderr that says why not."""
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
        prog="headroom", description="A FastAPI + PostgreSQL stack that counts its connections."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="run everything as local processes, with a PostgreSQL of its own")
    up.set_defaults(run=_up)

    api = commands.add_parser("api", help="serve the API: one replica, with WEB_CONCURRENCY workers under Gunicorn")
    api.set_defaults(run=_api)

    exporter = commands.add_parser("exporter", help="serve the metrics of every replica on this host")
    exporter.set_defaults(run=_exporter)

    budget = commands.add_parser("budget", help="show the connection budget; exit status 1 when it is exceeded")
    budget.add_argument("--offline", action="store_true", help="go by the settings alone, without asking the server")
    budget.add_argument("--json", action="store_true", help="print it for a program")
    budget.add_argument("--suggest", action="store_true", help="print the largest pool that fits, too")
    budget.set_defaults(run=_budget)

    seed = commands.add_parser("seed", help="fill the database with plausible data")
    seed.add_argument("--users", type=_count, default=1_000, metavar="N", help="users to add (default: %(default)s)")
    seed.add_argument("--posts", type=_count, default=5_000, metavar="N", help="posts to add (default: %(default)s)")
    seed.set_defaults(run=_seed)

    admin = commands.add_parser(
        "create-admin", help="create an administrator; the password is asked for, or read from stdin"
    )
    admin.add_argument("--email", required=True)
    admin.add_argument("--name", default="Administrator", help="(default: %(default)s)")
    admin.set_defaults(run=_create_admin)

    settings = commands.add_parser("settings", help="print the table of settings")
    settings.set_defaults(run=_settings)

    metrics = commands.add_parser("metrics", help="print the table of metrics")
    metrics.set_defaults(run=_metrics)
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


# A command imports what it needs when it runs: `headroom --help` should not wait for SQLAlchemy.


def _up(options: argparse.Namespace) -> None:
    from app.local import up

    up()


def _api(options: argparse.Namespace) -> None:
    import os
    from pathlib import Path

    from app.settings import load_settings

    # Here and not only in the configuration file: Gunicorn reads WEB_CONCURRENCY itself, earlier, and with a traceback.
    load_settings()
    configuration = Path(__file__).parent.parent / "ops/gunicorn/gunicorn.conf.py"
    gunicorn = Path(sys.executable).with_name("gunicorn")
    os.execv(gunicorn, [str(gunicorn), "-c", str(configuration)])  # noqa: S606


def _exporter(options: argparse.Namespace) -> None:
    from app import exporter
    from app.observability.logging import configure_logging
    from app.settings import load_settings

    settings = load_settings()
    configure_logging(format=settings.log_format, level=settings.log_level)
    exporter.serve(settings)


def _budget(options: argparse.Namespace) -> None:
    import asyncio
    import json

    from app import limits
    from app.errors import BudgetExceeded
    from app.settings import load_settings

    settings = load_settings()
    facts = limits.declared(settings) if options.offline else asyncio.run(limits.asked(settings))
    budget = facts.budget
    suggestion = budget.suggest()
    if options.json:
        document = budget.as_dict() | {"observed": facts.observed, "sources": facts.sources, "remarks": facts.remarks}
        if options.suggest:
            document["suggestion"] = suggestion and suggestion.variables
        print(json.dumps(document, indent=2))
    else:
        print(budget.table(), *facts.notes, sep="\n")
        if options.suggest and suggestion:
            print("the largest pool that fits:", *(f"{name}={value}" for name, value in suggestion.variables.items()))
        elif options.suggest:
            print("no pool fits: there is not even one connection a worker")
    if budget.over:
        raise BudgetExceeded("\n".join(budget.complaints))


def _seed(options: argparse.Namespace) -> None:
    from app.seed import seed
    from app.settings import load_settings

    password = seed(url=load_settings().require_migration_database_url(), users=options.users, posts=options.posts)
    print(f"{options.users} users and {options.posts} posts added; each of these users has the password {password}")


def _create_admin(options: argparse.Namespace) -> None:
    import asyncio
    import getpass

    from pydantic import ValidationError

    from app.database import Database, make_engine
    from app.domains.users.schemas import SignUp
    from app.domains.users.service import create_admin
    from app.settings import load_settings

    url = load_settings().require_database_url()
    password = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    try:
        data = SignUp(email=options.email, name=options.name, password=password)
    except ValidationError as error:
        complaints = "; ".join(f"{complaint['loc'][0]}: {complaint['msg']}" for complaint in error.errors())
        raise HeadroomError(complaints) from None

    async def create() -> None:
        engine = make_engine(url=url, application_name="headroom:create-admin", pool_size=1, max_overflow=0)
        try:
            await create_admin(Database(engine), data)
        finally:
            await engine.dispose()

    asyncio.run(create())
    print(f"{data.email} is an administrator")


def _settings(options: argparse.Namespace) -> None:
    from app.settings import settings_table

    print(settings_table())


def _metrics(options: argparse.Namespace) -> None:
    from app.observability.catalogue import metrics_table

    print(metrics_table())


if __name__ == "__main__":
    sys.exit(main())
