"""Pictures of a comparison: the trade-off between the two losses, accuracy over the epochs and over what is varied.

matplotlib is imported here alone, when a picture is made (extra `plots`), and draws to files: no display is needed.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dotkd.evidence.runs import EvalPoint
from dotkd.evidence.settings import Evidence, Table
from dotkd.evidence.statistics import Estimate, estimate

# matplotlib types its keyword arguments nowhere: its objects are taken as they are.
Axes = Any
Figure = Any

# Okabe and Ito's palette, told apart in every common form of colour blindness; markers say it again without colour.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LOG_FROM_RATIO = 10.0
_MOST_COLUMNS = 3

Curves = Mapping[str, Sequence[Sequence[EvalPoint]]]


def trade_off(curves: Curves, path: Path, *, title: str) -> None:
    """Test task loss against test distillation loss, one line a cell: the mean over seeds, epoch by epoch.

    curves: {cell: [evaluations of a run, ...]}. The end of a line is a large marker with 95 % bars in both
    losses, the ends of single seeds are small ones; a second panel shows the ends alone. A cell without a
    distillation loss is a horizontal line at its final task loss. Raises ModuleNotFoundError naming the extra
    where matplotlib is missing.
    """
    figure, (whole, ends) = _figure(2)
    for position, (name, runs) in enumerate(curves.items()):
        finished = [run for run in runs if run]
        if not finished:
            continue
        style = _style(position)
        label = f"{name} (n = {len(finished)})"
        last = [run[-1] for run in finished]
        task = estimate([point.test.task_loss for point in last])
        if all(point.test.distill_loss is None for point in last):
            _task_alone((whole, ends), task, f"{label}: final task loss", style["color"])
            continue
        distill = estimate([point.test.distill_loss for point in last])
        across = [e.mean for _, e in _over_epochs(finished, lambda point: point.test.distill_loss)]
        up = [e.mean for _, e in _over_epochs(finished, lambda point: point.test.task_loss)]
        whole.plot(_plain(across), _plain(up), color=style["color"], linewidth=1.4, label="_")
        for axes in (whole, ends):
            _end_point(axes, distill, task, label, style)
        ends.scatter(
            _plain([point.test.distill_loss for point in last]),
            _plain([point.test.task_loss for point in last]),
            color=style["color"],
            marker=style["marker"],
            s=14,
            alpha=0.45,
            linewidths=0,
        )
    for axes, heading in (
        (whole, "over the epochs (mean over seeds)"),
        (ends, "at the end (mean, 95 % interval; small: seeds)"),
    ):
        axes.set_xlabel("test distillation loss (unweighted)")
        axes.set_ylabel("test task loss (cross-entropy, nats)")
        axes.set_title(heading, fontsize=10)
        _log_where_wide(axes)
    _save(figure, path, title)


def accuracy_over_epochs(curves: Curves, path: Path, *, title: str, teacher: float | None = None) -> None:
    """Test accuracy (%) over epochs, one line a cell with its 95 % band; teacher: its accuracy, a fraction.

    The second panel is the last third of the epochs, where the lines part. Raises as `trade_off` does.
    """
    figure, (whole, late) = _figure(2)
    for position, (name, runs) in enumerate(curves.items()):
        finished = [run for run in runs if run]
        if not finished:
            continue
        points = _over_epochs(finished, lambda point: point.test.accuracy)
        first_late = 2 * points[-1][0] / 3
        for axes, shown in ((whole, points), (late, [point for point in points if point[0] >= first_late])):
            _band(axes, shown, f"{name} (n = {len(finished)})", _style(position))
    for axes, heading in ((whole, "mean over seeds, band: 95 % interval"), (late, "the last third of the epochs")):
        axes.set_xlabel("epoch")
        axes.set_ylabel("test accuracy (%)")
        axes.set_title(heading, fontsize=10)
    if teacher is not None:
        whole.axhline(100 * teacher, color="0.35", linestyle=":", linewidth=1.2, label="teacher")
    _save(figure, path, title)


def ablations(evidence: Evidence, folder: Path) -> list[Path]:
    """Draws `ablation-KEY.png` for each varied key with several numbers; returns the paths. Raises as `trade_off` does.

    Test accuracy (%) of each cell against the value, with 95 % bands; a panel for each recipe and combination of the
    other varied values. A cell that does not depend on the value is a level line.
    """
    paths: list[Path] = []
    for key in dict.fromkeys(key for table in evidence.tables for key in table.varied):
        panels: dict[str, list[tuple[float, Table]]] = {}
        for table in evidence.tables:
            value = table.varied.get(key)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and any(table.runs.values()):
                rest = [f"{other}={held}" for other, held in table.varied.items() if other != key]
                panels.setdefault(", ".join([table.recipe, *rest]), []).append((float(value), table))
        panels = {name: sorted(found, key=lambda pair: pair[0]) for name, found in panels.items() if len(found) > 1}
        if panels:
            paths.append(folder / f"ablation-{key}.png")
            _ablation(panels, key, paths[-1], f"{evidence.name}: accuracy over {key}")
    return paths


def _ablation(panels: Mapping[str, Sequence[tuple[float, Table]]], key: str, path: Path, title: str) -> None:
    figure, drawn = _figure(len(panels))
    cells = list(dict.fromkeys(row.cell.name for found in panels.values() for _, table in found for row in table.rows))
    for axes, (name, found) in zip(drawn, panels.items(), strict=True):
        for position, cell in enumerate(cells):
            rows = [(value, row) for value, table in found if (row := table.row(cell)) is not None]
            if rows:
                _band(axes, [(value, row.val_selected) for value, row in rows], cell, _style(position), every=1)
        low, high = found[0][0], found[-1][0]
        if low > 0 and high / low >= _LOG_FROM_RATIO:
            axes.set_xscale("log")
        axes.set_xlabel(key)
        axes.set_ylabel("test accuracy (%)")
        axes.set_title(f"{name} (mean over seeds, band: 95 % interval)", fontsize=10)
    _save(figure, path, title)


def _band(
    axes: Axes,
    points: Sequence[tuple[float, Estimate]],
    label: str,
    style: Mapping[str, Any],
    every: int | None = None,
) -> None:
    """A line with its band; every: of its points each so many is marked, of None the last."""
    epochs = [epoch for epoch, _ in points]
    means = [100 * value for value in _plain([e.mean for _, e in points])]
    widths = [100 * (e.half_width or 0.0) for _, e in points]
    low = [mean - width for mean, width in zip(means, widths, strict=True)]
    high = [mean + width for mean, width in zip(means, widths, strict=True)]
    axes.plot(epochs, means, **style, markersize=6, markevery=every or [-1], linewidth=1.4, label=label)
    axes.fill_between(epochs, low, high, color=style["color"], alpha=0.1, linewidth=0)


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    try:
        agg: Any = importlib.import_module("matplotlib.backends.backend_agg")
        figures: Any = importlib.import_module("matplotlib.figure")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "pictures need matplotlib; install the extra `plots`: pip install 'dotkd[plots]'",
            name="matplotlib",
        ) from error
    columns = min(panels, _MOST_COLUMNS)
    lines = -(-panels // columns)
    figure = figures.Figure(figsize=(5.6 * columns, 5.0 * lines), layout="constrained")
    agg.FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(lines, columns, position + 1) for position in range(panels)]


def _style(position: int) -> dict[str, Any]:
    return {"color": _COLOURS[position % len(_COLOURS)], "marker": _MARKERS[position % len(_MARKERS)]}


def _end_point(axes: Axes, distill: Estimate, task: Estimate, label: str, style: Mapping[str, Any]) -> None:
    if distill.mean is None or task.mean is None:
        return
    axes.errorbar(
        distill.mean,
        task.mean,
        xerr=distill.half_width,
        yerr=task.half_width,
        color=style["color"],
        marker=style["marker"],
        markersize=8,
        markeredgecolor="white",
        capsize=3,
        linestyle="none",
        label=label,
        zorder=5,
    )


def _task_alone(panels: Sequence[Axes], task: Estimate, label: str, colour: str) -> None:
    if task.mean is None:
        return
    for axes in panels:
        axes.axhline(task.mean, color=colour, linestyle="--", linewidth=1.2, label=label)
        if task.half_width is not None:
            axes.axhspan(
                task.mean - task.half_width,
                task.mean + task.half_width,
                color=colour,
                alpha=0.08,
                linewidth=0,
            )


def _over_epochs(
    runs: Sequence[Sequence[EvalPoint]], value: Callable[[EvalPoint], float | None]
) -> list[tuple[float, Estimate]]:
    """(epoch, mean over runs) for the epochs that every run has."""
    tables = [{point.epoch: value(point) for point in run} for run in runs]
    common = set(tables[0]).intersection(*tables[1:])
    return [(epoch, estimate([table[epoch] for table in tables])) for epoch in sorted(common)]


def _plain(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _log_where_wide(axes: Axes) -> None:
    """Logarithmic in a direction whose data spread over more than a decade and stay above zero."""
    ticker: Any = importlib.import_module("matplotlib.ticker")
    sides = (
        (axes.dataLim.intervalx, axes.set_xscale, axes.xaxis),
        (axes.dataLim.intervaly, axes.set_yscale, axes.yaxis),
    )
    for limits, set_scale, axis in sides:
        low, high = float(limits[0]), float(limits[1])
        if low > 0 and high / low > _LOG_FROM_RATIO:
            set_scale("log")
            axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(ticker.NullFormatter())


def _save(figure: Figure, path: Path, title: str) -> None:
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
        axes.grid(True, which="major", linewidth=0.4, alpha=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=12)
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
