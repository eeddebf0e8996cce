"""A slice of Tiny-ImageNet at 32 x 32 pixels: the trade-off of a small ResNet, and three other architectures.

    python studies/tiny_slice.py PATH [--jobs 2] [--out runs/tiny-slice]      # about 100 minutes on two cores
    python studies/tiny_slice.py --page                                       # docs/results/tiny-slice.md from its CSV

PATH is tiny-imagenet-200 in its official tree. All 500 training and 50 test pictures of its first ten classes are
decoded once; a resnet20 learns them, and what it says of VIEWS views of each picture is kept for all students. The
students (`tiny_slice/*.yaml`) are trained at three learning rates by every trainer, over 5 seeds. Each part is one
`dotkd` command, which is printed. On a CPU build of torch, timm needs `tests/cpu_torchvision` on PYTHONPATH.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import architectures
import page
import pictures
import rates
from architectures import GRIDS, MODELS
from page import Row
from tiny_imagenet import Slice, pack
from trade_off import CELLS

NAME = "tiny-slice"
HERE = Path(__file__).resolve().parent / "tiny_slice"
SLICE = Slice(classes=10, train=500, test=50, pixels=32)
SEEDS, EPOCHS, VIEWS = 5, 10, 10
RATES = architectures.GRID_OF["sgd"]
RESNET = [f"resnet lr {rate:g}" for rate in RATES]


def run(out: Path, jobs: int, path: Path) -> tuple[list[Row], list[str]]:
    packed, cache = out / "pictures.safetensors", out / "cache"
    pack(path, packed, SLICE)
    words = [f"data=arrays:{packed}", "augment=crop-flip", f"views={VIEWS}", f"epochs={EPOCHS}"]
    words += ["teacher=resnet20", "teacher_epochs=20", "teacher_lr=0.05"]
    page.dotkd("cache", str(HERE / "resnet.yaml"), *words, "threads=1", "--out", str(cache))
    words += [f"cache={cache}", f"teacher_weights={cache / 'teacher'}"]
    words += ["--seeds", str(SEEDS), "--jobs", str(jobs)]

    def compare(models: Sequence[str], trainers: Sequence[str], grid: Sequence[float], *more: str) -> Path:
        folder = out / "-".join((*models, trainers[0]))
        files = [str(HERE / f"{model}.yaml") for model in models]
        vary = f"lr={','.join(str(rate) for rate in grid)}"
        trained = ["--trainers", ",".join(trainers), *more]
        page.dotkd("compare", *files, *words, "--vary", vary, *trained, "--out", str(folder))
        return folder

    controls = ("sgd", "dot", "dot-normalized", "sgd-matched")
    folder = compare(["resnet"], controls, RATES, "--methods", "none,kd")
    rows: list[Row] = []
    for rate, setting in zip(RATES, RESNET, strict=True):
        rows += page.comparison_rows(setting, folder / f"resnet-lr={rate:g}")
    for trainers, grid in GRIDS.items():
        folder = compare(MODELS, trainers, grid)
        for model in MODELS:
            rows += rates.tried(folder, model, grid, prefix=f"{model} ")
    return rows, page.origin_lines([out])


def blocks(rows: Sequence[Row]) -> Mapping[str, str]:
    """Those of the trade-off for the ResNet, and those of the other architectures."""
    ends = {
        f"resnet-{name.replace('_', '-')}": page.comparison_table(rows, RESNET, CELLS, "kd", name, digits=digits)
        for name, digits in (
            ("accuracy", 2),
            ("train_task", 3),
            ("train_distill", 3),
            ("test_task", 3),
            ("test_distill", 3),
        )
    }
    return {**ends, **architectures.blocks(rows)}


def picture(rows: Sequence[Row], path: Path) -> None:
    figure, axes = pictures.panels(len(RESNET))
    for panel, setting in zip(axes, RESNET, strict=True):
        points = {cell: page.ends(rows, setting, cell, ("train_distill", "train_task")) for cell in CELLS}
        pictures.ends(panel, points, title=setting)
    pictures.save(figure, path)


if __name__ == "__main__":
    page.main(NAME, __doc__, run, blocks, picture, source="tiny-imagenet-200 in its official tree")
