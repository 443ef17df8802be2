"""Markdown tables, printed row by row."""

from collections.abc import Sequence


def print_header(columns: Sequence[str]) -> None:
    """Print the header of a table."""
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)


def print_row(cells: Sequence[object]) -> None:
    """Print one row."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
