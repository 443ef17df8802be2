"""What HAProxy's statistics say about the replicas."""

import csv

# Both must use a replica: one for reads, one for writes (ops/proxy/haproxy.cfg).
BACKENDS = ("reads", "writes")


def serving(statistics: str) -> set[str]:
    """Return the addresses to which the proxy sends requests after a successful check, in every backend.

    `statistics` is the answer to `show stat`. A new server is UP before its first check: the kind of the last check
    tells the difference.
    """
    found: dict[str, set[str]] = {backend: set() for backend in BACKENDS}
    for row in csv.DictReader(statistics.splitlines()):
        backend = found.get(row["# pxname"])
        if backend is not None and row["status"].startswith("UP") and "L7OK" in row["check_status"]:
            backend.add(row["addr"].rpartition(":")[0])
    return set.intersection(*found.values())
