"""What the second backward pass costs, in time and in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from dotkd.bench.measure import Measure, compared, ratio
from dotkd.bench.memory import peak_bytes
from dotkd.bench.rounds import Conditions, timed_in_turns
from dotkd.bench.student_step import Kind, Step, model_in_words

_KINDS: tuple[Kind, ...] = ("dot", "plain", "published")


def exact_step(conditions: Conditions) -> Measure:
    """The time of a training step with DOT over that of plain distillation; the teacher's logits are given.

    The limit counts multiplications: a backward pass costs two forward passes, so DOT's step is 1 + 2 + 2 of them where
    the plain one is 1 + 2.
    """
    with conditions.held():
        steps = [Step(conditions.device, kind) for kind in _KINDS]
        ours, other, official = timed_in_turns([step.run for step in steps], conditions)
    return compared(
        ours,
        other,
        unit="seconds",
        what="forward, two backwards, DOT.step, zero_grad / forward, backward, torch.optim.SGD.step, zero_grad; "
        f"{model_in_words()}, teacher logits given",
        goal=1.7,
        limit=5 / 3,
        official=ratio(official, other),
    )


def peak_memory(conditions: Conditions) -> Measure:
    """The most memory held in a training step with DOT over that of plain distillation.

    Model, optimizer state, batch, activations and gradients all count. DOT keeps one more buffer and one more gradient
    per parameter, and the activations until its second backward pass: at the first layers, whose activations have the
    largest gradients, plain distillation has released those of the later layers, DOT has not. The limit is plain
    distillation with that addition alone, the graph kept in one bare backward pass. Byte counts repeat exactly: n is 1.
    """
    device = conditions.device

    def of_a_pass(*, keep: bool) -> int:
        def work() -> tuple[Step, Tensor]:
            step = Step(device, "plain")
            loss = step.student(step.inputs).square().mean()
            loss.backward(retain_graph=keep)
            return step, loss

        return peak_bytes(work, device)

    with conditions.held():
        ours, other, official = (_lived_through(kind, device) for kind in _KINDS)
        kept = of_a_pass(keep=True) - of_a_pass(keep=False)
    return compared(
        [ours],
        [other],
        unit="bytes",
        what=f"peak of tensor memory in the steps of exact_step; {model_in_words()}",
        goal=1.25,
        limit=(other + kept) / other,
        official=ratio([official], [other]),
    )


def low_memory(conditions: Conditions) -> Measure:
    """As `peak_memory`, with DOT in the mode whose momentum buffers are the gradients."""
    with conditions.held():
        kinds: tuple[Kind, ...] = ("dot-low-memory", "plain", "published")
        ours, other, official = (_lived_through(kind, conditions.device) for kind in kinds)
    what = f"as peak_memory, with DOT(gradients_in_buffers=True); {model_in_words()}"
    return compared([ours], [other], unit="bytes", what=what, goal=1.25, official=ratio([official], [other]))


def _lived_through(kind: Kind, device: torch.device) -> int:
    def work() -> Step:
        step = Step(device, kind)
        step.run(samples=2)  # the optimizer makes its buffers
        step.run()
        return step

    return peak_bytes(work, device)
