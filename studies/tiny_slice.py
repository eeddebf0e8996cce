"""A slice of Tiny-ImageNet at 32 x 32 pixels: the trade-off of a small ResNet, and three other architectures.

    python studies/tiny_slice.py PATH [--jobs 2] [--out runs/tiny-slice]      # about 100 minutes on two cores
    python studies/tiny_slice.py --page                                       # docs/results/tiny-slice.md from its CSV

PATH is tiny-imagenet-200 in its official tree. All 500 training and 50 test pictures of its first ten classes are
decoded once; a resnet20 learns them, and what it says of VIEWS views of each picture is kept for all students
(`tiny_slice/*.yaml`). The ResNet is trained at three learning rates, all of which are shown; the others at the one of
three that was best for their trainer on the validation split, over other seeds. Each part is one `dotkd` command, which
is printed. On a CPU build of torch, timm needs `tests/cpu_torchvision` on PYTHONPATH.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import architectures
import page
import rates
import trade_off
from architectures import GRIDS, MODELS
from page import Row
from tiny_imagenet import Slice, pack

from dotkd.evidence.runs import read_run

NAME = "tiny-slice"
HERE = Path(__file__).resolve().parent / "tiny_slice"
SLICE = Slice(classes=10, train=500, test=50, pixels=32)
VIEWS = 10
EPOCHS, SEEDS = 10, 5  # of the ResNet
EPOCHS_OF_OTHERS, SEEDS_OF_OTHERS = 8, 8
TUNING_SEED, TUNING_SEEDS = 100, 2
CONTROLS = "sgd,dot,dot-normalized,sgd-matched"
RATES = architectures.GRID_OF["sgd"]
DIGITS_OF = {"accuracy": 2, "train_task": 3, "train_distill": 3, "test_task": 3, "test_distill": 3}
RESNET = [f"resnet lr {rate:g}" for rate in RATES]


def run(out: Path, jobs: int, path: Path) -> tuple[list[Row], list[str]]:
    packed, cache = out / "pictures.safetensors", out / "cache"
    pack(path, packed, SLICE)
    words = [f"data=arrays:{packed}", "augment=crop-flip", f"views={VIEWS}"]
    words += ["teacher=resnet20", "teacher_epochs=20", "teacher_lr=0.05"]
    page.dotkd("cache", str(HERE / "resnet.yaml"), *words, f"epochs={EPOCHS}", "threads=1", "--out", str(cache))

    def compare(name: str, models: Sequence[str], trainers: str, epochs: int, seeds: int, *more: str) -> Path:
        files = [str(HERE / f"{model}.yaml") for model in models]
        taught = [f"epochs={epochs}", f"cache={cache}", f"teacher_weights={cache / 'teacher'}"]
        cells = ["--seeds", str(seeds), "--jobs", str(jobs), *more, "--trainers", trainers]
        page.dotkd("compare", *files, *words, *taught, *cells, "--out", str(out / name))
        return out / name

    folder = compare("resnet", ["resnet"], CONTROLS, EPOCHS, SEEDS, *varied(RATES), "--methods", "none,kd")
    rows: list[Row] = []
    for rate, setting in zip(RATES, RESNET, strict=True):
        rows += page.comparison_rows(setting, folder / f"resnet-lr={rate:g}")
    for trainers, grid in GRIDS.items():
        own = [f"seed={TUNING_SEED}", *varied(grid)]
        folder = compare(f"tuning-{trainers[0]}", MODELS, ",".join(trainers), EPOCHS_OF_OTHERS, TUNING_SEEDS, *own)
        for model in MODELS:
            rows += rates.tried(folder, model, grid, prefix=f"{model} ")
    for model in MODELS:
        rate_of = {t: rates.best(rows, t, grid, prefix=f"{model} ") for t, grid in architectures.GRID_OF.items()}
        for rate in sorted(set(rate_of.values())):
            trainers = [trainer for trainer in rate_of if rate_of[trainer] == rate]
            name = f"{model}-lr-{rate:g}"
            folder = compare(name, [model], ",".join(trainers), EPOCHS_OF_OTHERS, SEEDS_OF_OTHERS, f"lr={rate}")
            found = [read_run(path.parent) for path in sorted(folder.glob("*/seed-*/summary.json"))]
            rows += [page.row_of(model, run.trainer, run) for run in found]
    return rows, page.origin_lines([out])


def varied(grid: Sequence[float]) -> list[str]:
    return ["--vary", f"lr={','.join(str(rate) for rate in grid)}"]


def blocks(rows: Sequence[Row]) -> Mapping[str, str]:
    """Those of the trade-off for the ResNet, and those of the other architectures."""
    ends = {
        f"resnet-{key.replace('_', '-')}": page.comparison_table(
            rows, RESNET, trade_off.CELLS, "kd", key, digits=digits
        )
        for key, digits in DIGITS_OF.items()
    }
    others = {"grid": architectures.grid_table(rows), **architectures.level_tables(rows)}
    return {**ends, "resnet-direct": direct_table(rows), **others}


def direct_table(rows: Sequence[Row]) -> str:
    """DOT minus the control that weighs the losses as DOT does; p by Holm over each column."""
    columns = [
        page.told_together({s: page.change(rows, s, "kd+dot", "kd+sgd-matched", key) for s in RESNET}, digits=digits)
        for key, digits in DIGITS_OF.items()
    ]
    heads = ["setting", "accuracy", "train, task", "train, distill", "test, task", "test, distill"]
    return page.table(heads, [[s, *(told[s] for told in columns)] for s in RESNET])


def picture(rows: Sequence[Row], path: Path) -> None:
    trade_off.ends(rows, path, RESNET)


if __name__ == "__main__":
    page.main(NAME, __doc__, run, blocks, picture, source="tiny-imagenet-200 in its official tree")
