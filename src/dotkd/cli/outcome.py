"""What a comparison leaves behind: files, pictures, tables, and the sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from dotkd.cli.campaign import Plan
from dotkd.cli.console import results, say
from dotkd.cli.tables import show_comparison
from dotkd.evidence import plots
from dotkd.evidence.comparison import CE_MEASURED_BY, NO_DISTILLATION, Row, as_csv, as_json, make_rows
from dotkd.evidence.runs import Run, read_evaluations
from dotkd.evidence.verdict import verdict


def publish(plan: Plan) -> None:
    """Writes the files of `plan.out` and prints the tables and, for each method with DOT, the sentence."""
    runs = plan.runs()
    rows = make_rows(plan.cells, runs)
    # Files first: whoever stops reading the tables half-way (a closed pipe) has them all the same.
    try:
        written = _write(plan, rows, runs)
    except ModuleNotFoundError as error:
        typer.echo(f"no pictures: {error}", err=True)
        written = _number_files(plan)
    out = results()
    show_comparison(out, rows, title=plan.name)
    names = {cell.name for cell in plan.cells}
    for method in dict.fromkeys(cell.method for cell in plan.cells):
        if method != NO_DISTILLATION and {method, f"{method}+dot"} <= names:
            say(out, f"\n{verdict(runs, method=method)}")
    say(out, "\nwritten: " + ", ".join(str(path) for path in written))


def _number_files(plan: Plan) -> list[Path]:
    """Where the table and the numbers of the runs are written."""
    return [plan.out / "comparison.json", plan.out / "comparison.csv"]


def _write(plan: Plan, rows: Sequence[Row], runs: Mapping[str, list[Run]]) -> list[Path]:
    """Writes the table, the numbers and the pictures, and returns their paths.

    Raises ModuleNotFoundError naming the extra where matplotlib is missing, after the files that need none.
    """
    from dotkd.checkpoint import write_atomically

    table = {"comparison": plan.name, "seeds": plan.seeds, **as_json(rows, runs)}
    paths = _number_files(plan)
    write_atomically(paths[0], json.dumps(table, indent=1, allow_nan=False) + "\n")
    write_atomically(paths[1], as_csv(runs))
    curves = {name: [read_evaluations(run.path) for run in ended if not run.diverged] for name, ended in runs.items()}
    if not any(curves.values()):
        return paths
    accuracy = plan.out / "accuracy.png"
    teacher = next((run.teacher_accuracy for ended in runs.values() for run in ended if run.teacher_accuracy), None)
    plots.accuracy_over_epochs(curves, accuracy, title=f"{plan.name}: accuracy of the student", teacher=teacher)
    paths.append(accuracy)
    methods = list(dict.fromkeys(cell.method for cell in plan.cells if cell.method != NO_DISTILLATION))
    for method in methods:
        # Losses of different methods are not of one scale: a picture each.
        alike = (method, NO_DISTILLATION) if method == CE_MEASURED_BY else (method,)
        shown = {cell.name: curves[cell.name] for cell in plan.cells if cell.method in alike}
        path = plan.out / ("trade-off.png" if len(methods) == 1 else f"trade-off-{method}.png")
        plots.trade_off(shown, path, title=f"{plan.name}: task loss against distillation loss ({method})")
        paths.append(path)
    return paths
