"""What was measured of the recipes: `measured.json` beside this file, written from finished comparisons.

A cell of a comparison belongs to a recipe if its runs had the recipe's configuration, up to keys that say where and how
often it was run. The figure is the test accuracy after the last epoch.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dotkd.evidence.runs import SUMMARY, Run, read_run
from dotkd.evidence.statistics import estimate
from dotkd.recipes.row import Recipe

FILE = Path(__file__).with_name("measured.json")
COMPARISON = "comparison.yaml"
# Where, how often and with what noted: none of these is a part of the experiment. The data's path is neither.
_OF_THE_MACHINE = (
    *("seed", "device", "threads", "compile", "low_memory", "activation_checkpointing", "teacher_weights"),
    *("checkpoint_every", "log_every", "tensorboard", "max_skips"),
)


class Measured(NamedTuple):
    """The figures of a recipe in percent: mean ± half_width over n seeds. half_width: None with one seed."""

    mean: float
    half_width: float | None
    n: int
    commit: str | None
    hardware: str
    date: str
    command: str


def read(path: Path | None = None) -> dict[str, Measured]:
    """{recipe: what was measured last}."""
    return {name: Measured(**figures) for name, figures in json.loads((path or FILE).read_text("utf-8")).items()}


def record(directory: Path, recipes: Mapping[str, Recipe], path: Path | None = None) -> dict[str, Measured]:
    """Add the cells of the comparison in `directory` that are recipes to the file, and return them.

    Raises ValueError where the folder holds no finished comparison, none of its cells is a recipe (with the keys in
    which each differs from the nearest one), or the runs of a cell come from several commits or machines.
    """
    found: dict[str, Measured] = {}
    foreign: list[str] = []
    for cell, runs in _cells(directory).items():
        held = _experiment(runs[0].config)
        differences = {name: _different(held, _experiment(_plain(recipe))) for name, recipe in recipes.items()}
        name = min(differences, key=lambda name: len(differences[name]))
        if differences[name]:
            foreign.append(f"{cell} differs from {name} in {', '.join(differences[name])}")
        else:
            found[name] = _measured(name, cell, runs)
    if not found:
        raise ValueError(f"expected a comparison of recipes, got {directory}:\n  " + "\n  ".join(foreign))
    from dotkd.atomic_file import write_atomically

    known = {name: figures._asdict() for name, figures in {**read(path), **found}.items()}
    ordered = {name: known[name] for name in recipes if name in known}
    write_atomically(path or FILE, json.dumps(ordered, indent=1, allow_nan=False) + "\n")
    return found


def _cells(directory: Path) -> dict[str, list[Run]]:
    if not (directory / COMPARISON).is_file():
        raise ValueError(f"expected the folder of a `dotkd compare`, got {directory}, which has no {COMPARISON}")
    cells: dict[str, list[Run]] = {}
    for summary in sorted(directory.glob(f"*/seed-*/{SUMMARY}")):
        cells.setdefault(summary.parent.parent.name, []).append(read_run(summary.parent))
    if not cells:
        raise ValueError(f"expected a finished comparison, got {directory}, where no run has ended")
    return cells


def _measured(name: str, cell: str, runs: list[Run]) -> Measured:
    accuracy = estimate([None if run.diverged else run.last for run in runs])
    if accuracy.mean is None or accuracy.diverged:
        raise ValueError(f"expected every run of {cell} to end with an accuracy, got {accuracy.diverged} that diverged")
    origins = [_summary(run) for run in runs]
    for key in ("commit", "hardware"):
        several = sorted({str(origin.get(key)) for origin in origins})
        if len(several) > 1:
            raise ValueError(f"expected one {key} for all runs of {cell}, got {', '.join(several)}")
    first = min(run.seed for run in runs)
    words = ["dotkd compare", name, *([f"seed={first}"] if first else [])]
    words += [
        f"--methods none --trainers {runs[0].trainer}" if runs[0].method == "none" else f"--trainers {runs[0].trainer}"
    ]
    width = accuracy.half_width
    return Measured(
        mean=round(100 * accuracy.mean, 3),
        half_width=None if width is None else round(100 * width, 3),
        n=accuracy.n,
        commit=origins[0].get("commit"),
        hardware=str(origins[0].get("hardware")),
        date=datetime.date.today().isoformat(),
        command=" ".join([*words, f"--seeds {len(runs)}"]),
    )


def _summary(run: Run) -> dict[str, Any]:
    return json.loads((run.path / SUMMARY).read_text("utf-8"))


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The configuration as `summary.json` has it, where a tuple is a list."""
    return json.loads(json.dumps(recipe.config.model_dump()))


def _experiment(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in _OF_THE_MACHINE}
    return {**kept, "data": str(kept.get("data")).partition(":")[0]}


def _different(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    return [key for key in {**wanted, **held} if held.get(key) != wanted.get(key)]
