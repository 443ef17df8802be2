"""The lanes of the connection pools: those of Headroom, and your own in OWN_LANES.

The pools, `headroom budget`, the metrics and the exporter's page read them here. Put a route into a lane with
`lane()` of `app/web/deps.py`, and a part of a route with `in_lane()` of `app/database/lanes.py` (docs/connections.md).
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

LaneName = str
CRITICAL: LaneName = "critical"
NORMAL: LaneName = "normal"
EXPENSIVE: LaneName = "expensive"
BUILT_IN: tuple[LaneName, ...] = (CRITICAL, NORMAL, EXPENSIVE)


@dataclass(frozen=True)
class LaneSpec:
    """A lane with limits of its own, for each worker. Raise ValueError for values that no lane can have.

    - `name` is the label of its metrics: lower-case letters, digits and `_`.
    - `share` is how many connections its statements use at a time. A share less than 1 is a share of the time, of one
      connection.
    - `queue` is how many of its checkouts may wait; the next one is refused at once.
    - `deadline` is the time in seconds in which a checkout must get a connection.
    """

    name: LaneName
    share: float
    queue: int
    deadline: float

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z][a-z0-9_]*", self.name):
            raise ValueError(f"lane {self.name!r}: the name must have lower-case letters, digits and _ only")
        for value, name in ((self.share, "share"), (self.deadline, "deadline")):
            if not 0 < value < math.inf:
                raise ValueError(f"lane {self.name!r}: {name} is {value}, and must be a number greater than 0")
        if self.queue < 0:
            raise ValueError(f"lane {self.name!r}: queue is {self.queue}, and must be at least 0")


# For example LaneSpec("reports", share=0.5, queue=10, deadline=5.0).
OWN_LANES: tuple[LaneSpec, ...] = ()


def lane_names(own: Iterable[LaneSpec] | None = None) -> tuple[LaneName, ...]:
    """Return the names of all lanes, with those of `own` (default: OWN_LANES). Raise ValueError for a repeated name."""
    names = (*BUILT_IN, *(each.name for each in (OWN_LANES if own is None else own)))
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"lane {name!r} is declared twice, or has the name of a lane of Headroom")
    return names
