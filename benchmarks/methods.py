"""Every method with one momentum and with DOT's two, on a slice of Tiny-ImageNet: does each train at its defaults?

    python benchmarks/methods.py PATH [--epochs 4] [--only at,crd] [--jobs 2] [--out runs/methods]

PATH is tiny-imagenet-200 in its official tree, or a part of it. Of its first ten classes 200 training and 50 test
images each, at 32 x 32 pixels, are learnt by a ResNet of 8 layers and 8, 16, 32 channels from resnet20: weights,
warm-up and temperature as published for each method, learning rate 0.05, batch 64. Losses are unweighted means over the
training images in eval mode, before and after; time is that of a step, on one core; memory is the peak of the process,
which runs nothing else. Started again it skips what is done. Exit code 1 where a run diverged.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dotkd import Config, Trainer
from dotkd.atomic_file import write_atomically
from dotkd.methods import METHODS
from dotkd.trainer import Diverged, teacher_run

CLASSES, IMAGES, TEACHER_EPOCHS = 10, 200, 8
RESULT = "methods.json"


def cut(source: Path, folder: Path) -> None:
    """The slice, as links into `source`."""
    if not (source / "train").is_dir() or not (source / "val" / "val_annotations.txt").is_file():
        sys.exit(f"expected Tiny-ImageNet's official tree, with train and val/val_annotations.txt, in {source}")
    chosen = sorted(entry.name for entry in (source / "train").iterdir())[:CLASSES]
    lines = [line.split("\t") for line in (source / "val" / "val_annotations.txt").read_text().splitlines()]
    files = [source / "val" / "images" / line[0] for line in lines if line[1] in chosen]
    for wnid in chosen:
        files += sorted((source / "train" / wnid / "images").iterdir())[:IMAGES]
    for file in [*files, source / "wnids.txt", source / "words.txt", source / "val" / "val_annotations.txt"]:
        link = folder / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(file.resolve())


def config_of(out: Path, method: str, trainer: str, epochs: int) -> Config:
    """One run of the table; without a trained teacher in `out`, the run that trains it."""
    teacher = out / "teacher"
    return Config(
        data=f"tiny-imagenet:{out / 'slice'}",
        image_size=32,
        augment="crop-flip",
        teacher="resnet20",
        teacher_weights=str(teacher) if (teacher / "summary.json").exists() else None,
        teacher_epochs=TEACHER_EPOCHS,
        student="resnet2d",
        student_options={"depth": 8, "width": 8},
        method=method,
        trainer=trainer,
        lr=0.05,
        epochs=epochs,
        threads=1,
    )


def run_one(out: Path, method: str, trainer: str, epochs: int) -> None:
    """Train one cell and leave its line in its run folder."""
    folder = out / f"{method}-{trainer}"
    run = Trainer(config_of(out, method, trainer, epochs), folder, resuming=folder.exists())
    before = run.examine().final_scores("train")
    try:
        summary = run.fit()
    except Diverged:
        summary = json.loads((folder / "summary.json").read_text())
    line = {
        "method": method,
        "trainer": trainer,
        "status": summary["status"],
        "before": before._asdict(),
        "after": summary["losses"]["train"],
        "accuracy": summary["test_accuracy"]["last"],
        "seconds_per_step": summary["seconds"] / summary["steps"],
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "skipped": summary["skipped_steps"],
    }
    write_atomically(folder / RESULT, json.dumps(line))


def row(line: Mapping[str, Any]) -> str:
    def change(loss: str, before: str) -> str:
        first, last = line["before"][before], line["after"][loss]
        return "-" if first is None or last is None else f"{first:.3g} > {last:.3g}"

    cells = [
        line["method"],
        line["trainer"],
        change("task", "task_loss"),
        change("distill", "distill_loss"),
        "diverged" if line["status"] != "done" else f"{100 * line['accuracy']:.1f}",
        f"{1000 * line['seconds_per_step']:.0f}",
        f"{line['megabytes']:.0f}",
        str(line["skipped"]),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--only", default=",".join(METHODS), help="names with commas between them")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--cell", help=argparse.SUPPRESS)  # METHOD:TRAINER, in a process of its own
    args = parser.parse_args()
    out = args.out.resolve()
    if args.cell:
        return run_one(out, *args.cell.split(":"), args.epochs)
    cut(args.path.expanduser(), out / "slice")
    teacher_run(config_of(out, "kd", "sgd", args.epochs), out / "teacher")
    names = args.only.split(",")
    cells = [(name, trainer) for name in names for trainer in ("sgd", "dot")]
    if "deepkd" in names:
        cells.append(("deepkd", "deepkd"))

    def carry_out(cell: tuple[str, str]) -> str:
        result = out / "-".join(cell) / RESULT
        if not result.exists():
            command = [sys.executable, __file__, str(args.path), "--cell", ":".join(cell), "--epochs", str(args.epochs)]
            subprocess.run([*command, "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
        return result.read_text()

    headers = ["method", "trainer", "task loss", "distillation loss", "test acc. %", "ms a step", "peak MB", "skipped"]
    sys.stdout.write("| " + " | ".join(headers) + " |\n" + "|---" * len(headers) + "|\n")
    diverged = False
    with ThreadPoolExecutor(args.jobs) as pool:
        for text in pool.map(carry_out, cells):
            line = json.loads(text)
            diverged |= line["status"] != "done"
            sys.stdout.write(row(line) + "\n")
            sys.stdout.flush()
    sys.exit(1 if diverged else 0)


if __name__ == "__main__":
    main()
