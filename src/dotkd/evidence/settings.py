"""The tables of a comparison, one a setting, and their p-values corrected together.

A setting is a recipe with the values that a study varies: `delta=0.05`. Every test that the tables hold is a claim that
may come out by chance, so that all tests of one quantity, over cells and settings, are one family for Holm's correction
(1979): those of accuracy (gains, and DOT against its matched control), those of the task loss, those of the
distillation loss. Settings may share runs, as those of plain SGD at another delta; a test of the same runs on both
sides is one test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dotkd.evidence.comparison import Cell, Row, compare_cells, make_rows
from dotkd.evidence.runs import Run
from dotkd.evidence.statistics import Difference, holm

REWEIGHTING = "sgd-matched"

_LOSSES = ("task_change", "distill_change")
# The runs of both sides: what makes two tests the same.
_Test = tuple[tuple[str, ...], tuple[str, ...]]


class Table(NamedTuple):
    """One setting. varied: {key: its value}. directory: its folder, relative to that of the comparison.

    against_matched: {method: DOT minus `sgd-matched` in accuracy}. runs: {cell name: its runs that ended}.
    """

    name: str
    recipe: str
    varied: Mapping[str, Any]
    directory: str
    rows: Sequence[Row]
    against_matched: Mapping[str, Difference]
    runs: Mapping[str, Sequence[Run]]

    def row(self, cell: str) -> Row | None:
        """The line of a cell, None where there is none."""
        return next((row for row in self.rows if row.cell.name == cell), None)


class Evidence(NamedTuple):
    """Everything that a comparison says. tests: the size of the family of the accuracies."""

    name: str
    tables: Sequence[Table]
    tests: int

    @property
    def seeds(self) -> list[int]:
        """All seeds that a run ended with."""
        return sorted({run.seed for table in self.tables for runs in table.runs.values() for run in runs})


def make_table(
    name: str,
    cells: Sequence[Cell],
    runs: Mapping[str, Sequence[Run]],
    *,
    recipe: str = "",
    varied: Mapping[str, Any] | None = None,
    directory: str = ".",
) -> Table:
    """The table of one setting, each test by itself as yet; runs: {cell name: its finished runs}."""
    names = {cell.name for cell in cells}
    against = {
        method: compare_cells(runs, f"{method}+dot", f"{method}+{REWEIGHTING}", lambda run: run.selected)
        for method in dict.fromkeys(cell.method for cell in cells)
        if {f"{method}+dot", f"{method}+{REWEIGHTING}"} <= names
    }
    return Table(name, recipe or name, varied or {}, directory, make_rows(cells, runs), against, runs)


def corrected(name: str, tables: Sequence[Table]) -> Evidence:
    """The tables with every `p_corrected` that of its family over all of them."""
    accuracy: dict[_Test, float] = {}
    losses: dict[str, dict[_Test, float]] = {quantity: {} for quantity in _LOSSES}
    for table in tables:
        for row in table.rows:
            _enter(accuracy, _of_row(table, row), row.gain)
            for quantity in _LOSSES:
                _enter(losses[quantity], _of_row(table, row), getattr(row, quantity))
        for method, change in table.against_matched.items():
            _enter(accuracy, _of_contrast(table, method), change)
    found, others = holm(accuracy), {quantity: holm(family) for quantity, family in losses.items()}

    def settled(table: Table) -> Table:
        rows = [
            row._replace(
                gain=_put(found, _of_row(table, row), row.gain),
                **{name: _put(others[name], _of_row(table, row), getattr(row, name)) for name in _LOSSES},
            )
            for row in table.rows
        ]
        against = {
            method: _put(found, _of_contrast(table, method), change) for method, change in table.against_matched.items()
        }
        return table._replace(rows=rows, against_matched=against)

    return Evidence(name, [settled(table) for table in tables], len(accuracy))


def _enter(family: dict[_Test, float], test: _Test, change: Difference) -> None:
    if change.p is not None:
        family[test] = change.p


def _put(family: Mapping[_Test, float], test: _Test, change: Difference) -> Difference:
    return change if change.p is None else change._replace(p_corrected=family[test])


def _of_row(table: Table, row: Row) -> _Test:
    return _sides(table, row.cell.name, row.cell.against or "")


def _of_contrast(table: Table, method: str) -> _Test:
    return _sides(table, f"{method}+dot", f"{method}+{REWEIGHTING}")


def _sides(table: Table, candidate: str, baseline: str) -> _Test:
    def runs(cell: str) -> tuple[str, ...]:
        return (cell, *(str(run.path) for run in table.runs.get(cell, ())))

    return runs(candidate), runs(baseline)
