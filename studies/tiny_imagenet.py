"""The paper's two rows on Tiny-ImageNet, on one GPU and by the clock: ResNet18 teaches MobileNetV2 and ShuffleNetV2.

    python studies/tiny_imagenet.py PATH --minutes 9 --out runs/tiny-imagenet      # again and again, until it says done
    python studies/tiny_imagenet.py PATH --device cpu --quick --out /tmp/trial     # the same on a few pictures
    python studies/tiny_imagenet.py --page runs/tiny-imagenet                      # docs/results/ from what is there

PATH is tiny-imagenet-200 in its official tree. Its pictures are decoded once, into one file of bytes, which every run
copies to the device. Then the teacher is trained and asked about VIEWS views of every picture (`dotkd cache`), once for
all students; then KD, KD + DOT and both controls are trained for each student, seed by seed and several at a time
(`dotkd compare`). All follow the published schedule, its 200 epochs and its milestones scaled to --epochs alike. After
--minutes everything is saved and ends; the same command goes on. Exit code 75: there is more to do.

Differences to the published setting, beside the length: pictures are normalised by their own mean and deviation, and a
picture has VIEWS views that are drawn once, where the published code turns it anew in every epoch.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import page
import torch
from page import Row
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

from dotkd import data
from dotkd.evidence.runs import read_run

NAME = "tiny-imagenet"
STUDENTS = {"mobilenetv2": (58.35, 64.01), "shufflenetv2": (62.26, 65.75)}  # the paper's KD and KD + DOT
RECIPES = {student: f"tiny-resnet18-{student}-kd-dot" for student in STUDENTS}
TRAINERS = ("sgd", "dot", "dot-normalized", "sgd-matched")
CELLS = ("kd", "kd+dot", "kd+dot-normalized", "kd+sgd-matched")
PUBLISHED_EPOCHS, MILESTONES = 200, (60, 120, 160)
VIEWS = 20
SAVING = 40.0  # seconds that runs get to save after they are told to stop
UNFINISHED = 75


class Slice(NamedTuple):
    """The first so many classes, training and test pictures of each; side in pixels."""

    classes: int
    train: int
    test: int
    pixels: int


QUICK = Slice(classes=3, train=16, test=4, pixels=32)
FEW = {"batch": 16, "epochs": 5, "views": 2}  # of --quick


class Clock:
    """Runs commands until a moment; what is still running then is asked to save."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def dotkd(self, *words: str) -> None:
        """One `dotkd` command, said first. Ends the script where it fails, and with UNFINISHED where time is up."""
        sys.stderr.write(f"dotkd {shlex.join(words)}\n")
        if self.left() < SAVING:
            sys.exit(UNFINISHED)
        process = subprocess.Popen([sys.executable, "-m", "dotkd", *words])
        try:
            code = process.wait(self.left() - SAVING)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.wait()
            code = UNFINISHED
        if code == UNFINISHED:
            sys.exit(UNFINISHED)
        if code not in (0, 3):
            sys.exit(f"exit code {code}")


def pack(path: Path, packed: Path, wanted: Slice | None = None) -> None:
    """Every picture `wanted` decoded, as `data=arrays:PACKED` takes them: uint8 (N, 3, side, side) and labels."""
    if packed.exists():
        return
    began = time.monotonic()
    found = data.load(f"tiny-imagenet:{path}", validation=0.0, image_size=wanted and wanted.pixels)
    tensors = {}
    for name, split in (("train", found.train), ("test", found.test)):
        inputs, targets = split.inputs, split.targets
        assert isinstance(inputs, torch.Tensor)  # 1.4 GB: below what is decoded on demand
        if wanted:
            each = wanted.train if name == "train" else wanted.test
            places = [(targets == label).nonzero()[:each, 0] for label in range(wanted.classes)]
            index = torch.cat(places)
            inputs, targets = inputs[index], targets[index]
        tensors |= {f"x_{name}": inputs.contiguous(), f"y_{name}": targets.contiguous()}
    packed.parent.mkdir(parents=True, exist_ok=True)
    half = packed.with_suffix(".part")
    save_file(tensors, half)
    half.rename(packed)
    count = {name: len(tensors[f"y_{name}"]) for name in ("train", "test")}
    sys.stderr.write(f"packed {count} pictures in {time.monotonic() - began:.0f} s: {packed}\n")


def milestones(epochs: int) -> list[int]:
    """The published ones, scaled to `epochs`."""
    return [round(milestone * epochs / PUBLISHED_EPOCHS) for milestone in MILESTONES]


def run(args: argparse.Namespace) -> None:
    clock = Clock(args.minutes)
    out, epochs = args.out.resolve(), FEW["epochs"] if args.quick else args.epochs
    packed = out / "pictures.safetensors"
    pack(args.path, packed, QUICK if args.quick else None)
    words = [f"data=arrays:{packed}", f"epochs={epochs}", f"milestones={milestones(epochs)}", f"device={args.device}"]
    words += [f"views={FEW['views'] if args.quick else VIEWS}", *([f"batch_size={FEW['batch']}"] if args.quick else [])]
    cache, students = out / "cache", out / "students"
    clock.dotkd("cache", RECIPES["mobilenetv2"], *words, "--out", str(cache))
    words += [f"teacher_weights={cache / 'teacher'}", f"cache={cache}"]
    trained = ["--trainers", ",".join(TRAINERS), "--seeds", str(args.seeds), "--jobs", str(args.jobs)]
    try:
        clock.dotkd("compare", *RECIPES.values(), *words, *trained, "--out", str(students))
    finally:
        report(out)


def report(out: Path) -> None:
    """The rows of all finished runs, as OUT/tiny-imagenet.csv, and their table."""
    rows = [row for student in STUDENTS for row in page.comparison_rows(student, out / "students" / RECIPES[student])]
    if rows:
        page.write_rows(out / f"{NAME}.csv", rows, origin(out))
        sys.stdout.write(f"{runs_table(rows)}\n\n{losses_table(rows)}\n")
        sys.stdout.flush()


def origin(out: Path) -> list[str]:
    """Where the figures come from, the length of the schedule and the teacher among it."""
    teacher = page.row_of("teacher", "teacher", read_run(out / "cache" / "teacher"))
    config = read_run(next((out / "students").glob("*/*/seed-*/summary.json")).parent).config
    schedule = f"{config['epochs']} of {PUBLISHED_EPOCHS} epochs, milestones {config['milestones']}"
    length = f"schedule: {schedule}, {config['views']} views, batch {config['batch_size']}"
    return [*page.origin_lines([out]), length, f"teacher: test accuracy {teacher['accuracy']:.2f} %"]


def runs_table(rows: Sequence[Row]) -> str:
    """Accuracy after the last epoch beside the paper's, and the paired difference to KD, p by Holm over the table."""
    pairs = [(student, cell) for student in STUDENTS for cell in CELLS[1:]]
    told = page.told_together({pair: page.change(rows, *pair, "kd") for pair in pairs})
    lines: list[list[str]] = []
    for student, (kd, dot) in STUDENTS.items():
        paper = {"kd": f"{kd:.2f}", "kd+dot": f"{dot:.2f} ({dot - kd:+.2f})"}
        for cell in CELLS:
            value = page.mean(rows, student, cell)
            line = [student, cell, paper.get(cell, "-"), str(value.n), page.estimate_text(value)]
            lines.append([*line, told.get((student, cell), "-")])
    return page.table(["student", "cell", "paper, %", "n", "here, %", "difference to KD"], lines)


def losses_table(rows: Sequence[Row]) -> str:
    keys = ("train_task", "train_distill", "test_task", "test_distill")
    lines = [
        [student, cell, *(page.estimate_text(page.mean(rows, student, cell, key), 3) for key in keys)]
        for student in STUDENTS
        for cell in CELLS
    ]
    return page.table(["student", "cell", *(key.replace("_", ", ") for key in keys)], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", type=Path, nargs="?", help="tiny-imagenet-200")
    parser.add_argument("--out", type=Path, default=Path("runs") / NAME)
    parser.add_argument("--minutes", type=float, default=9.0, help="when to save and end")
    parser.add_argument("--epochs", type=int, default=20, help="of teacher and students; published: 200")
    parser.add_argument("--seeds", type=int, default=5, help="at most")
    parser.add_argument("--jobs", type=int, default=4, help="students at a time")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a few pictures and steps, to see that all of it works")
    parser.add_argument("--page", type=Path, metavar="OUT", help="train nothing: renew the page from the runs in OUT")
    args = parser.parse_args()
    if args.page is not None:
        rows = page.read_rows(args.page / f"{NAME}.csv")
        (page.RESULTS / f"{NAME}.csv").write_bytes((args.page / f"{NAME}.csv").read_bytes())
        blocks = {"runs": runs_table(rows), "losses": losses_table(rows)}
        page.renew(page.RESULTS / f"{NAME}.md", {"origin": page.origin_of(page.RESULTS / f"{NAME}.csv"), **blocks})
    elif args.path is None:
        parser.error("expected PATH, the folder tiny-imagenet-200")
    else:
        run(args)
        sys.stderr.write("done\n")


if __name__ == "__main__":
    main()
