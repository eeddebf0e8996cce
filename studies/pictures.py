"""The pictures of the pages: ends of runs in the plane of both losses, gains as a forest, means over a varied value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from dotkd.evidence.statistics import Difference, Estimate

# Okabe and Ito's palette, told apart in every common form of colour blindness; markers say it again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def style(position: int) -> dict[str, Any]:
    """Colour and marker of the cell at that place of the list, the same in every panel."""
    return {"color": COLOURS[position % len(COLOURS)], "marker": MARKERS[position % len(MARKERS)]}


def panels(count: int, *, columns: int = 3, width: float = 3.6, height: float = 3.2) -> tuple[Figure, list[Any]]:
    """A figure with `count` axes."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows + 0.5), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(count)]


def ends(axes: Any, points: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, title: str) -> None:
    """Seeds of each cell at (distillation loss, task loss), and their mean as a large marker."""
    for place, (cell, (across, up)) in enumerate(points.items()):
        if not across:
            continue
        axes.scatter(across, up, **style(place), s=12, alpha=0.4, linewidths=0)
        middle = sum(across) / len(across), sum(up) / len(up)
        axes.scatter(*middle, **style(place), s=70, edgecolors="white", label=f"{cell}", zorder=5)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("distillation loss")
    axes.set_ylabel("task loss")


def forest(axes: Any, lines: Sequence[tuple[str, Difference, int]], *, title: str, unit: str = "points") -> None:
    """(label, difference, place of its cell): one line each from top to bottom, the interval as a bar, zero marked."""
    for row, (_, difference, place) in enumerate(lines):
        if difference.mean is not None:
            axes.errorbar(difference.mean, -row, xerr=difference.half_width, **style(place), capsize=3, markersize=6)
    axes.axvline(0, color="0.4", linewidth=1)
    axes.set_yticks([-row for row in range(len(lines))], [label for label, _, _ in lines], fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(f"difference in test accuracy, {unit}")


def against(
    axes: Any, values: Sequence[Any], cells: Mapping[str, Sequence[Estimate]], *, title: str, log: bool = False
) -> None:
    """Means of each cell over a varied value, with 95 % bars; a value that is no number stands at its place."""
    numeric = all(isinstance(value, (int, float)) for value in values)
    at = list(values) if numeric else list(range(len(values)))
    for place, (cell, found) in enumerate(cells.items()):
        known = [(x, e) for x, e in zip(at, found, strict=True) if e.mean is not None]
        axes.errorbar(
            [x for x, _ in known],
            [e.mean for _, e in known],
            yerr=[e.half_width or 0.0 for _, e in known],
            **style(place),
            capsize=3,
            markersize=5,
            linewidth=1.2,
            label=cell,
        )
    if log:
        axes.set_xscale("log")
    if not numeric or log:
        axes.set_xticks(at, [f"{value:g}" if isinstance(value, float) else str(value) for value in values], fontsize=8)
        axes.minorticks_off()
    axes.set_title(title, fontsize=10)


def save(figure: Figure, path: Path, *, legend_from: int = 0) -> None:
    """As SVG that is the same for the same rows; the legend of one panel under all of them."""
    handles, labels = figure.axes[legend_from].get_legend_handles_labels()
    for axes in figure.axes:
        axes.grid(True, linewidth=0.4, alpha=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), fontsize=9, frameon=False)
    with mpl.rc_context({"svg.hashsalt": "dotkd", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
