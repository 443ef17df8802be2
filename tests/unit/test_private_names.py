"""The private names of dependencies: which file uses which, that they exist, and that their versions are bounded."""

import ast
import asyncio
import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest
from alembic.runtime.migration import MigrationContext
from fastapi import APIRouter, Request
from fastapi._compat import ModelField
from prometheus_client import Counter, Histogram, values
from pydantic.fields import FieldInfo
from sqlalchemy import Integer, column, create_engine, insert, select, table, update
from sqlalchemy.orm import Session
from sqlalchemy.pool import Pool, QueuePool
from uvicorn_worker import UvicornWorker

from app.paths import PROJECT_ROOT

FOLDERS = ("app", "ops", "migrations")
# The interface of named tuples, and os._exit().
PUBLIC = {"_asdict", "_exit", "_fields", "_make", "_replace"}


class Uses(NamedTuple):
    """The private names of a distribution that a file uses."""

    distribution: str
    names: set[str]


# Every file that uses private names. No other file may.
USES = {
    "app/database/_sqlalchemy.py": Uses(
        "sqlalchemy",
        {
            "_ConnectionFairy",
            "_ConnectionRecord",
            "_annotations",
            "_bind_processors",
            "_cached_result_processor",
            "_close_special",
            "_connection_record",
            "_distinct",
            "_distinct_on",
            "_fetch_clause",
            "_for_update_arg",
            "_group_by_clauses",
            "_having_criteria",
            "_independent_ctes",
            "_is_hard_or_soft_invalidated",
            "_is_server_side",
            "_limit_clause",
            "_offset_clause",
            "_ordered_columns",
            "_pool",
            "_post_values_clause",
            "_prefixes",
            "_raw_columns",
            "_result_columns",
            "_returning",
            "_select_names",
            "_statement_hints",
            "_suffixes",
            "_variant_mapping",
            "_with_options",
        },
    ),
    # The next two have subclasses of SQLAlchemy's Pool and Session.
    "app/database/pool.py": Uses(
        "sqlalchemy",
        {
            "_create_connection",
            "_creator",
            "_dialect",
            "_dispatch",
            "_do_get",
            "_do_return_conn",
            "_invalidate_time",
            "_is_asyncio",
            "_orig_logging_name",
            "_reset_on_return",
        },
    ),
    "app/database/write_session.py": Uses("sqlalchemy", {"_autobegin_t"}),
    "app/database/answers.py": Uses("asyncpg", {"_loop"}),
    "app/database/engine.py": Uses("sqlalchemy", {"_initialize"}),
    "app/database/liveness.py": Uses("asyncpg", {"_transport"}),
    "app/observability/instruments.py": Uses("prometheus-client", {"_buckets", "_sum", "_upper_bounds", "_value"}),
    "app/observability/mmap_value.py": Uses("prometheus-client", {"_file", "_key", "_m", "_positions", "_value"}),
    "app/server/protocol.py": Uses("uvicorn", {"_should_upgrade", "_start_asgi_task"}),
    "app/server/worker.py": Uses("uvicorn-worker", {"_install_sigquit_handler", "_serve"}),
    "app/web/fast_routes/_fastapi.py": Uses(
        "fastapi",
        {
            "_FASTAPI_SCOPE_KEY",
            "_IncludedRouter",
            "_api",
            "_asgi",
            "_body",
            "_body_limit",
            "_compat",
            "_exception_handler",
            "_exception_handlers",
            "_exit_callbacks",
            "_extract_endpoint_context",
            "_get_cache_key",
            "_get_form_models",
            "_get_oauth_scopes",
            "_get_param_aliases",
            "_get_param_model",
            "_is_async_gen_callable",
            "_is_coroutine_callable",
            "_is_disconnected",
            "_is_gen_callable",
            "_is_json_field",
            "_json",
            "_lookup_exception_handler",
            "_operation",
            "_receive",
            "_regenerate_error_with_loc",
            "_resolve_form_limits",
            "_route_selected",
            "_run_sync_endpoint",
            "_should_embed_body_fields",
            "_solve_generator",
            "_status_handlers",
            "_stream_consumed",
            "_type_adapter",
            "_utils",
            "_validate_value_with_model_field",
            "_validation_failed",
        },
    ),
    "migrations/kinds.py": Uses("alembic", {"_per_migration"}),
    # Read for each request: a function around it would cost more than the rest of the check.
    "app/web/fast_routes/dispatcher.py": Uses("fastapi", {"_routes_version"}),
}
# Of Python itself, in the helpers for development: without them, a warning is missing.
PYTHON = {"app/development/holding.py": {"_fut_waiter"}}
# Starlette is half of what fast routes know by heart; FairServer replaces parts of uvicorn's server.
ALSO_BOUNDED = {"starlette", "uvicorn"}


def is_private(name: str) -> bool:
    return re.fullmatch(r"_[A-Za-z]\w*", name) is not None and not name.endswith("__") and name not in PUBLIC


def assigned_attributes(tree: ast.AST) -> Iterator[str]:
    """Yield the attributes that the code creates on `self`. `self.x += 1` creates none."""
    changed = {id(node.target) for node in ast.walk(tree) if isinstance(node, ast.AugAssign)}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls"), ctx=ast.Store()) if id(node) not in changed:
                yield node.attr


def defined_names(tree: ast.AST) -> set[str]:
    names = set(assigned_attributes(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def names_of_bases(path: Path, tree: ast.Module) -> Iterator[str]:
    """Yield what the file's classes define although a base class of a dependency has it too."""
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        defined = {name for name in defined_names(node) if is_private(name)}
        if defined:
            module = ".".join(path.relative_to(PROJECT_ROOT).with_suffix("").parts)
            class_ = getattr(importlib.import_module(module), node.name)
            own = {*FOLDERS, "builtins"}
            bases = [base for base in class_.__mro__ if base.__module__.partition(".")[0] not in own]
            inherited = {name for base in bases for name in (*vars(base), *getattr(base, "__annotations__", ()))}
            yield from defined & inherited


def used_names(path: Path) -> set[str]:
    """Return the private names of dependencies in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = defined_names(tree)
    found = set(names_of_bases(path, tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr not in own:
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("app"):
            found |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {part for alias in node.names for part in alias.name.split(".")}
        elif isinstance(node, ast.Call):
            found |= {keyword.arg for keyword in node.keywords if keyword.arg}
            if isinstance(node.func, ast.Name) and node.func.id in {"getattr", "hasattr", "setattr", "attrgetter"}:
                found |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
    return {name for name in found if is_private(name)}


def test_private_names_are_used_only_where_they_are_listed() -> None:
    files = [path for folder in FOLDERS for path in sorted((PROJECT_ROOT / folder).rglob("*.py"))]

    found = {str(path.relative_to(PROJECT_ROOT)): names for path in files if (names := used_names(path))}
    assert found == {file: uses.names for file, uses in USES.items()} | PYTHON


def test_distributions_with_used_private_names_have_an_upper_bound() -> None:
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounded = {re.split(r"[\[<>=]", line)[0] for line in project["dependencies"] if "<" in line}

    assert {uses.distribution for uses in USES.values()} | ALSO_BOUNDED <= bounded


async def test_private_names_of_python_exist() -> None:
    assert hasattr(asyncio.current_task(), "_fut_waiter")


def test_private_names_of_sqlalchemy_exist() -> None:
    engine = create_engine("sqlite://", poolclass=QueuePool, _initialize=False)  # TypeError if it has no such option
    books = table("books", column("id", Integer))
    statement = select(books).with_for_update()
    hinted = select(books).with_statement_hint("text")
    assert [text for _, text in hinted._statement_hints] == ["text"]
    compiled: Any = statement.compile()
    proxy: Any = engine.raw_connection()
    owners = {
        proxy: {"_connection_record", "_pool", "_close_special"},
        proxy._connection_record: {"_is_hard_or_soft_invalidated"},
        compiled: {"_result_columns", "_ordered_columns", "_bind_processors"},
        statement: {
            "_raw_columns",
            "_with_options",
            "_for_update_arg",
            "_prefixes",
            "_suffixes",
            "_statement_hints",
        },
        update(books): {"_returning"},
        insert(books): {"_independent_ctes", "_post_values_clause", "_select_names"},
        books.c.id: {"_annotations"},
        Integer(): {"_cached_result_processor", "_variant_mapping"},
        engine.pool: USES["app/database/pool.py"].names - {"_dispatch", "_is_asyncio"},
        Pool: {"_is_asyncio"},
        Session: USES["app/database/write_session.py"].names,
    }
    try:
        for owner, names in owners.items():
            assert [name for name in sorted(names) if not hasattr(owner, name)] == []
        assert "_dispatch" in Pool.__init__.__annotations__
    finally:
        proxy.close()
        engine.dispose()


def test_private_names_of_asyncpg_and_uvicorn_worker_exist() -> None:
    names = USES["app/database/liveness.py"].names | USES["app/database/answers.py"].names
    assert names <= set(asyncpg.Connection.__slots__)
    assert USES["app/server/worker.py"].names <= vars(UvicornWorker).keys()


def test_private_names_of_alembic_exist() -> None:
    assert USES["migrations/kinds.py"].names <= inspect.signature(MigrationContext.begin_transaction).parameters.keys()


def test_private_names_of_fastapi_exist() -> None:
    """Those that its import does not check."""
    request = Request({"type": "http"})

    assert all(hasattr(request, name) for name in ("_is_disconnected", "_receive", "_stream_consumed"))
    assert hasattr(AsyncExitStack(), "_exit_callbacks")
    assert hasattr(APIRouter(), "_routes_version")
    assert hasattr(ModelField(field_info=FieldInfo(annotation=int), name="n"), "_type_adapter")


def test_private_names_of_prometheus_client_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    value: Any = values.MultiProcessValue(lambda: "1")("counter", "name", "name", (), (), "help")

    histogram = Histogram("seconds", "help", registry=None)
    assert {"_buckets", "_sum", "_upper_bounds"} <= vars(histogram).keys()
    assert "_value" in vars(Counter("events", "help", registry=None))
    assert {"_file", "_key", "_value"} <= vars(value).keys()
    assert {"_m", "_positions"} <= vars(value._file).keys()
    value._file.close()
