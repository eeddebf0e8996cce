"""The table of analysed runs: figures of each cell over its seeds, and paired differences between cells.

rise                  mean of the task loss along the line, halfway out on both sides (alpha = -1/2, 1/2), minus its
                      value at the student: of the normalised picture, so that scales do not enter
eigenvalue, trace     of the Hessian of the task loss, which scales do enter
..., normalised       of the same in units of the filters, see `dotkd.evidence.curvature`
cka                   of the last feature points of student and teacher
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dotkd.evidence.comparison import make_cells
from dotkd.evidence.runs import Run
from dotkd.evidence.statistics import Difference, Estimate, correct, estimate, paired_difference

Analysis = Mapping[str, Any]


class Analysed(NamedTuple):
    """A run and what its `analysis.json` holds; {} where it diverged."""

    run: Run
    found: Analysis


class Row(NamedTuple):
    """A cell of the table: each quantity of QUANTITIES with its paired difference to the cell `against`."""

    cell: str
    against: str | None
    runs: int
    figures: dict[str, tuple[Estimate, Difference]]


def _line(found: Analysis) -> float | None:
    line = (found.get("landscape") or {}).get("line")
    if line is None:
        return None
    ends = [_at(line, where) for where in (-0.5, 0.5)]
    centre = _at(line, 0.0)
    return None if centre is None or None in ends else sum(end for end in ends if end is not None) / 2 - centre


def _at(line: Mapping[str, Any], where: float) -> float | None:
    """The task loss at the point of the line nearest to `where`."""
    alphas: Sequence[float] = line["alpha"]
    return line["task_loss"][min(range(len(alphas)), key=lambda k: abs(alphas[k] - where))]


def _hessian(name: str, inner: str | int) -> Callable[[Analysis], float | None]:
    def value(found: Analysis) -> float | None:
        return found["hessian"][name][inner] if found.get("hessian") else None

    return value


def _last_cka(found: Analysis) -> float | None:
    """Of the last points before the logits, which are the last of the list; of the logits where there are none."""
    cka = found.get("cka")
    return None if not cka else cka["values"][max(-2, -len(cka["values"]))][max(-2, -len(cka["values"][0]))]


QUANTITIES: dict[str, Callable[[Analysis], float | None]] = {
    "rise": _line,
    "eigenvalue": _hessian("eigenvalues", 0),
    "trace": _hessian("trace", "mean"),
    "eigenvalue, normalised": _hessian("eigenvalues_normalised", 0),
    "trace, normalised": _hessian("trace_normalised", "mean"),
    "cka": _last_cka,
}


def make_rows(analysed: Sequence[Analysed]) -> list[Row]:
    """A row for each folder that holds runs `seed-K`, and one for each other run, named by what tells its path apart.

    Cells are compared as `dotkd compare` does it: with the plain trainer of their method in the same folder, and the
    plain cell of another method with that of kd, where there is one. The tests of a quantity are a family for Holm's
    correction.
    """
    cells: dict[Path, list[Analysed]] = {}
    for one in analysed:
        folder = one.run.path
        cells.setdefault(folder.parent if folder.name.startswith("seed-") else folder, []).append(one)
    rows: list[Row] = []
    root = Path(os.path.commonpath([folder.parent for folder in cells])) if cells else Path()
    for folder, ours in cells.items():
        baseline = cells.get(folder.parent / (_against(folder, cells) or ""), [])
        rows.append(_row(str(folder.relative_to(root)), ours, baseline))
    families = {name: correct({row.cell: row.figures[name][1] for row in rows}) for name in QUANTITIES}
    return [
        row._replace(figures={name: (mean, families[name][row.cell]) for name, (mean, _) in row.figures.items()})
        for row in rows
    ]


def _against(folder: Path, cells: Mapping[Path, Sequence[Analysed]]) -> str | None:
    """The cell beside it that a cell is compared with, of those that are there."""
    beside = [other[0].run for path, other in cells.items() if path.parent == folder.parent]
    methods = list(dict.fromkeys(run.method for run in beside))
    methods.sort(key=lambda method: method != "kd")  # the first one is the baseline of the others
    known = make_cells(methods, list(dict.fromkeys(run.trainer for run in beside)))
    return next((cell.against for cell in known if cell.name == folder.name), None)


def _row(cell: str, ours: Sequence[Analysed], baseline: Sequence[Analysed]) -> Row:
    def by_seed(runs: Sequence[Analysed], value: Callable[[Analysis], float | None]) -> dict[int, float | None]:
        return {one.run.seed: value(one.found) for one in runs if not one.run.diverged}

    figures: dict[str, tuple[Estimate, Difference]] = {}
    diverged = sum(one.run.diverged for one in ours)
    for name, value in QUANTITIES.items():
        values = [value(one.found) for one in ours if not one.run.diverged]
        if values and all(number is None for number in values):
            mean = Estimate(None, None, 0, 0)  # not measured, which says nothing of divergence
        else:
            mean = estimate(values, diverged=diverged)
        figures[name] = mean, paired_difference(by_seed(ours, value), by_seed(baseline, value))
    return Row(cell, baseline[0].run.path.parent.name if baseline else None, len(ours), figures)
