"""The limits of lists, below the settings and the pagination, which both use them."""

from typing import NamedTuple


class ListLimits(NamedTuple):
    """What a page of a list may cost.

    `max_offset` is the largest offset. `max_count` is how many rows are counted, or read for a search without an index.
    """

    max_offset: int = 10_000
    max_count: int = 10_000
