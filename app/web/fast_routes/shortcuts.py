"""Shortcuts around middlewares of FastAPI that do nothing for most requests."""

import sys
from contextlib import AsyncExitStack
from copy import copy
from typing import TYPE_CHECKING, Any

from fastapi.routing import APIRouter
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.web.fast_routes import _fastapi as private
from app.web.fast_routes.plan import Answer
from app.web.operation import exchange_of

if TYPE_CHECKING:
    from app.web.fast_routes.dispatcher import Dispatcher


class OuterShortcut:
    """Passes by FastAPI's three outermost middlewares. They see a request only if an exception leaves the others.

    They would record whether the response has begun. The application's own outermost middleware does so too.
    """

    def __init__(self, outermost: Any, inner: ASGIApp) -> None:
        self.app = outermost
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http" or private.MAX_BODY_SIZE_SCOPE_KEY in scope:
            await self.app(scope, receive, send)
            return
        try:
            await self._inner(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - raised again
            await self._handle(error, scope, receive, send)

    async def _handle(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the three middlewares handle an exception, as if it had passed through them. They raise it again."""
        exchange = exchange_of(scope)
        has_begun = exchange is not None and exchange.status != 0

        async def failed(scope: Scope, receive: Receive, send: Send) -> None:
            if has_begun:
                await send({"type": "http.response.start", "status": 500, "headers": []})
            raise error

        async def ignore(message: Message) -> None:
            pass

        outermost, middle = copy(self.app), copy(self.app.app)
        outermost.app, middle.app = middle, failed
        await outermost(scope, receive, ignore if has_begun else send)


class InnerShortcut:
    """Runs plans outside of FastAPI's ExceptionMiddleware and AsyncExitStackMiddleware, and does what the two would do.

    To pass through them takes as long as half of a plan.
    """

    def __init__(self, app: ExceptionMiddleware, router: APIRouter, dispatcher: "Dispatcher") -> None:
        self.app = app
        self._router = router
        self._dispatcher = dispatcher
        self._handlers = private.handlers_of(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request's operation by its plan, or pass the request on."""
        dispatcher = self._dispatcher
        if scope["type"] != "http" or self._router.middleware_stack is not dispatcher:
            await self.app(scope, receive, send)
            return
        # Before the rest of the scope: its keys are in FastAPI's order.
        scope["starlette.exception_handlers"] = self._handlers
        file_stack = scope[private.FILE_STACK_KEY] = AsyncExitStack()
        plan = dispatcher.select(scope)
        if plan is None:
            await self.app(scope, receive, send)
            return
        dispatcher.taken += 1
        request, answer = Request(scope, receive, send), Answer(send, self._handlers)
        try:
            try:
                try:
                    await plan.answer(request, answer)
                except Exception as error:  # noqa: BLE001 - raised again if it has no handler
                    await answer.handle(error, request)
            except BaseException:
                if not (private.is_used(file_stack) and await file_stack.__aexit__(*sys.exc_info())):
                    raise
            else:
                if private.is_used(file_stack):
                    await file_stack.aclose()
        except Exception as error:  # noqa: BLE001 - raised again if it has no handler
            # Those that a handler has raised. FastAPI's ExceptionMiddleware passes on a request of its own.
            await answer.handle(error, Request(scope, receive, send))


def with_shortcuts(stack: ASGIApp, router: APIRouter, dispatcher: "Dispatcher | None") -> ASGIApp:
    """Return the middleware stack of an application, with the shortcuts that are possible in it.

    Without a dispatcher in its router, an application has no fast routes.
    """
    if dispatcher is None:
        return stack
    _install_inner(stack, router, dispatcher)
    if (inner := private.inside_outer_middlewares(stack)) is not None and getattr(inner, "records_exchange", False):
        return OuterShortcut(stack, inner)
    return stack


def _install_inner(stack: ASGIApp, router: APIRouter, dispatcher: "Dispatcher") -> None:
    """Put a shortcut around FastAPI's innermost two middlewares, if nothing is between them and the router."""
    outer: Any = stack
    while (inner := getattr(outer, "app", None)) is not None:
        if isinstance(inner, InnerShortcut):
            return
        if isinstance(inner, ExceptionMiddleware):
            innermost = inner.app
            if private.are_inner_middlewares(inner, innermost) and getattr(innermost, "app", None) is router:
                outer.app = InnerShortcut(inner, router, dispatcher)
            return
        outer = inner
