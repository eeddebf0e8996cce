"""What a comparison leaves behind: files, pictures, tables, and what was shown in words."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from dotkd.cli.campaign import Plan
from dotkd.cli.console import results, say
from dotkd.cli.tables import show_evidence
from dotkd.evidence import plots
from dotkd.evidence.comparison import CE_MEASURED_BY, NO_DISTILLATION
from dotkd.evidence.latex import as_latex
from dotkd.evidence.numbers import as_json, cells_as_csv, runs_as_csv
from dotkd.evidence.runs import read_evaluations
from dotkd.evidence.settings import Evidence, Table
from dotkd.evidence.verdict import headline, judged, verdict
from dotkd.report import write_report


def publish(plan: Plan) -> Evidence:
    """Writes the files of `plan.out`, prints the tables and what was shown, and returns all of it."""
    evidence = plan.evidence()
    # Files first: whoever stops reading the tables half-way (a closed pipe) has them all the same.
    written = _write_numbers(plan, evidence)
    try:
        written += _draw(plan, evidence)
    except ModuleNotFoundError as error:
        typer.echo(f"no pictures: {error}", err=True)
    written.append(write_report([plan.out], plan.out / "report.html").path)
    out = results()
    show_evidence(out, evidence)
    for table in evidence.tables:
        for method in judged(table):
            if len(evidence.tables) == 1:
                say(out, f"\n{verdict(table, method=method)}")
            else:
                say(out, f"{table.name}: {headline(table, method=method)}")
    here = [str(path) for path in written if path.parent == plan.out]
    others = "" if len(here) == len(written) else "; further pictures in the folders of the settings"
    say(out, f"\nwritten: {', '.join(here)}{others}")
    return evidence


def _write_numbers(plan: Plan, evidence: Evidence) -> list[Path]:
    from dotkd.atomic_file import write_atomically

    texts = {
        "comparison.json": json.dumps(as_json(evidence, plan.seeds, plan.out), indent=1, allow_nan=False) + "\n",
        "comparison.csv": runs_as_csv(evidence, plan.out),
        "comparison-cells.csv": cells_as_csv(evidence),
        "comparison.tex": as_latex(evidence),
    }
    for name, text in texts.items():
        write_atomically(plan.out / name, text)
    return [plan.out / name for name in texts]


def _draw(plan: Plan, evidence: Evidence) -> list[Path]:
    """Draws what each setting and what their differences show, and returns the paths.

    Raises ModuleNotFoundError naming the extra where matplotlib is missing.
    """
    paths: list[Path] = []
    for table in evidence.tables:
        paths += _draw_setting(table, plan.out / table.directory, evidence.name)
    return paths + plots.ablations(evidence, plan.out)


def _draw_setting(table: Table, folder: Path, name: str) -> list[Path]:
    curves = {
        cell: [read_evaluations(run.path) for run in ended if not run.diverged] for cell, ended in table.runs.items()
    }
    if not any(curves.values()):
        return []
    title = name if table.directory == "." else f"{table.recipe}, {table.name}" if table.varied else table.name
    paths = [folder / "accuracy.png"]
    every = [run for ended in table.runs.values() for run in ended]
    teacher = next((run.teacher_accuracy for run in every if run.teacher_accuracy), None)
    plots.accuracy_over_epochs(curves, paths[0], title=f"{title}: accuracy of the student", teacher=teacher)
    cells = [row.cell for row in table.rows]
    methods = list(dict.fromkeys(cell.method for cell in cells if cell.method != NO_DISTILLATION))
    for method in methods:
        # Losses of different methods are not of one scale: a picture each.
        alike = (method, NO_DISTILLATION) if method == CE_MEASURED_BY else (method,)
        shown = {cell.name: curves[cell.name] for cell in cells if cell.method in alike}
        path = folder / ("trade-off.png" if len(methods) == 1 else f"trade-off-{method}.png")
        plots.trade_off(shown, path, title=f"{title}: task loss against distillation loss ({method})")
        paths.append(path)
    return paths
