"""Plots as data: what the script draws, with a caption, and the same numbers as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from dotkd.report.markup import ABSENT, Content, Markup, Number, folded, table, tag
from dotkd.report.wording import Shown, digits

# Beyond these, a curve or a table of it says no more to the eye, and a page of many runs grows heavy.
POINTS, POINTS_IN_ALL, COLUMNS = 160, 3000, 8
DRAWN = 10
# Added to a style it keeps the colour and the marker, and changes the dash: the number of colours of the script.
OTHER_DASH = 7

Values = Sequence[float | None]


class Axis(NamedTuple):
    """label: in full, with its unit. short: where a single point is read out. switchable: a log scale can be chosen."""

    label: str
    short: str
    log: bool = False
    switchable: bool = False


class End(NamedTuple):
    """Where a trade-off ends: means of both losses with their intervals."""

    x: float
    y: float
    xlow: float | None = None
    xhigh: float | None = None
    ylow: float | None = None
    yhigh: float | None = None


class Series(NamedTuple):
    """One line. style: its colour, dash and marker. low, high: its band. dots: single seeds. notes: a word a point.

    bars: the interval of each point by itself, where nothing was measured between them, instead of a band.
    """

    name: str
    style: int
    x: Values
    y: Values
    low: Values | None = None
    high: Values | None = None
    dots: Sequence[tuple[float | None, float | None]] = ()
    end: End | None = None
    joined: bool = True
    bars: bool = False
    notes: Sequence[str] | None = None


class Lines(NamedTuple):
    """Curves or points. marks: (value of y, name) of lines across."""

    title: str
    caption: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    marks: Sequence[tuple[float, str]] = ()


class Interval(NamedTuple):
    """A row of a forest plot; `text` stands beside it, `note` is added where it is read out."""

    name: str
    mean: float | None
    low: float | None
    high: float | None
    verdict: Shown
    text: str
    note: str = ""


class Forest(NamedTuple):
    """Differences around zero, or plain intervals; left, right: what lies on either side of zero."""

    title: str
    caption: str
    x: Axis
    rows: Sequence[Interval]
    zero: bool = True
    left: str = "worse"
    right: str = "better"


class Heat(NamedTuple):
    """A matrix; x and y are names or numbers of its columns and rows. limits: what the colours run from and to."""

    title: str
    caption: str
    x: Axis
    x_values: Sequence[Any]
    y: Axis
    y_values: Sequence[Any]
    label: str
    values: Sequence[Values]
    log: bool = False
    limits: tuple[float, float] | None = None


Figure = Lines | Forest | Heat


class Album:
    """All figures of a page: each is put into the page where it is made, its data kept for the script.

    place: the setting that the next figures are of, where there are several; added to their titles.
    """

    def __init__(self) -> None:
        self.data: list[dict[str, Any]] = []
        self.place = ""

    def show(self, figure: Figure) -> Markup:
        """The figure's place in the page, with its caption and its table."""
        number = len(self.data)
        if self.place:
            figure = figure._replace(title=f"{figure.title} ({self.place})")
        if isinstance(figure, Lines):
            data, caption, numbers = _lines(figure)
        elif isinstance(figure, Forest):
            data, caption, numbers = _forest(figure)
        else:
            data, caption, numbers = _heat(figure)
        self.data.append({"id": str(number), "title": figure.title, **data})
        return tag(
            "figure",
            tag("figcaption", tag("strong", figure.title), " ", caption),
            tag("div", class_="plot", data_figure=str(number)),
            folded(f"The numbers of “{figure.title}”", numbers),
        )


def thinned(length: int, most: int) -> list[int]:
    """At most `most` (>= 2) positions of `length`, evenly apart, the first and the last among them."""
    if length <= most:
        return list(range(length))
    return [round(place * (length - 1) / (most - 1)) for place in range(most)]


def points_each(count: int) -> int:
    """How many points each of `count` curves may have."""
    return max(16, min(POINTS, POINTS_IN_ALL // max(1, count)))


def _lines(figure: Lines) -> tuple[dict[str, Any], str, Markup]:
    series: list[dict[str, Any]] = []
    for place, one in enumerate(figure.series):
        data: dict[str, Any] = {
            "name": one.name,
            "style": one.style,
            "x": _short(one.x),
            "y": _short(one.y),
            "joined": one.joined,
            "bars": one.bars,
            "hidden": place >= DRAWN,
        }
        if one.low is not None and one.high is not None and any(value is not None for value in one.low):
            data |= {"low": _short(one.low), "high": _short(one.high)}
        if one.dots:
            data["dots"] = [_short(dot) for dot in one.dots]
        if one.end is not None:
            data["end"] = dict(zip(End._fields, _short(one.end), strict=True))
        if one.notes is not None:
            data["notes"] = list(one.notes)
        series.append(data)
    caption = figure.caption
    if len(series) > DRAWN:
        caption += f" Of {len(series)} series the first {DRAWN} are drawn; the legend adds the others."
    marks = [{"value": _number(value), "name": name} for value, name in figure.marks]
    return (
        {"kind": "lines", "x": _axis(figure.x), "y": _axis(figure.y), "series": series, "marks": marks},
        caption,
        _lines_table(figure),
    )


def _lines_table(figure: Lines) -> Markup:
    """One line a series for curves, at evenly chosen places; one line a point where the points are single."""
    if all(one.joined for one in figure.series):
        most = max((len(one.x) for one in figure.series), default=0)
        headers = ["series", *(f"point {place + 1}" for place in range(min(most, COLUMNS)))]
        rows: list[list[Content]] = []
        for one in figure.series:
            cells = [_point(figure, one, place) for place in thinned(len(one.x), COLUMNS)]
            rows.append([one.name, *cells, *[ABSENT] * (len(headers) - 1 - len(cells))])
        caption = f"{figure.title}: {figure.y.label} at {figure.x.label}"
        if most > COLUMNS:
            caption += f", at {COLUMNS} places of each series"
        return table(caption, headers, rows, sortable=False)
    rows = [
        [one.name, _cell(one.x[place]), _cell(one.y[place]), one.notes[place] if one.notes else ""]
        for one in figure.series
        for place in range(len(one.x))
    ]
    return table(figure.title, ["series", figure.x.label, figure.y.label, "remark"], rows)


def _point(figure: Lines, one: Series, place: int) -> str:
    width = ""
    if one.low is not None and one.high is not None and one.low[place] is not None:
        width = f" ({_text(one.low[place])} to {_text(one.high[place])})"
    return f"{_text(one.y[place])}{width} at {_text(one.x[place])}"


def _forest(figure: Forest) -> tuple[dict[str, Any], str, Markup]:
    rows = [
        {**row._asdict(), "mean": _number(row.mean), "low": _number(row.low), "high": _number(row.high)}
        for row in figure.rows
    ]
    data = {"kind": "forest", "x": _axis(figure.x), "rows": rows, "zero": figure.zero}
    numbers = table(
        f"{figure.title}: {figure.x.label}",
        ["row", "mean", "from", "to", "remark"],
        [[row.name, _cell(row.mean), _cell(row.low), _cell(row.high), row.note] for row in figure.rows],
    )
    return {**data, "left": figure.left, "right": figure.right}, figure.caption, numbers


def _heat(figure: Heat) -> tuple[dict[str, Any], str, Markup]:
    data: dict[str, Any] = {
        "kind": "heat",
        "x": {**_axis(figure.x), "values": list(figure.x_values), "log": False},
        "y": {**_axis(figure.y), "values": list(figure.y_values), "log": False},
        "label": figure.label,
        "z": [_short(line) for line in figure.values],
        "log": figure.log,
        "range": list(figure.limits) if figure.limits else None,
    }
    across, down = thinned(len(figure.x_values), COLUMNS), thinned(len(figure.y_values), 2 * COLUMNS)
    headers = [f"{figure.y.short} \\ {figure.x.short}", *(_text(figure.x_values[place]) for place in across)]
    rows = [[_text(figure.y_values[row]), *(_cell(figure.values[row][column]) for column in across)] for row in down]
    thin = len(across) < len(figure.x_values) or len(down) < len(figure.y_values)
    caption = f"{figure.title}: {figure.label}{', at evenly chosen places' if thin else ''}"
    return data, figure.caption, table(caption, headers, rows, sortable=False)


def _axis(axis: Axis) -> dict[str, Any]:
    return axis._asdict()


def _short(values: Values) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float | None) -> float | None:
    """Five significant digits, which is more than a screen shows."""
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None


def _text(value: Any) -> str:
    if value is None:
        return ABSENT
    return digits(value) if isinstance(value, float) else str(value)


def _cell(value: float | None) -> Number:
    return Number(_text(value), value)
