"""What analysis found, cell by cell: the landscape, the curvature, and the likeness to the teacher.

Numbers of one cell are put together over its seeds as everywhere: the mean and its 95 % t-interval. A plane, which is a
picture of one run, is shown for the first seed that has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dotkd.evidence.settings import Table
from dotkd.evidence.statistics import Estimate, correct, estimate, paired_difference
from dotkd.report.analyses import Analysis, Matrix, Plane
from dotkd.report.figures import Album, Axis, Figure, Forest, Heat, Interval, Lines, Series
from dotkd.report.markup import ABSENT, Content, Markup, Number, joined, table, tag
from dotkd.report.wording import amount, change_alone, count, probability

_QUANTITIES = {"task_loss": "task loss", "distill_loss": "distillation loss", "accuracy": "accuracy, %"}
_NAMES = {
    "rise": "rise of the task loss, halfway out on the line",
    "eigenvalue": "largest eigenvalue of the Hessian",
    "eigenvalue, normalised": "largest eigenvalue, normalised",
    "trace": "trace of the Hessian",
    "trace, normalised": "trace, normalised",
    "cka": "CKA of the last features to the teacher's",
}
_FORESTS = {
    "Largest eigenvalue of the Hessian": "eigenvalue",
    "Largest eigenvalue, normalised": "eigenvalue, normalised",
    "Trace of the Hessian": "trace",
    "Trace of the Hessian, normalised": "trace, normalised",
}
_ALPHA, _BETA = (Axis(letter, letter) for letter in ("\N{GREEK SMALL LETTER ALPHA}", "β"))

Analyses = Mapping[str, Sequence[Analysis]]


def analysis_part(part: Table, found: Analyses, styles: Mapping[str, int], album: Album) -> Markup:
    """All figures and the table of one setting."""
    first = next(iter(found.values()))[0]
    measured = f"Measured on {first.samples} samples of the {first.split} split; {first.loss}."
    figures: list[Figure] = [*_lines(found, styles), *_curvature(found)]
    maps = [*_planes(found), *_similarities(found)]
    return joined(
        [
            tag("p", measured, class_="note"),
            tag("div", *(album.show(figure) for figure in figures), class_="figures"),
            _table(found, part),
            tag("div", *(album.show(figure) for figure in maps), class_="figures"),
        ]
    )


def _lines(found: Analyses, styles: Mapping[str, int]) -> list[Lines]:
    figures: list[Lines] = []
    for name, label in _QUANTITIES.items():
        scale = 100 if name == "accuracy" else 1
        series: list[Series] = []
        for cell, analyses in found.items():
            lines = [one.line for one in analyses if one.line is not None and name in one.line.quantities]
            # Lines over other places than those of the first cannot be averaged with it.
            alike = [line for line in lines if line.alpha == lines[0].alpha]
            if not alike:
                continue
            values = [estimate([line.quantities[name][k] for line in alike]) for k in range(len(alike[0].alpha))]
            mean = [None if value.mean is None else scale * value.mean for value in values]
            low = [_bound(value, -scale, scale) for value in values]
            high = [_bound(value, scale, scale) for value in values]
            series.append(Series(cell, styles[cell], alike[0].alpha, mean, low, high))
        if series:
            positive = name != "accuracy" and min(y for one in series for y in one.y if y is not None) > 0
            figures.append(
                Lines(
                    f"Landscape along a line, {label.partition(',')[0]}",
                    f"Weights moved by {_ALPHA.short} along a direction; 0 is the trained student. Mean over seeds, "
                    "band: 95 % interval. A flatter curve is a flatter minimum.",
                    _ALPHA,
                    Axis(label, label.partition(",")[0], switchable=positive),
                    series,
                )
            )
    return figures


def _bound(value: Estimate, signed: int, scale: int) -> float | None:
    if value.mean is None or value.half_width is None:
        return None
    return scale * value.mean + signed * value.half_width


def _curvature(found: Analyses) -> list[Forest]:
    figures: list[Forest] = []
    for title, quantity in _FORESTS.items():
        rows = [_interval(cell, value) for cell, runs in found.items() if (value := _mean_of(runs, quantity)).n]
        if rows:
            caption = "Mean and 95 % interval over seeds; smaller is flatter."
            figures.append(Forest(title, caption, Axis(title, "value"), rows, zero=False))
    return figures


def _interval(cell: str, value: Estimate) -> Interval:
    mean, width = value.mean, value.half_width
    assert mean is not None
    low, high = (None, None) if width is None else (mean - width, mean + width)
    return Interval(cell, mean, low, high, "none", str(amount(value).text), f"n = {value.n}")


def _mean_of(analyses: Sequence[Analysis], quantity: str) -> Estimate:
    return estimate([value for one in analyses if (value := one.figures[quantity]) is not None])


def _table(found: Analyses, part: Table) -> Markup:
    """One line a quantity and cell, with the paired difference to the cell it is compared with."""
    against = {row.cell.name: row.cell.against for row in part.rows}
    rows: list[list[Content]] = []
    for quantity, name in _NAMES.items():
        values = {cell: _by_seed(analyses, quantity) for cell, analyses in found.items()}
        changes = correct(
            {cell: paired_difference(values[cell], values.get(against[cell] or "", {})) for cell in found}
        )
        for cell, change in changes.items():
            value = _mean_of(found[cell], quantity)
            if not value.n:
                continue
            difference = Number(ABSENT if change.mean is None else change_alone(change), change.mean)
            rows.append([name, cell, amount(value), difference, probability(change.p_corrected), count(value.n)])
    caption = (
        "Mean ± 95 % interval over seeds; difference to the cell each is compared with, by pairs, p after Holm. "
        "Normalised: in units of the filters' norms, so that the scale of the weights does not enter"
    )
    return table(caption, ["quantity", "cell", "mean", "difference", "p corrected", "n"], rows)


def _by_seed(analyses: Sequence[Analysis], quantity: str) -> dict[int, float | None]:
    return {one.run.seed: one.figures[quantity] for one in analyses}


def _planes(found: Analyses) -> list[Heat]:
    shown = {cell: next((one for one in analyses if one.plane is not None), None) for cell, analyses in found.items()}
    planes = {
        cell: (one.run.seed, one.plane) for cell, one in shown.items() if one is not None and one.plane is not None
    }
    if not planes:
        return []
    limits = _limits([plane for _, plane in planes.values()])
    return [
        Heat(
            f"Landscape over a plane, {cell}",
            f"Task loss of seed {seed}, weights moved by {_ALPHA.short} and β along two directions; the centre is "
            "the trained student. Lines join equal losses. The colours are those of all cells together.",
            _ALPHA,
            plane.alpha,
            _BETA,
            plane.beta,
            "task loss",
            # Rows of the file go along alpha; rows of a picture go along beta.
            [list(row) for row in zip(*plane.quantities["task_loss"], strict=True)],
            log=limits[0] > 0,
            limits=limits,
        )
        for cell, (seed, plane) in planes.items()
    ]


def _limits(planes: Sequence[Plane]) -> tuple[float, float]:
    values = [value for plane in planes for row in plane.quantities["task_loss"] for value in row if value is not None]
    return min(values, default=0.0), max(values, default=1.0)


def _similarities(found: Analyses) -> list[Heat]:
    figures: list[Heat] = []
    for cell, analyses in found.items():
        measured = [one.similarity for one in analyses if one.similarity is not None]
        alike = [one for one in measured if one[:2] == measured[0][:2]]
        if not alike:
            continue
        figures.append(
            Heat(
                f"Likeness to the teacher, {cell}",
                f"Linear CKA of the features at each place, mean over {len(alike)} "
                f"{'run' if len(alike) == 1 else 'runs'}; 1 is equal up to rotation and scale.",
                Axis("teacher", "teacher"),
                alike[0].teacher,
                Axis("student", "student"),
                alike[0].student,
                "CKA",
                _mean([one.values for one in alike]),
                limits=(0.0, 1.0),
            )
        )
    return figures


def _mean(matrices: Sequence[Matrix]) -> Matrix:
    rows, columns = len(matrices[0]), len(matrices[0][0])
    return [[estimate([m[row][column] for m in matrices]).mean for column in range(columns)] for row in range(rows)]
