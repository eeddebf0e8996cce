"""How the time of a DOT step grows with the batch and the parameters, and that of an epoch with its images.

    python benchmarks/scaling.py [--device cpu] [--threads 1] [--rounds 7] [--csv FILE] [--quick]

A ResNet of 8 layers and 16 channels (`resnet2d`) on 32x32 images, batch 64, the teacher's logits given; one of these is
varied at a time. Depth makes the parameters grow as the operations do, width makes both grow with its square, and the
update alone is timed on one tensor. Medians over rounds that run all sizes in turns, by CPU time with one thread. For
each series two fits: the exponent b of t = a x^b, and R^2 of the straight line t = a + b x. Linear is b = 1 where the
work fills the machine; at the small end a fixed cost a step shows as b < 1.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from dotkd import DOT, data, models
from dotkd.bench import Conditions, Quantity
from dotkd.bench.rounds import timed_in_turns
from dotkd.bench.student_step import CLASSES, SHAPE, Step
from dotkd.bench.waiting import images_of_cifars_size

WIDTH, DEPTH, BATCH = 16, 8, 64


class Series(NamedTuple):
    """One thing varied: what is timed at each value, and the number x that the time is fitted to."""

    name: str
    x: str
    work: list[tuple[float, Callable[[], object]]]


def student(*, depth: int = DEPTH, width: int = WIDTH) -> nn.Module:
    return models.build("resnet2d", num_classes=CLASSES, input_shape=SHAPE, options={"depth": depth, "width": width})


def step_of(model: nn.Module, device: torch.device, *, batch: int = BATCH) -> Step:
    step = Step(device, "dot", student=model)
    step.inputs = torch.randn(batch, *SHAPE).to(device)
    step.targets = torch.randint(CLASSES, (batch,)).to(device)
    logits = torch.randn(batch, CLASSES).to(device)
    step.ask = lambda inputs: logits[: len(inputs)]
    return step


def by_batch(device: torch.device, sizes: Sequence[int]) -> Series:
    return Series("batch", "samples", [(size, step_of(student(), device, batch=size).run) for size in sizes])


def by_model(name: str, device: torch.device, students: Sequence[nn.Module]) -> Series:
    work = [(float(models.parameter_count(model)), step_of(model, device).run) for model in students]
    return Series(name, "parameters", work)


def by_update(device: torch.device, sizes: Sequence[int]) -> Series:
    work: list[tuple[float, Callable[[], object]]] = []
    for size in sizes:
        tensor = torch.randn(size, device=device, requires_grad=True)
        optimizer = DOT([tensor], lr=1e-3, weight_decay=5e-4)
        optimizer.backward(task=tensor.sum(), distill=tensor.square().sum())
        work.append((float(size), optimizer.step))
    return Series("update alone", "parameters", work)


def by_images(device: torch.device, counts: Sequence[int]) -> Series:
    """Whole epochs: reading, cropping and mirroring the images too."""
    step = step_of(student(), device)

    def epoch(count: int) -> Callable[[], None]:
        dataset = images_of_cifars_size(count)

        def run() -> None:
            for batch in data.batches(
                dataset, "train", batch_size=BATCH, augment="crop-flip", shuffle=True, device=device
            ):
                step.inputs, step.targets = batch.inputs, batch.targets
                step.run()

        return run

    return Series("images an epoch", "images", [(float(count), epoch(count)) for count in counts])


def fits(x: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """The exponent of a power law, and R^2 of a straight line."""
    exponent = float(np.polyfit(np.log(x), np.log(seconds), 1)[0])
    return exponent, float(np.corrcoef(x, seconds)[0, 1]) ** 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--csv", type=Path, help="write the figures to this file too")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    args = parser.parse_args()
    batches, depths, widths, updates, images = (
        (16, 32, 64, 128, 256),
        (8, 14, 20, 32, 44, 56),
        (8, 16, 32, 64),
        (10**5, 10**6, 10**7),
        (256, 512, 1024, 2048),
    )
    if args.quick:
        batches, depths, widths, updates, images = (2, 4), (8, 14), (4, 8), (10**3, 10**4), (64, 128)
    conditions = Conditions(args.device, threads=args.threads, rounds=args.rounds)
    rows: list[tuple[str, float, str, float, float, int]] = []
    print("| varied | x | ms | IQR | n |\n|---|---|---|---|---|")
    summary: list[str] = []
    with conditions.held():
        for make in (
            lambda: by_batch(args.device, batches),
            lambda: by_model("depth", args.device, [student(depth=depth) for depth in depths]),
            lambda: by_model("width", args.device, [student(width=width) for width in widths]),
            lambda: by_update(args.device, updates),
            lambda: by_images(args.device, images),
        ):
            series = make()
            found = [Quantity.of(values) for values in timed_in_turns([run for _, run in series.work], conditions)]
            for (x, _), seconds in zip(series.work, found, strict=True):
                spread = seconds.interquartile or 0.0
                rows.append((series.name, x, series.x, 1000 * seconds.median, 1000 * spread, seconds.n))
                print(
                    f"| {series.name} | {x:,.0f} {series.x} | {rows[-1][3]:.4g} | {rows[-1][4]:.2g} | {seconds.n} |",
                    flush=True,
                )
            exponent, straight = fits([x for x, _ in series.work], [seconds.median for seconds in found])
            summary.append(f"| {series.name} | {series.x} | {exponent:.3f} | {straight:.4f} |")
    print("\n| varied | x | exponent | R^2 of a line |\n|---|---|---|---|")
    print("\n".join(summary))
    print(f"\nDOT, {args.device}, {args.threads} threads, {conditions.clock}, torch {torch.__version__}")
    if args.csv:
        with args.csv.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("varied", "x", "unit", "ms", "iqr_ms", "n"), *rows])


if __name__ == "__main__":
    main()
