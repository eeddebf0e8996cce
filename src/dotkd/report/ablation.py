"""Where a number was varied: accuracy and gain against it, one line a cell, plots of its own for each recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dotkd.evidence.comparison import Row
from dotkd.evidence.settings import Table
from dotkd.report.configs import differing_numbers
from dotkd.report.figures import Axis, Lines, Series

_WIDE = 10.0
# The seed is averaged over; method and trainer are the name of a line.
_OF_A_LINE = ("seed", "method", "trainer", "teacher_weights")


class _Place(NamedTuple):
    """A cell at one value of every varied key. style: that of the cell; recipe: empty where there is one alone."""

    row: Row
    varied: Mapping[str, Any]
    style: int
    recipe: str = ""


def ablations(tables: Sequence[Table], styles: Mapping[str, int], *, compared: bool) -> list[Lines]:
    """A plot of accuracy, and where cells are compared one of the gain, for each number that was varied.

    Of a comparison, the varied keys of its settings; of runs side by side, the numbers in which they differ.
    """
    places = _settings(tables, styles) if compared else _runs(tables, styles)
    figures: list[Lines] = []
    for recipe in dict.fromkeys(place.recipe for place in places):
        mine = [place for place in places if place.recipe == recipe]
        for key in differing_numbers({number: place.varied for number, place in enumerate(mine)}):
            accuracy = _series(mine, key, _accuracy)
            if accuracy:
                figures.append(_figure("Test accuracy", "test accuracy, %", key, recipe, accuracy))
            gains = _series(mine, key, _gain)
            if gains:
                figure = _figure("Gain", "difference in test accuracy, points", key, recipe, gains)
                figures.append(figure._replace(marks=[(0.0, "no difference")]))
    return figures


def _settings(tables: Sequence[Table], styles: Mapping[str, int]) -> list[_Place]:
    several = len({table.recipe for table in tables}) > 1
    return [
        _Place(row, table.varied, styles[row.cell.name], table.recipe if several else "")
        for table in tables
        for row in table.rows
    ]


def _runs(tables: Sequence[Table], styles: Mapping[str, int]) -> list[_Place]:
    """Runs side by side have names of their own; lines are made of those that share method and trainer."""
    alike: dict[tuple[str, str], int] = {}
    places: list[_Place] = []
    for table in tables:
        for row in table.rows:
            style = alike.setdefault((row.cell.method, row.cell.trainer), len(alike))
            config = {k: v for k, v in table.runs[row.cell.name][0].config.items() if k not in _OF_A_LINE}
            name = f"{row.cell.method}, {row.cell.trainer}"
            places.append(_Place(row._replace(cell=row.cell._replace(name=name)), config, style))
    return places


def _series(
    places: Sequence[_Place], key: str, value: Callable[[Row], tuple[float, float | None] | None]
) -> list[Series]:
    """Lines of at least two values of `key`, one for each cell and each combination of the other varied keys."""
    lines: dict[str, list[tuple[float, float, float | None, int]]] = {}
    varied = {name for place in places for name in place.varied}
    differing = [
        name for name in sorted(varied) if name != key and len({_text(place.varied.get(name)) for place in places}) > 1
    ]
    for place in places:
        found = value(place.row)
        if found is not None:
            others = [f"{name}={_text(place.varied.get(name))}" for name in differing]
            points = lines.setdefault(", ".join([place.row.cell.name, *others]), [])
            points.append((float(place.varied[key]), *found, place.style))
    series: list[Series] = []
    for name, points in lines.items():
        points.sort(key=lambda point: point[0])
        if len({point[0] for point in points}) < 2:
            continue
        x, y = [point[0] for point in points], [point[1] for point in points]
        low = [None if width is None else mean - width for _, mean, width, _ in points]
        high = [None if width is None else mean + width for _, mean, width, _ in points]
        series.append(Series(name, points[0][3], x, y, low, high, bars=True))
    if len({one.style for one in series}) < len(series):  # a cell has several lines: they must be told apart
        return [one._replace(style=number) for number, one in enumerate(series)]
    return series


def _figure(title: str, label: str, key: str, recipe: str, series: Sequence[Series]) -> Lines:
    values = [value for one in series for value in one.x if value is not None]
    positive = min(values) > 0
    x = Axis(key, key, log=positive and max(values) / min(values) >= _WIDE, switchable=positive)
    caption = "Mean over seeds, bars: 95 % interval; val-selected accuracy. Only the marked values were tried."
    of_recipe = f" ({recipe})" if recipe else ""
    return Lines(f"{title} against {key}{of_recipe}", caption, x, Axis(label, title.lower()), series)


def _accuracy(row: Row) -> tuple[float, float | None] | None:
    value = row.val_selected
    return _in_percent(value.mean, value.half_width)


def _gain(row: Row) -> tuple[float, float | None] | None:
    return None if row.cell.against is None else _in_percent(row.gain.mean, row.gain.half_width)


def _in_percent(mean: float | None, half_width: float | None) -> tuple[float, float | None] | None:
    return None if mean is None else (100 * mean, None if half_width is None else 100 * half_width)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
