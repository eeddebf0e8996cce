"""`dotkd train`: one student from one configuration, with its teacher if need be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dotkd.cli import failures

if TYPE_CHECKING:
    from dotkd.trainer import Trainer

EXAMPLE = """\
  dotkd train mnist1d trainer=dot lr=0.05 seed=1
  dotkd train imagefolder data=imagefolder:~/pictures epochs=30 --out runs/mine
  dotkd train mine.yaml student_options.width=8
"""


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|FILE", help="A recipe's name or a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value", help="Changes to it; `dotkd recipes RECIPE` explains every key."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Run folder. [runs/RECIPE-TRAINER-seedK]")] = None,
) -> None:
    """Train a student from a teacher.

    The teacher is trained first, unless teacher_weights names its weights or its run folder.
    """
    from dotkd.cli.console import progress
    from dotkd.config import Config
    from dotkd.metrics import display_for
    from dotkd.trainer import Trainer

    config = Config.from_sources(recipe, overrides or [])
    stem = Path(recipe).stem if Path(recipe).suffix else recipe
    directory = out or Path("runs") / f"{stem}-{config.trainer}-seed{config.seed}"
    run_to_the_end(Trainer(config, directory, display=display_for(progress())), directory)


def run_to_the_end(trainer: Trainer, directory: Path) -> None:
    """Trains on and reports; raises typer.Exit with 75 where a signal came and 3 where the run diverged."""
    from dotkd.cli.console import results, say
    from dotkd.trainer import Diverged, Interrupted

    try:
        summary = trainer.fit()
    except Interrupted as stop:
        # The message of a stopped teacher names the teacher's folder; the run to continue is the student's.
        told = str(stop).partition(";")[0]
        raise failures.leave(failures.INTERRUPTED, f"{told}; continue with: dotkd resume {directory}") from None
    except Diverged as error:
        raise failures.leave(failures.DIVERGED, f"{directory} diverged: {error}") from None
    if summary["status"] == "diverged":
        raise failures.leave(failures.DIVERGED, f"{directory} holds a run that diverged")
    for line in _summary_lines(summary):
        say(results(), line)
    say(results(), f"run folder: {directory}")


def _summary_lines(summary: Mapping[str, Any]) -> list[str]:
    accuracy, losses = summary["test_accuracy"], summary["losses"]["test"]
    lines = [
        f"test accuracy {_percent(accuracy['val_selected'])} (epoch best on validation), "
        f"{_percent(accuracy['last'])} (last epoch)"
    ]
    if summary.get("ema_test_accuracy") is not None:
        lines[0] += f", {_percent(summary['ema_test_accuracy'])} (moving average)"
    if summary.get("teacher_test_accuracy") is not None:
        lines[0] += f"; teacher {_percent(summary['teacher_test_accuracy'])}"
    told = [f"{name} {value:.4g}" for name, value in losses.items() if value is not None]
    skipped = f", {summary['skipped_steps']} skipped" if summary["skipped_steps"] else ""
    lines.append(f"test losses: {', '.join(told)}; {summary['steps']} steps{skipped} in {summary['seconds']:.1f} s")
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
