"""The published training loop, transcribed, beside this library's: images a second on the same models, data and batch.

    python benchmarks/official_loop.py [--device cuda] [--quick]

ResNet32x4 -> ResNet8x4 with DOT, batch 64, random images of 32x32, crop and flip; the teacher, which is not trained, is
asked about every batch. Both are measured in wall time after they have settled: the published loop after its first
batch, `dotkd.Trainer` after its first epoch. It is one run of each, so the figure has no spread. On a CPU, where steps
take seconds, it is 10 steps against 20 of 640 images.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd import Config, Trainer, losses, models
from dotkd.bench.published import PublishedUpdate, published_gradients
from dotkd.bench.published_loader import WORKERS, published_batches
from dotkd.bench.rounds import wait_for
from dotkd.bench.waiting import images_of_cifars_size
from dotkd.checkpoint import save_weights

CLASSES, SHAPE = 100, (3, 32, 32)
HYPER = {"lr": 0.05, "momentum": 0.9, "delta": 0.075, "weight_decay": 5e-4}


class Size(NamedTuple):
    """How much is run. steps: of the published loop; epochs: of ours, three or more."""

    teacher: str
    student: str
    batch: int
    images: int
    test_images: int
    steps: int
    epochs: int

    def model(self, name: str) -> nn.Module:
        """By name, for these images."""
        return models.build(name, num_classes=CLASSES, input_shape=SHAPE)


FULL = Size("resnet32x4", "resnet8x4", batch=64, images=50_000, test_images=10_000, steps=200, epochs=3)
ON_CPU = FULL._replace(images=640, test_images=100, steps=10)  # the same steps, fewer of them
QUICK = Size("resnet14", "resnet8", batch=16, images=200, test_images=100, steps=2, epochs=3)


class OfficialLoop:
    """As published: pictures by Pillow, two backward passes, an update tensor by tensor, three reads of the device."""

    def __init__(self, size: Size, device: torch.device, *, workers: int = WORKERS) -> None:
        self._device, self._teacher = device, size.model(size.teacher).to(device).eval().requires_grad_(False)
        self._student = size.model(size.student).to(device).train()
        self._params = list(self._student.parameters())
        self._update = PublishedUpdate(self._params, **HYPER)
        dataset = images_of_cifars_size(size.images)
        self._batches = published_batches(dataset, batch_size=size.batch, device=device, workers=workers)
        self.sums = [0.0, 0.0, 0.0]  # loss, top-1 and top-5 accuracy in percent, each times samples

    def images_per_second(self, steps: int) -> float:
        """Over `steps` steps; the workers' start is not counted, what they read ahead meanwhile is."""
        next(self._batches)
        wait_for(self._device)
        start = time.perf_counter()
        images = sum(self._step(*next(self._batches)[:2]) for _ in range(steps))
        wait_for(self._device)
        return images / (time.perf_counter() - start)

    def _step(self, images: Tensor, targets: Tensor) -> int:
        with torch.no_grad():
            teacher_logits = self._teacher(images)
        logits = self._student(images)
        task = 0.1 * F.cross_entropy(logits, targets)
        distill = 0.9 * losses.kd(logits, teacher_logits, temperature=4.0)
        self._update.step(*published_gradients(self._params, task, distill))
        hits = (logits.detach().topk(5).indices == targets[:, None]).float()
        for place, value in enumerate((task + distill, 100 * hits[:, 0].mean(), 100 * hits.sum(1).mean())):
            self.sums[place] += float(value.detach().cpu()) * len(targets)  # waits for the device
        return len(targets)


class Clock:
    """A display that notes when each step was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def start(self, title: str, *, steps: int, done: int) -> None:
        pass

    def step(self) -> None:
        self.times.append(time.perf_counter())

    def show(self, record: object) -> None:
        pass

    def stop(self) -> None:
        pass


class Pace(NamedTuple):
    """What a run of the trainer came to once it had settled.

    images_per_second: of the steps alone, the median of the epochs after the first. epoch_seconds: from the first step
    of an epoch to that of the next, evaluation and checkpoint included. first_epoch_seconds: from `fit()` to the first
    step of the second epoch. steps: that were counted.
    """

    images_per_second: float
    epoch_seconds: float
    first_epoch_seconds: float
    steps: int

    def seconds_of(self, epochs: int) -> float:
        """What so many epochs would take."""
        return self.first_epoch_seconds + (epochs - 1) * self.epoch_seconds


def pace_of_trainer(config: Config, out: Path, *, images: int) -> Pace:
    """Train by `config`, which has at least three epochs, in a folder `out` of its own."""
    per_epoch = images // config.batch_size
    clock, began = Clock(), time.perf_counter()
    Trainer(config, out, display=clock).fit()
    firsts = clock.times[::per_epoch]
    steps = [clock.times[first : first + per_epoch] for first in range(per_epoch, len(clock.times), per_epoch)]
    rates = [config.batch_size * (len(times) - 1) / (times[-1] - times[0]) for times in steps]
    return Pace(
        statistics.median(rates),
        statistics.median(later - earlier for earlier, later in itertools.pairwise(firsts[1:])),
        firsts[1] - began,
        sum(len(times) for times in steps),
    )


def stored(folder: Path, size: Size) -> None:
    """Put random images and the weights of a teacher into a folder."""
    random = np.random.RandomState(0)
    arrays: dict[str, np.ndarray] = {}
    for title, count in (("train", size.images), ("test", size.test_images)):
        arrays[f"x_{title}"] = random.randint(0, 256, (count, *SHAPE), dtype=np.uint8)
        arrays[f"y_{title}"] = np.arange(count) % CLASSES
    np.savez(folder / "images.npz", **arrays)
    torch.manual_seed(1)
    save_weights(folder / "teacher.safetensors", size.model(size.teacher).state_dict())


def our_config(folder: Path, size: Size, device: torch.device, *overrides: str) -> Config:
    """The paper's run on what `stored` made there, changed by `key=value`; options of the machine at their defaults."""
    return Config.from_sources(
        None,
        [
            f"data=arrays:{folder / 'images.npz'}",
            "validation=0",
            "augment=crop-flip",
            f"teacher={size.teacher}",
            f"teacher_weights={folder / 'teacher.safetensors'}",
            f"student={size.student}",
            "trainer=dot",
            f"batch_size={size.batch}",
            f"epochs={size.epochs}",
            "schedule=constant",
            f"device={device}",
            "log_every=200",
            *(f"{key}={value}" for key, value in HYPER.items()),
            *overrides,
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--quick", action="store_true", help="small models and 200 images, to see that it runs")
    args = parser.parse_args()
    size = QUICK if args.quick else FULL if args.device.type == "cuda" else ON_CPU
    torch.backends.cudnn.benchmark = True  # as published
    official = OfficialLoop(size, args.device).images_per_second(size.steps)
    with tempfile.TemporaryDirectory() as folder:
        stored(Path(folder), size)
        ours = pace_of_trainer(our_config(Path(folder), size, args.device), Path(folder) / "run", images=size.images)
    print(f"published loop {official:.0f} images/s over {size.steps} steps, {WORKERS} workers")
    print(f"dotkd          {ours.images_per_second:.0f} images/s over {ours.steps} steps")
    print(f"ratio          {ours.images_per_second / official:.2f}, {args.device}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
