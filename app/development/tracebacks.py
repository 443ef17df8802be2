"""Tracebacks with the project's own lines only."""

import logging
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from app.paths import PROJECT_ROOT


class ShortFormatter(logging.Formatter):
    """Formats lines for a terminal. Of a traceback it writes the project's frames, and the last one."""

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name is logging's
        """Return the traceback of the exception and of its causes, without the frames of libraries."""
        found = traceback.TracebackException(*ei)
        for each in _chain(found):
            kept = [frame for frame in each.stack[:-1] if _is_own(frame.filename)] + each.stack[-1:]
            hidden = len(each.stack) - len(kept)
            each.stack = traceback.StackSummary.from_list(kept)
            if hidden:
                each.stack.insert(
                    0, traceback.FrameSummary(f"({hidden} frames of libraries are left out)", 0, "", line="")
                )
        return "".join(found.format()).rstrip()


def _chain(error: "traceback.TracebackException | None") -> "Iterator[traceback.TracebackException]":
    if error is not None:
        yield error
        yield from _chain(error.__cause__)
        yield from _chain(error.__context__)
        for each in error.exceptions or () if sys.version_info >= (3, 11) else ():
            yield from _chain(each)


def _is_own(filename: str) -> bool:
    return filename.startswith(str(PROJECT_ROOT)) and "site-packages" not in filename
