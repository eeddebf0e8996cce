"""Curves over epochs and steps, one a cell: the mean over seeds with its 95 % band.

A point of a curve is the mean over the runs of a cell that ended well, at the epochs (or steps) all of them have. A run
that diverged has a line of its own, up to where it was given up. Long curves are thinned to evenly chosen points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from dotkd.evidence.comparison import CE_MEASURED_BY, NO_DISTILLATION, Cell
from dotkd.evidence.runs import DiagnosticPoint, EvalPoint
from dotkd.evidence.statistics import Estimate, estimate
from dotkd.report.figures import OTHER_DASH, Axis, End, Lines, Series, points_each, thinned

EPOCH = Axis("epoch", "epoch")
STEP = Axis("step", "step")
_WIDE = 10.0


class Curves(NamedTuple):
    """The records of one cell. evaluations, diagnosed: one list a run; diverged: {name of the run: its evaluations}."""

    cell: Cell
    style: int
    evaluations: Sequence[Sequence[EvalPoint]]
    diagnosed: Sequence[Sequence[DiagnosticPoint]]
    diverged: Mapping[str, Sequence[EvalPoint]]


def over_epochs(curves: Sequence[Curves], teacher: float | None) -> list[Lines]:
    """Accuracy, both losses, agreement and calibration on the test split, as far as recorded."""
    quantities: list[tuple[str, Axis, Callable[[EvalPoint], float | None]]] = [
        ("Test accuracy", Axis("test accuracy, %", "accuracy"), lambda point: _percent(point.test.accuracy)),
        ("Task loss", _loss("task loss, test"), lambda point: point.test.task_loss),
        ("Distillation loss", _loss("distillation loss, test"), lambda point: point.test.distill_loss),
        (
            "Agreement with the teacher",
            Axis("samples of equal class, %", "agreement"),
            lambda point: _percent(point.test.agreement),
        ),
        (
            "Calibration error",
            Axis("expected calibration error, %", "error"),
            lambda point: _percent(point.test.calibration_error),
        ),
    ]
    figures: list[Lines] = []
    for title, axis, value in quantities:
        series = _series(curves, value)
        if not series:
            continue
        marks = [(100 * teacher, "teacher")] if teacher is not None and title == "Test accuracy" else []
        figures.append(
            Lines(
                title,
                _caption(curves, "epoch"),
                EPOCH,
                _scaled(axis, [value for one in series for value in one.y]),
                series,
                marks,
            )
        )
    return figures


def trade_offs(curves: Sequence[Curves]) -> list[Lines]:
    """Task loss against distillation loss on the test split, a plot for each method, whose loss has its own scale."""
    figures: list[Lines] = []
    methods = list(dict.fromkeys(one.cell.method for one in curves if one.cell.method != NO_DISTILLATION))
    for method in methods:
        alike = (method, NO_DISTILLATION) if method == CE_MEASURED_BY else (method,)
        shown = [one for one in curves if one.cell.method in alike and any(one.evaluations)]
        series = [line for one in shown if (line := _trade_off(one, len(shown))) is not None]
        if not series:
            continue
        marks = [mark for one in shown if (mark := _task_alone(one)) is not None]
        figures.append(
            Lines(
                "Trade-off" if len(methods) == 1 else f"Trade-off, {method}",
                "Task loss against distillation loss, epoch by epoch, unweighted, on the test split; mean over seeds. "
                "Large marks: the last epoch, with 95 % intervals in both losses; small ones: its single seeds. "
                "Down and to the left is better.",
                _scaled(_loss("distillation loss, test"), [value for one in series for value in one.x]),
                _scaled(_loss("task loss, test"), [value for one in series for value in one.y]),
                series,
                marks,
            )
        )
    return figures


def diagnostics(curves: Sequence[Curves]) -> list[Lines]:
    """What the streams did over the steps, a plot for each quantity and stream that was recorded."""
    named = {
        "grad_norm": ("Gradient norm", _loss("gradient norm")),
        "buffer_norm": ("Buffer norm", _loss("norm of the momentum buffer")),
        "update_share": ("Share of the update", Axis("share of the update", "share")),
        "snr": ("Signal to noise", _loss("signal-to-noise ratio of the gradient")),
        "cosine": ("Cosine between gradients", Axis("cosine", "cosine")),
    }
    found: dict[tuple[str, str], None] = {}
    for one in curves:
        for run in one.diagnosed:
            for point in run:
                found |= {(name, key): None for name, values in point.values.items() for key in values}
    figures: list[Lines] = []
    for name, (title, axis) in named.items():
        for key in [stream for quantity, stream in found if quantity == name]:
            series = _diagnosed(curves, name, key)
            if series:
                pair = key.replace(",", " and ")
                caption = _caption(curves, "step")
                figures.append(
                    Lines(
                        f"{title}, {pair}",
                        caption,
                        STEP,
                        _scaled(axis, [value for one in series for value in one.y]),
                        series,
                    )
                )
    return figures


def _series(curves: Sequence[Curves], value: Callable[[EvalPoint], float | None]) -> list[Series]:
    series: list[Series] = []
    for one in curves:
        tables = [{point.epoch: value(point) for point in run} for run in one.evaluations if run]
        line = _line(one.cell.name, one.style, tables, points_each(len(curves)))
        if line is not None:
            series.append(line)
        for name, run in one.diverged.items():
            table = {point.epoch: value(point) for point in run}
            line = _line(name, one.style + OTHER_DASH, [table], points_each(len(curves)))
            if line is not None:
                series.append(line)
    return series


def _diagnosed(curves: Sequence[Curves], name: str, key: str) -> list[Series]:
    series: list[Series] = []
    for one in curves:
        tables = [
            {point.step: point.values[name][key] for point in run if key in point.values.get(name, {})}
            for run in one.diagnosed
        ]
        line = _line(one.cell.name, one.style, [table for table in tables if table], points_each(len(curves)))
        if line is not None:
            series.append(line)
    return series


def _line(name: str, style: int, tables: Sequence[Mapping[int, float | None]], most: int) -> Series | None:
    """The mean of `tables`, {epoch or step: value}, where all have one; None where there is nothing to draw."""
    common = sorted(set(tables[0]).intersection(*tables[1:])) if tables else []
    places = [common[place] for place in thinned(len(common), most)]
    values = [estimate([table[place] for table in tables]) for place in places]
    # A mean over some of the runs is no point of the mean over all.
    values = [value if value.n == len(tables) else Estimate(None, None, 0, 0) for value in values]
    if all(value.mean is None for value in values):
        return None
    low, high = zip(*(_bounds(value) for value in values), strict=True)
    return Series(name, style, places, [value.mean for value in values], low, high)


def _trade_off(one: Curves, count: int) -> Series | None:
    runs = [run for run in one.evaluations if run]
    distill = _line("", 0, [{p.epoch: p.test.distill_loss for p in run} for run in runs], points_each(count))
    task = _line("", 0, [{p.epoch: p.test.task_loss for p in run} for run in runs], points_each(count))
    if distill is None or task is None:
        return None
    last = [run[-1].test for run in runs]
    x, y = estimate([scores.distill_loss for scores in last]), estimate([scores.task_loss for scores in last])
    end = None if x.mean is None or y.mean is None else End(x.mean, y.mean, *_bounds(x), *_bounds(y))
    dots = [(scores.distill_loss, scores.task_loss) for scores in last] if len(last) > 1 else []
    notes = [f"epoch {epoch}" for epoch in distill.x]
    return Series(one.cell.name, one.style, distill.y, task.y, dots=dots, end=end, notes=notes)


def _task_alone(one: Curves) -> tuple[float, str] | None:
    """A cell without a distillation loss has no place on that axis: a line across at its final task loss."""
    last = [run[-1].test for run in one.evaluations if run]
    if any(scores.distill_loss is not None for scores in last):
        return None
    final = estimate([scores.task_loss for scores in last]).mean
    return None if final is None else (final, f"{one.cell.name}, final task loss")


def _bounds(value: Estimate) -> tuple[float | None, float | None]:
    if value.mean is None or value.half_width is None:
        return None, None
    return value.mean - value.half_width, value.mean + value.half_width


def _caption(curves: Sequence[Curves], unit: str) -> str:
    runs = max((len(one.evaluations) for one in curves), default=0)
    said = "Mean over seeds, band: 95 % interval, cut where it leaves the plot." if runs > 1 else "A line for each run."
    lists = [run for one in curves for run in (one.evaluations if unit == "epoch" else one.diagnosed)]
    longest, most = max((len(run) for run in lists), default=0), points_each(len(curves))
    return said if longest <= most else f"{said} At most {most} evenly chosen {unit}s of {longest} are drawn."


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _loss(label: str) -> Axis:
    return Axis(label, label.partition(",")[0], switchable=True)


def _scaled(axis: Axis, values: Sequence[float | None]) -> Axis:
    """A log scale where it can be chosen and the values spread over more than a decade; no choice without it."""
    found = [value for value in values if value is not None]
    if not axis.switchable or not found or min(found) <= 0:
        return axis._replace(switchable=False)
    return axis._replace(log=max(found) / min(found) > _WIDE)
