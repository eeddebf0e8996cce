"""A profile of training loops: the time of the named parts of their steps, as a table and as a picture."""

from __future__ import annotations

import csv
import itertools
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from torch import nn
from torch.profiler import record_function

from dotkd import DOT, data, losses, models
from dotkd.bench import Quantity
from dotkd.bench.cached import filled_cache
from dotkd.bench.recording import recorded
from dotkd.bench.rounds import uncollected
from dotkd.bench.waiting import images_of_cifars_size

CPU = torch.device("cpu")
CLASSES, SHAPE = 100, (3, 32, 32)
HYPER = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
LOOPS: dict[str, dict[str, bool]] = {
    "KD": {"dot": False, "cached": False},
    "KD + DOT": {"dot": True, "cached": False},
    "KD + DOT, teacher cached": {"dot": True, "cached": True},
}
PARTS = ("loader", "teacher", "forward", "task backward", "distillation backward", "optimizer")
COLOURS = ("#8c8c8c", "#b07aa1", "#4e79a7", "#59a14f", "#f28e2b", "#e15759")

Times = dict[str, dict[str, list[float]]]
"""Seconds by loop, part and step."""


class Size(NamedTuple):
    """What is run."""

    teacher: str
    student: str
    batch: int
    images: int
    steps: int

    def model(self, name: str) -> nn.Module:
        """By name, for these images."""
        return models.build(name, num_classes=CLASSES, input_shape=SHAPE)


FULL = Size("resnet32x4", "resnet8x4", batch=64, images=50_000, steps=8)
QUICK = Size("resnet14", "resnet8", batch=8, images=200, steps=2)


def profiled(size: Size, *, dot: bool, cached: bool) -> dict[str, list[float]]:
    """Seconds of each part of a step, step by step."""
    torch.manual_seed(0)
    student = size.model(size.student).train()
    teacher = size.model(size.teacher).eval().requires_grad_(False)
    dataset = images_of_cifars_size(size.images)
    optimizer = DOT(student.parameters(), **HYPER) if dot else torch.optim.SGD(student.parameters(), **HYPER)

    def batches() -> Iterator[data.Batch]:
        return data.batches(dataset, "train", batch_size=size.batch, augment="crop-flip", shuffle=True)

    with tempfile.TemporaryDirectory() as folder:
        look_up = filled_cache(Path(folder), torch.randn(size.images, CLASSES), CPU)

        def step(source: Iterator[data.Batch]) -> None:
            with record_function("part: loader"):
                batch = next(source)
            with record_function("part: teacher"), torch.no_grad():
                taught = look_up(batch.inputs, batch.index) if cached else teacher(batch.inputs)
            with record_function("part: forward"):
                logits = student(batch.inputs)
                task = 0.1 * F.cross_entropy(logits, batch.targets)
                distill = 0.9 * losses.kd(logits, taught, temperature=4.0)
            if isinstance(optimizer, DOT):
                optimizer.backward(task=task, distill=distill)
            else:
                torch.autograd.backward(task + distill)
            with record_function("part: optimizer"):
                optimizer.step()
                optimizer.zero_grad()

        source = batches()
        for _ in range(2):
            step(source)
        with uncollected(), _backward_passes_named(dot=dot), recorded() as profiler:
            for _ in range(size.steps):
                step(source)
    found: dict[str, list[float]] = defaultdict(list)
    for event in sorted(profiler.events(), key=lambda event: event.time_range.start):
        if event.name.startswith("part: "):
            found[event.name.removeprefix("part: ")].append(event.time_range.elapsed_us() / 1e6)
    expected = dict.fromkeys(PARTS if dot else [part for part in PARTS if part != "distillation backward"], size.steps)
    if (counts := {part: len(values) for part, values in found.items()}) != expected:
        raise RuntimeError(f"expected these parts in the profile: {expected}, got {counts}")
    return found


@contextmanager
def _backward_passes_named(*, dot: bool) -> Generator[None, None, None]:
    """Each backward pass shows in a profile by what it is for: DOT asks for the task's first."""
    backward: Callable[..., None] = torch.autograd.backward
    names = itertools.cycle(("task backward", "distillation backward") if dot else ("task backward",))

    def named(*args: object, **options: object) -> None:
        with record_function(f"part: {next(names)}"):
            backward(*args, **options)

    torch.autograd.backward = named
    try:
        yield
    finally:
        torch.autograd.backward = backward


def time_table(times: Times) -> list[str]:
    """Milliseconds and shares of each part of each loop."""
    lines = [
        f"| part of a step | {' | '.join(f'{name}, ms (IQR) | share' for name in times)} |",
        f"|---|{'---|---|' * len(times)}",
    ]
    whole = {name: sum(statistics.median(values) for values in parts.values()) for name, parts in times.items()}
    for part in PARTS:
        cells: list[str] = []
        for name, parts in times.items():
            if part not in parts:
                cells += ["-", "-"]
                continue
            seconds = Quantity.of(parts[part])
            cells.append(f"{1000 * seconds.median:.3g} ({1000 * (seconds.interquartile or 0):.2g})")
            cells.append(f"{seconds.median / whole[name]:.1%}")
        lines.append(f"| {part} | {' | '.join(cells)} |")
    lines.append(f"| whole | {' | '.join(f'{1000 * seconds:.4g} | 100 %' for seconds in whole.values())} |")
    return lines


def picture(times: Times, file: Path) -> None:
    """The loops as bars, made of their parts."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "overhead", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(8, 2.4), layout="constrained")
        names = list(times)[::-1]
        left = [0.0] * len(names)
        for part, colour in zip(PARTS, COLOURS, strict=True):
            widths = [1000 * statistics.median(times[name].get(part, [0.0])) for name in names]
            label = "backward (of the sum, or of the task)" if part == "task backward" else part
            axes.barh(names, widths, left=left, color=colour, label=label)
            left = [begin + width for begin, width in zip(left, widths, strict=True)]
        axes.set_xlabel("ms a step")
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        figure.savefig(file, metadata={"Date": None, "Creator": None})
        plt.close(figure)


def write_csv(times: Times, file: Path) -> None:
    """Every step's milliseconds."""
    rows = [
        (loop, part, number, f"{1000 * seconds:.4f}")
        for loop, parts in times.items()
        for part in PARTS
        for number, seconds in enumerate(parts.get(part, []))
    ]
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened, lineterminator="\n").writerows([("loop", "part", "step", "ms"), *rows])
