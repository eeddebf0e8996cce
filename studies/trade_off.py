"""The trade-off between task loss and distillation loss: CE, KD, KD + DOT and both controls.

    python studies/trade_off.py [--jobs 2] [--out runs/trade-off]      # about 25 minutes on two cores
    python studies/trade_off.py --page                                 # docs/results/trade-off.md from its CSV

The claims (arXiv 2307.08436, its figure 1): a distillation loss leaves the task loss less converged than training on
the labels alone does, and DOT ends with both losses lower than plain distillation. Every setting is one `dotkd
compare`, which is printed, over 8 seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import page
import pictures
from page import Row

NAME = "trade-off"
CELLS = ("ce", "kd", "kd+dot", "kd+dot-normalized", "kd+sgd-matched")
# Two learning rates of the ResNet and of the digits: one below that which suits plain distillation, and that one.
SETTINGS: dict[str, list[str]] = {
    "mnist1d lr 0.005": ["mnist1d", "lr=0.005"],
    "mnist1d lr 0.03": ["mnist1d", "lr=0.03"],
    "mnist1d mlp lr 0.02": ["mnist1d", "student=mlp", "student_options={}", "epochs=40", "lr=0.02"],
    "digits lr 0.01": ["digits", "teacher_lr=0.05", "lr=0.01"],
    "digits lr 0.05": ["digits", "teacher_lr=0.05", "lr=0.05"],
}


def run(out: Path, jobs: int) -> tuple[list[Row], list[str]]:
    teachers: dict[str, Path] = {}
    rows: list[Row] = []
    for setting, (recipe, *overrides) in SETTINGS.items():
        folder = out / setting.replace(" ", "-")
        taught = [f"teacher_weights={teachers[recipe]}"] if recipe in teachers else []
        teachers.setdefault(recipe, folder / "teacher")  # one teacher for all settings of a recipe
        trainers = "sgd,dot,dot-normalized,sgd-matched"
        cells = ["--methods", "none,kd", "--trainers", trainers, "--seeds", "8", "--jobs", str(jobs)]
        page.dotkd("compare", recipe, *overrides, *taught, *cells, "--out", str(folder))
        rows += page.comparison_rows(setting, folder)
    return rows, page.origin_lines([out])


def blocks(rows: Sequence[Row]) -> Mapping[str, str]:
    return {
        "accuracy": page.comparison_table(rows, list(SETTINGS), CELLS, "kd", "accuracy", digits=2),
        "task": page.comparison_table(rows, list(SETTINGS), CELLS, "kd", "train_task", digits=3),
        "distill": page.comparison_table(rows, list(SETTINGS), CELLS, "kd", "train_distill", digits=3),
        "test-task": page.comparison_table(rows, list(SETTINGS), CELLS, "kd", "test_task", digits=3),
        "test-distill": page.comparison_table(rows, list(SETTINGS), CELLS, "kd", "test_distill", digits=3),
    }


def picture(rows: Sequence[Row], path: Path) -> None:
    ends(rows, path, list(SETTINGS))


def ends(rows: Sequence[Row], path: Path, settings: Sequence[str]) -> None:
    """Where the runs of each cell end in the plane of both training losses, a panel a setting."""
    figure, axes = pictures.panels(len(settings))
    for panel, setting in zip(axes, settings, strict=True):
        points = {cell: page.ends(rows, setting, cell, ("train_distill", "train_task")) for cell in CELLS}
        pictures.ends(panel, points, title=setting)
    pictures.save(figure, path)


if __name__ == "__main__":
    page.main(NAME, __doc__, run, blocks, picture)
