"""Reads the `analysis.json` of finished runs: landscape, curvature, similarity to the teacher."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dotkd.evidence.flatness import QUANTITIES
from dotkd.evidence.runs import Run
from dotkd.evidence.settings import Table

FILE = "analysis.json"

Matrix = Sequence[Sequence[float | None]]


class Line(NamedTuple):
    """The losses along a line of weights, theta + alpha d; `quantities`: {task_loss, distill_loss, accuracy}, (A,)."""

    alpha: Sequence[float]
    quantities: Mapping[str, Sequence[float | None]]


class Plane(NamedTuple):
    """The losses on a plane, theta + alpha d + beta e; `quantities`: (A, B) each."""

    alpha: Sequence[float]
    beta: Sequence[float]
    quantities: Mapping[str, Matrix]


class Similarity(NamedTuple):
    """CKA between places in the student (rows) and in the teacher (columns)."""

    student: Sequence[str]
    teacher: Sequence[str]
    values: Matrix


class Analysis(NamedTuple):
    """One run. loss: what was measured, in words. figures: {quantity of `dotkd.evidence.flatness`: number}."""

    run: Run
    split: str
    samples: int
    loss: str
    line: Line | None
    plane: Plane | None
    figures: Mapping[str, float | None]
    similarity: Similarity | None


def read_analyses(part: Table, problems: list[str]) -> dict[str, list[Analysis]]:
    """{cell: its runs that were analysed}; a file that cannot be read is added to `problems`."""
    found: dict[str, list[Analysis]] = {}
    for cell, runs in part.runs.items():
        for run in runs:
            path = run.path / FILE
            if run.diverged or not path.is_file():
                continue
            try:
                found.setdefault(cell, []).append(_read(path, run))
            except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
                problems.append(f"{path} cannot be read as an analysis: {type(error).__name__}: {error}")
    return {cell: analyses for cell, analyses in found.items() if analyses}


def _read(path: Path, run: Run) -> Analysis:
    contents: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    landscape, cka = (contents.get(name) or {} for name in ("landscape", "cka"))
    line, plane = landscape.get("line"), landscape.get("plane")
    return Analysis(
        run,
        str(contents["split"]),
        int(contents["samples"]),
        str(contents["loss"]),
        _line(line) if line else None,
        _plane(plane) if plane else None,
        {name: _number(value(contents)) for name, value in QUANTITIES.items()},
        _similarity(cka) if cka else None,
    )


def _line(found: Mapping[str, Any]) -> Line:
    alpha = [float(value) for value in found["alpha"]]
    quantities = {name: found.get(name) for name in ("task_loss", "distill_loss", "accuracy")}
    return Line(alpha, {name: _vector(value, len(alpha)) for name, value in quantities.items() if value is not None})


def _plane(found: Mapping[str, Any]) -> Plane:
    alpha, beta = ([float(value) for value in found[name]] for name in ("alpha", "beta"))
    quantities = {name: found.get(name) for name in ("task_loss", "distill_loss", "accuracy")}
    shape = (len(alpha), len(beta))
    return Plane(alpha, beta, {name: _matrix(value, shape) for name, value in quantities.items() if value is not None})


def _similarity(found: Mapping[str, Any]) -> Similarity:
    student, teacher = ([str(name) for name in found[f"{side}_points"]] for side in ("student", "teacher"))
    return Similarity(student, teacher, _matrix(found["values"], (len(student), len(teacher))))


def _matrix(rows: Sequence[Sequence[Any]], shape: tuple[int, int]) -> Matrix:
    if len(rows) != shape[0]:
        raise ValueError(f"expected {shape[0]} rows, got {len(rows)}")
    return [_vector(row, shape[1]) for row in rows]


def _vector(values: Sequence[Any], length: int) -> list[float | None]:
    if len(values) != length:
        raise ValueError(f"expected {length} numbers, got {len(values)}")
    return [_number(value) for value in values]


def _number(value: Any) -> float | None:
    """None for null and what is not finite, as the weights far out may give."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"expected a number or null, got {value!r}")
    return float(value) if math.isfinite(value) else None
