"""A comparison: cells (a method with a trainer), each with one run per seed, and the table they make.

Names of the cells: `ce` is plain training on the labels (method none), `kd` is the method with the plain
optimizer, and any other trainer is added to it: `kd+dot`, `kd+dot-normalized`, `kd+sgd-matched`. Each cell is
compared, by pairs of equal seed, with the plain cell of its own method; `ce` and the plain cells of further
methods with the first one.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from dotkd.evidence.runs import Run
from dotkd.evidence.statistics import Difference, Estimate, estimate, paired_difference, paired_ratio

PLAIN_TRAINERS = ("sgd", "adamw")
NO_DISTILLATION = "none"
# The distillation loss that a student without one is measured by, so that it can stand beside those with one.
CE_MEASURED_BY = "kd"


class Cell(NamedTuple):
    """One method with one trainer. `against`: the cell it is compared with, None for a baseline."""

    name: str
    method: str
    trainer: str
    against: str | None


class Row(NamedTuple):
    """A line of the table: means over the seeds of one cell, and paired differences against `cell.against`.

    Accuracies are fractions of the test split; `val_selected` is that of the last epoch where nothing was held out to
    select on, `best_of_test` that of the epoch best on the test split itself, which flatters. Losses (not weighted),
    agreement with the teacher and calibration error are of the final student. seconds: per run; relative_seconds: those
    over the baseline's, by pairs.
    """

    cell: Cell
    val_selected: Estimate
    last: Estimate
    best_of_test: Estimate
    gain: Difference
    task_test: Estimate
    task_train: Estimate
    distill_test: Estimate
    distill_train: Estimate
    task_change: Difference
    distill_change: Difference
    seconds: Estimate
    relative_seconds: Estimate
    agreement: Estimate
    calibration_error: Estimate


def make_cells(methods: Sequence[str], trainers: Sequence[str]) -> list[Cell]:
    """The cells of `methods` x `trainers`. Method "none" goes with a plain trainer alone: it has nothing to
    distil.

    Raises ValueError where a list is empty or names something twice.
    """
    for what, names in (("methods", methods), ("trainers", trainers)):
        if not names:
            raise ValueError(f"expected at least one name in `{what}`, got none")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"`{what}` names {', '.join(twice)} more than once")
    plain = plain_trainer(trainers)
    distilling = [method for method in methods if method != NO_DISTILLATION]
    # A baseline that was not asked for is never run in silence: without it the differences stay empty.
    first = distilling[0] if distilling and plain in trainers else None
    cells: list[Cell] = []
    for method in methods:
        if method == NO_DISTILLATION:
            used = [name for name in PLAIN_TRAINERS if name in trainers] or [plain]
        else:
            used = list(trainers)
        for trainer in used:
            stem = "ce" if method == NO_DISTILLATION else method
            name = stem if trainer == plain else f"{stem}+{trainer}"
            against = method if method != NO_DISTILLATION and plain in trainers and trainer != plain else first
            cells.append(Cell(name, method, trainer, against if against != name else None))
    return cells


def plain_trainer(trainers: Sequence[str]) -> str:
    """The one-momentum optimizer to compare with: sgd, or adamw where only its forms are named."""
    if "sgd" in trainers:
        return "sgd"
    return "adamw" if trainers and all("adamw" in name for name in trainers) else "sgd"


def check_names(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raises ValueError for the first of `names` that is not among `known`, with the nearest one."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"expected {what} to be one of {', '.join(known)}, got {name!r}{hint}")


def make_rows(cells: Sequence[Cell], runs: Mapping[str, Sequence[Run]]) -> list[Row]:
    """The table of `cells`; runs: {cell name: its finished runs}, those that diverged included."""
    return [_row(cell, runs.get(cell.name, ()), runs.get(cell.against or "", ())) for cell in cells]


def _row(cell: Cell, runs: Sequence[Run], baseline: Sequence[Run]) -> Row:
    def mean(value: Callable[[Run], float | None]) -> Estimate:
        finished = [value(run) for run in runs if not run.diverged]
        return estimate(finished, diverged=len(runs) - len(finished))

    def optional(value: Callable[[Run], float | None]) -> Estimate:
        """A quantity that a whole cell may lack: absent everywhere it says nothing about divergence."""
        return Estimate(None, None, 0, 0) if all(value(run) is None for run in runs) else mean(value)

    def distill(value: Callable[[Run], float | None]) -> Callable[[Run], float | None]:
        """Nothing for `ce` beside another method than its yardstick: two losses of two scales in one column."""
        alone = cell.method == NO_DISTILLATION and cell.against not in (None, CE_MEASURED_BY)
        return (lambda run: None) if alone else value

    def change(value: Callable[[Run], float | None]) -> Difference:
        return paired_difference(_by_seed(runs, value), _by_seed(baseline, value))

    return Row(
        cell=cell,
        val_selected=mean(lambda run: run.selected),
        last=mean(lambda run: run.last),
        best_of_test=mean(lambda run: run.best_of_test),
        gain=change(lambda run: run.selected),
        task_test=mean(lambda run: run.test.task_loss),
        task_train=mean(lambda run: run.train.task_loss),
        distill_test=optional(distill(lambda run: run.test.distill_loss)),
        distill_train=optional(distill(lambda run: run.train.distill_loss)),
        task_change=change(lambda run: run.test.task_loss),
        distill_change=change(distill(lambda run: run.test.distill_loss)),
        seconds=optional(lambda run: run.seconds),
        relative_seconds=paired_ratio(_by_seed(runs, _seconds), _by_seed(baseline, _seconds)),
        agreement=optional(lambda run: run.test.agreement),
        calibration_error=optional(lambda run: run.test.calibration_error),
    )


def _seconds(run: Run) -> float | None:
    return run.seconds


def compare_cells(
    runs: Mapping[str, Sequence[Run]], candidate: str, baseline: str, value: Callable[[Run], float | None]
) -> Difference:
    """Paired difference of any two cells in any quantity, for questions that the table does not ask."""
    return paired_difference(_by_seed(runs.get(candidate, ()), value), _by_seed(runs.get(baseline, ()), value))


def _by_seed(runs: Sequence[Run], value: Callable[[Run], float | None]) -> dict[int, float | None]:
    return {run.seed: value(run) for run in runs if not run.diverged}
