"""`dotkd analyse`: loss landscape, curvature and likeness to the teacher of finished runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dotkd.evidence.flatness import Row

EXAMPLE = """\
  dotkd analyse runs/compare-mnist1d
  dotkd analyse runs/first --what line,plane --points 31
"""


def analyse(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Run folders, or folders of them such as a comparison.")
    ],
    what: Annotated[
        str, typer.Option(metavar="NAMES", help="Of line, plane, hessian, objective, cka, with commas.")
    ] = "line,hessian,cka",
    samples: Annotated[int, typer.Option(metavar="N", help="Samples of the training split, at most.")] = 1024,
    points: Annotated[int, typer.Option(metavar="N", help="Points along an axis of a landscape, from -1 to 1.")] = 21,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the samples and the random directions.")] = 0,
) -> None:
    """Measure how flat a student's minimum is, and how alike it is to its teacher.

    line and plane are the loss along filter-normalised random directions (plane is costly), hessian the curvature of
    the task loss, objective that of the weighted sum of both losses, cka the likeness of features. Each run folder gets
    an analysis.json; what it holds already by the same settings is not measured again.
    """
    from dotkd import analysis
    from dotkd.cli.console import progress, results, say
    from dotkd.evidence.comparison import check_names
    from dotkd.evidence.flatness import Analysed, make_rows
    from dotkd.evidence.runs import read_run

    kinds = [name.strip() for name in what.split(",") if name.strip()]
    if not kinds:
        raise ValueError(f"expected --what to name some of {', '.join(analysis.KINDS)}, got {what!r}")
    check_names("--what", kinds, analysis.KINDS)
    settings = analysis.Settings(samples, points, seed)
    folders = list(dict.fromkeys(folder for directory in directories for folder in find_runs(directory)))
    told = progress()
    analysed: list[Analysed] = []
    for number, folder in enumerate(folders, start=1):
        run, start = read_run(folder), time.monotonic()
        if run.diverged:
            say(told, f"{number}/{len(folders)}  {folder}: diverged, nothing to measure")
            analysed.append(Analysed(run, {}))
            continue
        values = analysis.analyse(folder, kinds, settings)
        analysed.append(Analysed(run, values))
        absent = "".join(f"; no {name}: {why}" for name, why in values["absent"].items())
        say(told, f"{number}/{len(folders)}  {folder}: {time.monotonic() - start:.1f} s{absent}")
    show(make_rows(analysed))
    say(results(), f"written: {analysis.ANALYSIS} in each run folder")


def find_runs(directory: Path) -> list[Path]:
    """The folders of finished runs in `directory`, or itself; teachers that runs were taught by are left out.

    Raises FileNotFoundError where there is none.
    """
    from dotkd.evidence.runs import SUMMARY, is_finished

    if is_finished(directory):
        return [directory]
    held = sorted(path.parent for path in directory.rglob(SUMMARY))
    held = [folder for folder in held if folder.name != "teacher"]
    if not held:
        raise FileNotFoundError(f"{directory} holds no finished run: there is no {SUMMARY} in it or below")
    return held


def show(rows: Sequence[Row]) -> None:
    """Prints the means, and where cells are compared the paired differences; each table fits 80 columns."""
    from dotkd.cli import console as consoles
    from dotkd.cli.tables import count_text, digits, estimate_text, p_text
    from dotkd.evidence.flatness import QUANTITIES

    out = consoles.results()
    measured = [name for name in QUANTITIES if any(row.figures[name][0].n for row in rows)]
    for names in (measured[:3], measured[3:]):
        if not names:
            continue
        means = consoles.table(out, "cell", "n", *names)
        for row in rows:
            figures = [row.figures[name][0] for name in names]
            counts = max(figures, key=lambda mean: mean.n + mean.diverged)
            means.add_row(row.cell, count_text(counts), *map(estimate_text, figures))
        out.print(means)
    changes = consoles.table(out, "cell", "against", "of", "difference", "p corr.")
    for row in rows:
        for name in measured:
            change = row.figures[name][1]
            if row.against is not None and change.mean is not None:
                width = "-" if change.half_width is None else digits(change.half_width)
                sign = "+" if change.mean > 0 else ""
                changes.add_row(
                    row.cell, row.against, name, f"{sign}{digits(change.mean)} ± {width}", p_text(change.p_corrected)
                )
    if changes.row_count:
        consoles.say(out, "paired differences")
        out.print(changes)
    consoles.say(
        out,
        "mean ± 95 % t-interval over n seeds; p corr.: paired t-test on equal seeds, corrected by Holm over the cells; "
        "smaller is flatter, but for cka; rise: task loss at ±1/2 of the line minus that at the student; normalised: "
        "in units of the filters' norms, so that the scale of the weights does not enter",
    )
