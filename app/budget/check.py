"""The check before a start: compare the connections that could be opened with the limits."""

import logging
import sys

from app.budget.sources import from_server
from app.errors import BudgetExceeded
from app.settings import Settings

logger = logging.getLogger("headroom.check")


async def check_budget(settings: Settings, *, deadline: float) -> None:
    """Print the budget's table and raise BudgetExceeded if the connections do not fit.

    With DB_BUDGET=warn, log it instead; with DB_BUDGET=off, check nothing. Waits for the server, and the pooler, to
    report their limits until `deadline` (on the clock of time.monotonic()).
    """
    if settings.db_budget == "off":
        return
    report = await from_server(settings, deadline=deadline)
    budget = report.budget
    for line in (*report.remarks, *budget.warnings):
        logger.warning("connection budget: %s", line)
    if not budget.exceeded:
        tightest = min(budget.inequalities, key=lambda inequality: inequality.headroom)
        logger.info(
            "connection budget: %d of %d %s, %d left",
            tightest.demand,
            tightest.supply,
            tightest.name,
            tightest.headroom,
        )
    elif settings.db_budget == "warn":
        logger.warning("%s", "\n".join(budget.complaints))
    else:
        print(budget.table(), *report.notes, sep="\n", file=sys.stderr, flush=True)
        raise BudgetExceeded("\n".join(budget.complaints))
