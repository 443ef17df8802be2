"""Finds code that holds a connection while it waits for something else than the database.

It measures no time. Whenever the task that holds a connection waits, the frames of its coroutines show the reason.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import asyncpg
import psycopg
import sqlalchemy
from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from app.paths import PROJECT_ROOT

_HELD = "headroom.development.held"
_OWN = str(PROJECT_ROOT / "app/database")


def _folder(module: ModuleType) -> str:
    return str(Path(module.__file__ or "").parent)


# Frames of these files do not show the reason of a wait: the frame around them does.
_NEUTRAL = (_folder(asyncio), _folder(sqlalchemy), contextlib.__file__)
_DATABASE = (_OWN, _folder(asyncpg), _folder(psycopg))


def watch_holders(engine: AsyncEngine, report: Callable[[str], None]) -> None:
    """Call `report` when a task that has a connection of the engine waits for something else; once per checkout.

    Its argument is the line of the project's code: "file:line in function". Reads of several requests share no
    statement from now on.
    """

    def checked_out(connection: DBAPIConnection, record: ConnectionPoolEntry, proxy: PoolProxiedConnection) -> None:
        task = asyncio.current_task()
        if task is not None:
            record.info[_HELD] = held = _Held(task, report)
            asyncio.get_running_loop().call_soon(held.check)

    def checked_in(connection: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
        if (held := record.info.pop(_HELD, None)) is not None:
            held.released = True

    event.listen(engine.sync_engine, "checkout", checked_out)
    event.listen(engine.sync_engine, "checkin", checked_in)


class _Held:
    """A checked-out connection, and the task that holds it."""

    def __init__(self, task: "asyncio.Task[Any]", report: Callable[[str], None]) -> None:
        self.released = False
        self._task = task
        self._report = report

    def check(self, _: object = None) -> None:
        """Look at what the task waits for, and again when that wait is over."""
        if self.released or self._task.done():
            return
        future = _awaited(self._task)
        if future is None or future.done():  # it is about to run
            asyncio.get_running_loop().call_soon(self.check)
            return
        frames = list(_frames(self._task))
        # The innermost frame that says anything.
        telling = next((frame for frame in reversed(frames) if not _file(frame).startswith(_NEUTRAL)), None)
        if telling is None or _file(telling).startswith(_DATABASE):
            future.add_done_callback(self.check)
        else:
            self._report(_place(frames, telling))


def _awaited(task: "asyncio.Task[Any]") -> "asyncio.Future[Any] | None":
    """Return the future that the task waits for; None if the task is about to run."""
    return getattr(task, "_fut_waiter", None)


def _frames(task: "asyncio.Task[Any]") -> Iterator[FrameType]:
    """Yield the frames of the coroutines that wait for each other, from the task's own to the innermost."""
    waiting: Any = task.get_coro()
    while waiting is not None:
        frame = next((found for name in _FRAMES if (found := getattr(waiting, name, None)) is not None), None)
        if frame is not None:
            yield frame
        waiting = next((found for name in _AWAITED if (found := getattr(waiting, name, None)) is not None), None)
        if frame is not None and _file(frame) == contextlib.__file__ and not hasattr(waiting, "cr_await"):
            # `async with` on a generator: the object that steps the generator does not refer to it.
            waiting = getattr(frame.f_locals.get("self"), "gen", None)
    if isinstance(future := _awaited(task), asyncio.Task):
        yield from _frames(future)


# Of coroutines, generators and asynchronous generators.
_FRAMES = ("cr_frame", "gi_frame", "ag_frame")
_AWAITED = ("cr_await", "gi_yieldfrom", "ag_await")


def _file(frame: FrameType) -> str:
    return frame.f_code.co_filename


def _place(frames: list[FrameType], telling: FrameType) -> str:
    """Return the innermost line of the project, or that of a library that waits without one."""
    root = str(PROJECT_ROOT)
    own = [frame for frame in frames if _file(frame).startswith(root) and "site-packages" not in _file(frame)]
    own = [frame for frame in own if not _file(frame).startswith(_OWN)]
    frame = own[-1] if own else telling
    file = Path(_file(frame))
    name = file.relative_to(root) if file.is_relative_to(root) else file
    return f"{name}:{frame.f_lineno} in {frame.f_code.co_name}"
