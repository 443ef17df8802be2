"""The faults, by group. Importing a module of this package registers its faults."""

from benchmarks.fault.faults import clients, containers, pooler, schema, server, workers
from benchmarks.fault.faults.registry import REGISTERED

# The order of the table.
FAULTS = sorted(
    REGISTERED,
    key=lambda fault: ("PostgreSQL", "PgBouncer", "Migration", "API", "Container", "Clients").index(fault.group),
)

__all__ = ["FAULTS", "clients", "containers", "pooler", "schema", "server", "workers"]
