"""`headroom budget`: show the connection budget."""

import asyncio
import json
import os
import sys
from pathlib import Path

from app.budget.compose_file import from_compose_file, is_compose_file
from app.budget.manifests import from_manifests
from app.budget.sources import from_server, from_settings
from app.errors import BudgetExceeded
from app.settings import load_settings


def show_budget(*, offline: bool, file: str | None, as_json: bool, suggest: bool) -> None:
    """Print the budget. Raise BudgetExceeded if the connections do not fit.

    `offline` uses the settings alone; `file` names a Compose file or Kubernetes manifests to use instead ("-": stdin);
    `suggest` adds the largest pool that fits.
    """
    if file is not None:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        folder = Path() if file == "-" else Path(file).parent
        report = from_compose_file(text, folder, os.environ) if is_compose_file(text) else from_manifests(text)
        in_flight, most = 0, 1  # the file need not say
    else:
        settings = load_settings()
        report = from_settings(settings) if offline else asyncio.run(from_server(settings))
        in_flight, most = settings.db_coalesce_in_flight, settings.db_coalesce_max
    budget = report.budget
    suggestion = budget.suggest()
    smaller = budget.suggest_for_coalesced_reads(in_flight) if most > 1 else None
    if as_json:
        document = budget.as_dict() | {
            "observed": report.observed,
            "sources": report.sources,
            "remarks": report.remarks,
        }
        if suggest:
            document["suggestion"] = suggestion and suggestion.variables
            document["suggestion_for_coalesced_reads"] = smaller and smaller.variables
        print(json.dumps(document, indent=2))
    else:
        print(budget.table(), *report.notes, sep="\n")
        if suggest and suggestion:
            print("the largest pool that fits:", *(f"{name}={value}" for name, value in suggestion.variables.items()))
        elif suggest:
            print("no pool fits: the limits do not allow one connection for each worker")
        if suggest and smaller:
            print("a smaller pool that may do:", *(f"{name}={value}" for name, value in smaller.variables.items()))
            print(f"  Waiting reads share statements (DB_COALESCE_MAX={most}): reads of one kind use at most")
            print(f"  {in_flight} connections of a worker (DB_COALESCE_IN_FLIGHT), and rows of one SharedInsert one")
            print("  more. Each other write uses one for its transaction.")
            print("  Watch db_pool_pending_requests after the change.")
    if budget.exceeded:
        raise BudgetExceeded("\n".join(budget.complaints))
