"""What a cache of the teacher's logits saves."""

from __future__ import annotations

import torch
from torch import Tensor

from dotkd import models
from dotkd.bench.flops import flops
from dotkd.bench.measure import Measure, compared, ratio
from dotkd.bench.rounds import Conditions, timed_in_turns
from dotkd.bench.student_step import BATCH, CLASSES, SHAPE, Step

TEACHER, STUDENT = "resnet32x4", "resnet8x4"


def cached_over_online(conditions: Conditions) -> Measure:
    """The time of a DOT step that reads the teacher's logits from a cache over one that asks the teacher.

    The limit is the share of the operations that are not the teacher's.
    """
    device = conditions.device
    with conditions.held():
        teacher = models.build(TEACHER, num_classes=CLASSES, input_shape=SHAPE).to(device).eval().requires_grad_(False)

        @torch.no_grad()
        def ask(inputs: Tensor) -> Tensor:
            return teacher(inputs)

        def student() -> torch.nn.Module:
            return models.build(STUDENT, num_classes=CLASSES, input_shape=SHAPE)

        known = torch.randn(50_000, CLASSES)

        def look_up(inputs: Tensor) -> Tensor:
            return known[torch.randint(len(known), (len(inputs),))].to(inputs.device)

        steps = [
            Step(device, "dot", student=student(), ask=look_up),
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
        what=f"DOT step, teacher logits read from a cache / asked of the teacher; {TEACHER} -> {STUDENT}, batch "
        f"{BATCH} of {SHAPE[1]}x{SHAPE[2]}, {CLASSES} classes",
        goal=0.6,
        limit=own / (own + teachers),
        official=ratio(official, online),
    )
