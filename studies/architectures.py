"""Students of other architectures: a ViT, a ConvNeXt and an MLP-Mixer learn from a convolutional teacher.

    python studies/architectures.py [--jobs 2] [--out runs/architectures]     # about 10 minutes on one core
    python studies/architectures.py --page                  # docs/results/architectures.md from its CSV

Scikit-learn's digits; small models of timm without weights (`architectures/*.yaml`); the teacher is the network of
`three_convolutions.py` with 24, 48, 96 channels. Each trainer is run at three learning rates, those of the SGD forms
three times as large as those of the AdamW forms, over 8 seeds, and reported at the one that is best on the validation
split after the last epoch. The runs are two `dotkd compare`, which are printed. On a CPU build of torch, timm needs
`tests/cpu_torchvision` on PYTHONPATH.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import page
import pictures
import rates
from page import Row

NAME = "architectures"
HERE = Path(__file__).resolve().parent / NAME
MODELS = ("vit", "convnext", "mixer")
SEEDS, EPOCHS = 8, 12
TEACHER = "studies.three_convolutions:three_convolutions"
GRIDS: dict[tuple[str, ...], tuple[float, ...]] = {
    ("sgd", "dot", "sgd-matched"): (0.01, 0.03, 0.1),
    ("adamw", "dot-adamw"): (0.003, 0.01, 0.03),
}
GRID_OF = {trainer: grid for trainers, grid in GRIDS.items() for trainer in trainers}
PAIRS = (("dot", "sgd"), ("sgd-matched", "sgd"), ("dot", "sgd-matched"), ("dot-adamw", "adamw"), ("adamw", "sgd"))


def run(out: Path, jobs: int) -> tuple[list[Row], list[str]]:
    words = [str(HERE / f"{model}.yaml") for model in MODELS]
    words += [f"teacher={TEACHER}", "teacher_options={width: 24}", "teacher_epochs=10", "teacher_lr=0.1"]
    words += [f"epochs={EPOCHS}", "--seeds", str(SEEDS), "--jobs", str(jobs)]
    rows: list[Row] = []
    for trainers, grid in GRIDS.items():
        folder = out / trainers[0]
        vary = f"lr={','.join(str(rate) for rate in grid)}"
        page.dotkd("compare", *words, "--vary", vary, "--trainers", ",".join(trainers), "--out", str(folder))
        for model in MODELS:
            rows += rates.tried(folder, model, grid, prefix=f"{model} ")
    return rows, page.origin_lines([out])


def chosen(rows: Sequence[Row]) -> list[Row]:
    """The runs at the learning rate of each trainer, the model as their setting."""
    found: list[Row] = []
    for model in MODELS:
        for trainer, grid in GRID_OF.items():
            setting = f"{model} lr {rates.best(rows, trainer, grid, prefix=f'{model} '):g}"
            mine = (row for row in rows if (row["setting"], row["cell"]) == (setting, trainer))
            found += [{**row, "setting": model} for row in mine]
    return found


def blocks(rows: Sequence[Row]) -> Mapping[str, str]:
    return {"grid": grid_table(rows), **level_tables(chosen(rows))}


def grid_table(rows: Sequence[Row]) -> str:
    """Validation accuracy of every trainer at each of its learning rates."""
    lines = [
        [model, trainer, rates.line(rows, trainer, grid, prefix=f"{model} ")]
        for model in MODELS
        for trainer, grid in GRID_OF.items()
    ]
    return page.table(["student", "trainer", "validation accuracy, % at each learning rate"], lines)


def level_tables(rows: Sequence[Row]) -> dict[str, str]:
    """What came out, of rows whose setting is the model."""
    told = page.told_together({(model, *pair): page.change(rows, model, *pair) for model in MODELS for pair in PAIRS})
    differences = [[model, *(told[model, a, b] for a, b in PAIRS)] for model in MODELS]
    return {
        "accuracy": level_table(rows, "accuracy", digits=2),
        "differences": page.table(["student", *(f"{a} - {b}" for a, b in PAIRS)], differences),
        "test-task": level_table(rows, "test_task", digits=3),
        "test-distill": level_table(rows, "test_distill", digits=3),
    }


def level_table(rows: Sequence[Row], key: str, *, digits: int) -> str:
    """The mean of every trainer for every student."""
    lines = [[m, *(page.estimate_text(page.mean(rows, m, t, key), digits) for t in GRID_OF)] for m in MODELS]
    return page.table(["student", *GRID_OF], lines)


def picture(rows: Sequence[Row], path: Path) -> None:
    """Test accuracy at every learning rate."""
    every = sorted({rate for grid in GRIDS.values() for rate in grid})
    figure, axes = pictures.panels(len(MODELS))
    for panel, model in zip(axes, MODELS, strict=True):
        found = {trainer: [page.mean(rows, f"{model} lr {rate:g}", trainer) for rate in every] for trainer in GRID_OF}
        pictures.against(panel, every, found, title=model, log=True)
        panel.set_ylim(0, 102)  # intervals of few seeds reach far beyond
        panel.set_xlabel("learning rate")
    axes[0].set_ylabel("test accuracy, %")
    pictures.save(figure, path)


if __name__ == "__main__":
    page.main(NAME, __doc__, run, blocks, picture)
