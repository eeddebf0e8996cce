"""What a cache of the teacher's logits saves."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dotkd import models
from dotkd.bench.flops import flops
from dotkd.bench.measure import Measure, compared, ratio
from dotkd.bench.rounds import Conditions, timed_in_turns
from dotkd.bench.student_step import BATCH, CLASSES, SHAPE, STUDENT, Step
from dotkd.cache.known import CachedTeacher
from dotkd.cache.records import records_of
from dotkd.cache.sampling import uniform
from dotkd.cache.store import open_or_create
from dotkd.data import Batch

TEACHER = "resnet32x4"
RECORDS = 50_000
_WRITTEN_AT_ONCE = 10_000


def cached_over_online(conditions: Conditions) -> Measure:
    """The time of a DOT step that reads the teacher's logits from a cache over one that asks the teacher.

    The cache is that of `dotkd cache`, whole records, in a temporary folder; each step reads a random batch of it. The
    limit is the share of the operations that are not the teacher's.
    """
    device = conditions.device
    with tempfile.TemporaryDirectory() as folder, conditions.held():
        teacher = models.build(TEACHER, num_classes=CLASSES, input_shape=SHAPE).to(device).eval().requires_grad_(False)
        look_up = filled_cache(Path(folder), torch.randn(RECORDS, CLASSES), device)

        @torch.no_grad()
        def ask(inputs: Tensor) -> Tensor:
            return teacher(inputs)

        def read(inputs: Tensor) -> Tensor:
            return look_up(inputs, torch.randint(RECORDS, (len(inputs),)))

        def student() -> torch.nn.Module:
            return models.build(STUDENT, num_classes=CLASSES, input_shape=SHAPE)

        steps = [
            Step(device, "dot", student=student(), ask=read),
            Step(device, "dot", student=student(), ask=ask),
            Step(device, "published", student=student(), ask=ask),
        ]
        cached, online, official = timed_in_turns([step.run for step in steps], conditions)
        shape = (BATCH, *SHAPE)
        own, teachers = flops(steps[0].student, shape).exact_step, flops(teacher, shape).forward
    return compared(
        cached,
        online,
        unit="seconds",
        what=f"DOT step, teacher logits read from a cache of {RECORDS:,} records / asked of the teacher; {TEACHER} -> "
        f"{STUDENT}, batch {BATCH} of {SHAPE[1]}x{SHAPE[2]}, {CLASSES} classes",
        goal=0.6,
        limit=own / (own + teachers),
        official=ratio(official, online),
    )


def filled_cache(folder: Path, logits: Tensor, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """A cache of `logits` (N, C), one view a sample; what is returned reads it for inputs (B, ...) and samples (B,)."""
    records = records_of(logits.shape[1])
    store = open_or_create(folder, records=records, samples=len(logits), views=1, identity={})
    for index in torch.arange(len(logits)).split(_WRITTEN_AT_ONCE):
        view = torch.zeros_like(index)
        store.write(index, view, records.encode(logits[index], uniform(index, view)))
    cached = CachedTeacher(store, None, device=device)

    def look_up(inputs: Tensor, index: Tensor) -> Tensor:
        return cached.logits(Batch(inputs, index, index, torch.zeros_like(index)))

    return look_up
