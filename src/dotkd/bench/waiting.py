"""How much of its time a training loop waits for data."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd import data, losses, models
from dotkd.bench.measure import Measure, compared, ratio
from dotkd.bench.published_loader import WORKERS, published_batches
from dotkd.bench.rounds import Conditions, repeated, uncollected, wait_for
from dotkd.bench.student_step import BATCH, CLASSES, SHAPE, STUDENT, Kind, learner
from dotkd.data import Dataset, Split
from dotkd.data.dataset import assemble

IMAGES = 50_000
# A GPU's steps are short: enough of them that what worker processes have read ahead is used up.
_STEPS_A_ROUND = {"cpu": 2, "cuda": 100}


def loader_wait(conditions: Conditions) -> Measure:
    """The share of the loop's wall time in which a student that learns by DOT waits for its next batch.

    On CUDA the device is waited for before and after each batch, so that nothing overlaps: the most it can be.
    """
    device = conditions.device
    with conditions.held():
        dataset = images_of_cifars_size()
        ours = _Loop(_our_batches(dataset, device), "dot", device)
        theirs = _Loop(_their_batches(dataset, device), "published", device)
        for loop in (ours, theirs):
            loop.seconds(1)  # worker processes start, kernels are chosen
        with uncollected():
            found = repeated(lambda: (*ours.seconds(), *theirs.seconds()), conditions)
    waited, whole, published_waited, published_whole = zip(*found, strict=True)
    return compared(
        waited,
        whole,
        unit="seconds",
        what=f"waiting for a batch / the whole loop, wall time a step; {IMAGES:,} images of 32x32 in memory, crop and "
        f"flip, batch {BATCH}, {STUDENT} by DOT, teacher logits given; official: Pillow in {WORKERS} processes",
        goal=0.03,
        limit=0.0,
        official=ratio(published_waited, published_whole),
    )


class _Loop:
    """A student that learns from batches of (inputs, targets); the teacher's logits are random."""

    def __init__(self, batches: Iterator[tuple[Tensor, Tensor]], kind: Kind, device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._student: nn.Module = models.build(STUDENT, num_classes=CLASSES, input_shape=SHAPE).to(device)
        self._teacher_logits = torch.randn(BATCH, CLASSES).to(device)
        self._learn = learner(kind, self._student)

    def seconds(self, steps: int | None = None) -> tuple[float, float]:
        """Of one step on the average of some steps: waiting for its batch, and in all."""
        steps = steps or _STEPS_A_ROUND[self._device.type]
        waited = 0.0
        start = time.perf_counter()
        for _ in range(steps):
            wait_for(self._device)
            asked = time.perf_counter()
            inputs, targets = next(self._batches)
            wait_for(self._device)
            waited += time.perf_counter() - asked
            logits = self._student(inputs)
            task = 0.1 * F.cross_entropy(logits, targets)
            self._learn(task, 0.9 * losses.kd(logits, self._teacher_logits, temperature=4.0))
        wait_for(self._device)
        return waited / steps, (time.perf_counter() - start) / steps


def images_of_cifars_size(count: int | None = None) -> Dataset:
    """Random pixels and labels: as many as CIFAR-100 has, or `count`."""
    count = count or IMAGES
    pixels = torch.randint(256, (count, *SHAPE), dtype=torch.uint8)
    split = Split(pixels, torch.arange(count) % CLASSES)
    half = [0.5] * SHAPE[0]
    return assemble(
        "random images",
        {"train": split, "test": Split(pixels[:CLASSES], split.targets[:CLASSES])},
        class_names=[str(number) for number in range(CLASSES)],
        fingerprint="0" * 64,
        statistics=(half, half),
    )


def _our_batches(dataset: Dataset, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    epoch = 0
    while True:
        for batch in data.batches(
            dataset,
            "train",
            batch_size=BATCH,
            epoch=epoch,
            shuffle=True,
            drop_last=True,
            augment="crop-flip",
            device=device,
        ):
            yield batch.inputs, batch.targets
        epoch += 1


def _their_batches(dataset: Dataset, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels, _ in published_batches(dataset, batch_size=BATCH, device=device):
        if len(labels) == BATCH:
            yield images, labels
