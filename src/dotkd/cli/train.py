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
  dotkd train --from-mdistiller configs/cifar100/dot/res32x4_res8x4.yaml
"""


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|FILE", help="A recipe's name or a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value", help="Changes to it; `dotkd recipes RECIPE` explains every key."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Run folder. [runs/RECIPE-TRAINER-seedK]")] = None,
    from_mdistiller: Annotated[
        bool, typer.Option("--from-mdistiller", help="FILE was written for mdistiller: translate it, and say how.")
    ] = False,
) -> None:
    """Train a student from a teacher.

    The teacher is trained first, unless teacher_weights names its weights or its run folder.
    """
    from dotkd.cli.console import progress
    from dotkd.config import Config
    from dotkd.metrics import display_for
    from dotkd.trainer import Trainer

    if from_mdistiller:
        from dotkd.cli.translation import show_translation
        from dotkd.recipes.mdistiller import translate

        translation = translate(recipe)
        show_translation(translation)
        config = translation.config(overrides or [])
    else:
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
        _report(directory)
        raise failures.leave(failures.DIVERGED, f"{directory} diverged: {error}") from None
    _report(directory)
    if summary["status"] == "diverged":
        raise failures.leave(failures.DIVERGED, f"{directory} holds a run that diverged")
    for line in _summary_lines(summary):
        say(results(), line)
    say(results(), f"run folder: {directory}")


def _report(directory: Path) -> None:
    from dotkd import distributed
    from dotkd.report import write_report

    if distributed.is_main():
        write_report([directory], directory / "report.html")


def _summary_lines(summary: Mapping[str, Any]) -> list[str]:
    accuracy, losses = summary["test_accuracy"], summary["losses"]["test"]
    selected = accuracy["val_selected"]
    best = "" if selected is None else f"{_percent(selected)} (epoch best on validation), "
    lines = [f"test accuracy {best}{_percent(accuracy['last'])} (last epoch)"]
    if summary.get("ema_test_accuracy") is not None:
        lines[0] += f", {_percent(summary['ema_test_accuracy'])} (moving average)"
    if summary.get("teacher_test_accuracy") is not None:
        lines[0] += f"; teacher {_percent(summary['teacher_test_accuracy'])}"
    told = [f"{name} {value:.4g}" for name, value in losses.items() if value is not None]
    skipped = f", {summary['skipped_steps']} skipped" if summary["skipped_steps"] else ""
    lines.append(f"test losses: {', '.join(told)}; {summary['steps']} steps{skipped} in {summary['seconds']:.1f} s")
    if cache := summary.get("cache"):
        lines.append(f"cache: {cache['read']} read, {cache['computed']} computed, {cache['corrupt']} damaged")
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
