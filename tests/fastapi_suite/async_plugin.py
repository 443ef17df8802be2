"""pytest plugin: rewrite the suite's operations and dependencies to `async def`, with a return annotation.

FastAPI's suite declares most of them as `def` without a return type. Asynchronous ones take other branches: of FastAPI,
and of fast routes. The rewrite makes some tests fail; what counts is that the same tests fail with fast routes.
FASTAPI_SUITE is the folder of the suite.
"""

import ast
import importlib.machinery
import os
from collections.abc import Iterator
from typing import Any

import _pytest.assertion.rewrite as assertion_rewrite

SUITE = os.environ["FASTAPI_SUITE"].rstrip("/") + "/"
VERBS = {"get", "post", "put", "delete", "patch", "options", "head", "trace", "api_route"}
# With one of these arguments, a return annotation would change the operation.
RESPONSE_ARGUMENTS = {"response_class", "response_model", "status_code"}


def is_generator(function: ast.AST) -> bool:
    """Return True if the function itself yields, not a function inside of it."""
    return any(isinstance(node, (ast.Yield, ast.YieldFrom)) for node in _own_nodes(function))


def _own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from _own_nodes(child)


class _Names(ast.NodeVisitor):
    """Collects the functions that are given to Depends() or Security(), and those that the module itself calls."""

    def __init__(self) -> None:
        self.dependencies: set[str] = set()
        self.called: set[str] = set()

    def visit_Call(self, call: ast.Call) -> None:
        if isinstance(call.func, ast.Name):
            if call.func.id in ("Depends", "Security"):
                given = [*call.args[:1], *(keyword.value for keyword in call.keywords if keyword.arg == "dependency")]
                self.dependencies |= {value.id for value in given if isinstance(value, ast.Name)}
            else:
                self.called.add(call.func.id)
        self.generic_visit(call)


class _Rewriter(ast.NodeTransformer):
    def __init__(self, names: _Names) -> None:
        self._names = names

    def visit_FunctionDef(self, function: ast.FunctionDef) -> ast.AST:
        self.generic_visit(function)
        is_operation = _is_operation(function)
        if is_operation:
            _annotate(function)
        is_dependency = function.name in self._names.dependencies and not function.decorator_list
        if not (is_operation or is_dependency) or is_generator(function) or function.name in self._names.called:
            return function
        fields: dict[str, Any] = {name: getattr(function, name, None) for name in function._fields}
        return ast.copy_location(ast.AsyncFunctionDef(**fields), function)

    def visit_AsyncFunctionDef(self, function: ast.AsyncFunctionDef) -> ast.AST:
        self.generic_visit(function)
        if _is_operation(function):
            _annotate(function)
        return function


def _is_operation(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(
        isinstance(decorator, ast.Call)
        and isinstance(decorator.func, ast.Attribute)
        and decorator.func.attr in VERBS
        and decorator.args
        for decorator in function.decorator_list
    )


def _annotate(function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    """Give an operation without a return annotation `-> Any`, unless its decorator says what it returns."""
    arguments = {
        keyword.arg
        for decorator in function.decorator_list
        if isinstance(decorator, ast.Call)
        for keyword in decorator.keywords
    }
    if function.returns is None and not is_generator(function) and not arguments & RESPONSE_ARGUMENTS:
        function.returns = ast.parse("__import__('typing').Any", mode="eval").body


def rewrite(tree: ast.Module) -> ast.Module:
    """Return the module with its operations and dependencies rewritten."""
    names = _Names()
    names.visit(tree)
    rewritten: ast.Module = ast.fix_missing_locations(_Rewriter(names).visit(tree))
    return rewritten


# pytest compiles test modules itself, Python all others.
_rewrite_asserts = assertion_rewrite.rewrite_asserts
_source_to_code = importlib.machinery.SourceFileLoader.source_to_code


def _rewrite_test_module(mod: ast.Module, source: bytes, module_path: Any = None, config: Any = None) -> None:
    if module_path and str(module_path).startswith(SUITE):
        rewrite(mod)
    _rewrite_asserts(mod, source, module_path, config)


def _compile(self: Any, data: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
    if str(path).startswith(SUITE):
        return compile(rewrite(ast.parse(data, str(path))), str(path), "exec", dont_inherit=True)
    return _source_to_code(self, data, path, *args, **kwargs)


assertion_rewrite.rewrite_asserts = _rewrite_test_module
importlib.machinery.SourceFileLoader.source_to_code = _compile  # type: ignore[method-assign]
