"""SVG charts for the documentation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pygal  # type: ignore[import-untyped]
from pygal.style import Style  # type: ignore[import-untyped]

# White background: readable on a dark page too. The palette is Okabe and Ito's, safe for colour-blind readers.
_STYLE = Style(
    background="#ffffff",
    plot_background="#ffffff",
    colors=("#0072b2", "#d55e00", "#999999", "#009e73", "#cc79a7", "#e69f00"),
    font_family="sans-serif",
    label_font_size=12,
    legend_font_size=12,
    title_font_size=15,
    value_font_size=10,
)
_SIZE = {"width": 880, "height": 420}


def bars(
    file: Path, title: str, groups: Sequence[str], series: Mapping[str, Sequence[float | None]], decimals: int = 0
) -> None:
    """Write groups of bars, with one bar of each series per group; None leaves a bar out."""
    chart = pygal.Bar(
        title=title,
        style=_STYLE,
        js=[],
        print_values=True,
        value_formatter=lambda value: f"{value:.{decimals}f}",
        truncate_label=-1,
        truncate_legend=-1,
        legend_at_bottom=True,
        **_SIZE,
    )
    chart.x_labels = groups
    for name, values in series.items():
        chart.add(name, list(values))
    _write(file, chart)


def lines(file: Path, title: str, x_title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Write one line of (x, y) points per series."""
    chart = pygal.XY(title=title, x_title=x_title, style=_STYLE, js=[], range=(0, None), **_SIZE)
    for name, points in series.items():
        chart.add(name, list(points))
    _write(file, chart)


def _write(file: Path, chart: pygal.graph.graph.Graph) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    chart.render_to_file(str(file))
