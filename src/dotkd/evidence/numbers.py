"""A comparison as files of numbers: JSON with everything, CSV of the runs and of the cells.

What does not exist is null in JSON and empty in CSV. Accuracies are fractions, half widths those of 95 % intervals.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dotkd.evidence.comparison import Row
from dotkd.evidence.runs import Run
from dotkd.evidence.settings import Evidence, Table
from dotkd.evidence.statistics import ALPHA
from dotkd.evidence.verdict import verdicts

_QUANTITIES = [name for name in Row._fields if name != "cell"]


def as_json(evidence: Evidence, seeds: Sequence[int], folder: Path) -> dict[str, Any]:
    """Everything the tables hold and the numbers of each run, as JSON values; folder: that of the comparison."""
    return {
        "comparison": evidence.name,
        "seeds": list(seeds),
        "family": {"tests": evidence.tests, "correction": "holm", "alpha": round(ALPHA, 12)},
        "settings": [
            {
                "name": table.name,
                "recipe": table.recipe,
                "varied": dict(table.varied),
                "directory": table.directory,
                "cells": [_cell_values(row) for row in table.rows],
                "dot_against_sgd_matched": {m: change._asdict() for m, change in table.against_matched.items()},
                "verdicts": verdicts(table),
            }
            for table in evidence.tables
        ],
        "runs": [
            {"setting": table.name, **_run_values(cell, run, folder)} for table, cell, run in _runs(evidence.tables)
        ],
    }


def runs_as_csv(evidence: Evidence, folder: Path) -> str:
    """A header and one line a run, with a column for each varied key: the raw numbers, for one's own statistics."""
    keys = _varied(evidence)
    lines = ({**_place(table, keys), **_run_values(cell, run, folder)} for table, cell, run in _runs(evidence.tables))
    return _csv(lines)


def cells_as_csv(evidence: Evidence) -> str:
    """A header and one line a cell: every mean, half width, n, p, corrected p and effect size of the tables."""
    keys = _varied(evidence)
    lines: list[dict[str, Any]] = []
    for table in evidence.tables:
        for row in table.rows:
            line = {**_place(table, keys), "cell": row.cell.name, "against": row.cell.against}
            for name in _QUANTITIES:
                line |= {f"{name}_{part}": value for part, value in getattr(row, name)._asdict().items()}
            lines.append(line)
    return _csv(lines)


def _runs(tables: Sequence[Table]) -> Iterable[tuple[Table, str, Run]]:
    return ((table, cell, run) for table in tables for cell, runs in table.runs.items() for run in runs)


def _varied(evidence: Evidence) -> list[str]:
    return list(dict.fromkeys(key for table in evidence.tables for key in table.varied))


def _place(table: Table, keys: Sequence[str]) -> dict[str, Any]:
    return {"setting": table.name, "recipe": table.recipe, **{key: _plain(table.varied.get(key)) for key in keys}}


def _plain(value: object) -> object:
    return json.dumps(value) if isinstance(value, (dict, list, tuple)) else value


def _cell_values(row: Row) -> dict[str, Any]:
    return {**row.cell._asdict(), **{name: getattr(row, name)._asdict() for name in _QUANTITIES}}


def _run_values(cell: str, run: Run, folder: Path) -> dict[str, Any]:
    return {
        "cell": cell,
        "method": run.method,
        "trainer": run.trainer,
        "seed": run.seed,
        "status": run.status,
        "directory": Path(os.path.relpath(run.path, folder)).as_posix(),
        "test_accuracy_val_selected": run.val_selected,
        "test_accuracy_last": run.last,
        "test_accuracy_best_of_test": run.best_of_test,
        "teacher_test_accuracy": run.teacher_accuracy,
        "test_task_loss": run.test.task_loss,
        "test_distill_loss": run.test.distill_loss,
        "train_task_loss": run.train.task_loss,
        "train_distill_loss": run.train.distill_loss,
        "test_agreement": run.test.agreement,
        "test_calibration_error": run.test.calibration_error,
        "seconds": run.seconds,
    }


def _csv(lines: Iterable[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for line in lines:
        if writer is None:
            writer = csv.DictWriter(out, fieldnames=list(line), lineterminator="\n")
            writer.writeheader()
        writer.writerow(line)
    return out.getvalue()
