"""The three measures. Each returns ours over the other, so that less is better and 1 means no cost at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dotkd import losses, models
from dotkd.bench.memory import peak_bytes
from dotkd.bench.published import PublishedUpdate
from dotkd.bench.rounds import Conditions, Quantity, timed_in_turns
from dotkd.optim import DOT

_BATCH, _CLASSES, _SHAPE = 64, 100, (3, 32, 32)
_STUDENT = {"depth": 8, "width": 64}  # the size of the literature's ResNet8x4, for CIFAR-100
_LR, _MOMENTUM, _DELTA, _WEIGHT_DECAY = 1e-3, 0.9, 0.075, 5e-4
_UPDATES_A_ROUND = 20  # one update alone lasts milliseconds


@dataclass(frozen=True)
class Measure:
    """One ratio.

    ratio: over rounds, each the ratio of two neighbours in time. ours, other: in `unit`. goal: what this library means
    to stay under on a machine that does nothing else; limit: what arithmetic allows. what: ours, and what it is
    divided by.
    """

    ratio: Quantity
    ours: Quantity
    other: Quantity
    unit: str
    what: str
    goal: float | None = None
    limit: float | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the median is within the goal; None where there is no goal."""
        return None if self.goal is None else self.ratio.median <= self.goal

    def as_json(self) -> dict[str, object]:
        """Everything, in JSON's own types."""
        quantities = {"ratio": self.ratio, "ours": self.ours, "other": self.other}
        return {
            **{name: quantity._asdict() for name, quantity in quantities.items()},
            "unit": self.unit,
            "what": self.what,
            "goal": self.goal,
            "limit": self.limit,
            "reached": self.reached,
        }


def exact_step(conditions: Conditions) -> Measure:
    """The time of a training step with DOT over that of plain distillation; the teacher's logits are given.

    The limit counts multiplications: a backward pass costs two forward passes, so DOT's step is 1 + 2 + 2 of them where
    the plain one is 1 + 2.
    """
    with conditions.held():
        ours, other = (_Step(conditions.device, dot=dot) for dot in (True, False))
        seconds = timed_in_turns(ours.run, other.run, conditions)
    return _timing(
        seconds,
        f"forward, two backwards, DOT.step, zero_grad / forward, backward, torch.optim.SGD.step, zero_grad; "
        f"{_model_in_words()}, teacher logits given",
        goal=1.75,
        limit=5 / 3,
    )


def optimizer_step(conditions: Conditions) -> Measure:
    """The time of `DOT.step` alone over the published update (`dotkd.bench.published`), on 161 small tensors."""
    shapes = resnet50_shapes(shrink=16)
    with conditions.held():
        draws = [[torch.randn(shape).to(conditions.device) for shape in shapes] for _ in range(4)]
        (mine, theirs), grads = draws[:2], {"task": draws[2], "distill": draws[3]}
        optimizer = DOT(mine, lr=_LR, momentum=_MOMENTUM, delta=_DELTA, weight_decay=_WEIGHT_DECAY)
        for p in mine:
            p.requires_grad_()
        optimizer.backward(**linear_losses(mine, grads))
        published = PublishedUpdate(theirs, lr=_LR, momentum=_MOMENTUM, delta=_DELTA, weight_decay=_WEIGHT_DECAY)
        seconds = timed_in_turns(
            optimizer.step,
            lambda: published.step(grads["task"], grads["distill"]),
            conditions,
            repeats=_UPDATES_A_ROUND,
        )
    return _timing(
        seconds,
        f"DOT.step / the published update, transcribed; the {len(shapes)} parameters of a ResNet-50 with a "
        f"sixteenth of its channels, {sum(p.numel() for p in mine):,} numbers",
        goal=0.5,
    )


def peak_memory(conditions: Conditions) -> Measure:
    """The most memory held in a training step with DOT over that of plain distillation.

    Model, optimizer state, batch, activations and gradients all count. DOT keeps one more buffer and one more gradient
    per parameter, and the activations until its second backward pass. Byte counts repeat exactly: n is 1.
    """
    device = conditions.device

    def lived_through(*, dot: bool) -> int:
        def work() -> _Step:
            step = _Step(device, dot=dot)
            step.run(samples=2)  # the optimizer makes its buffers
            step.run()
            return step

        return peak_bytes(work, device)

    with conditions.held():
        ours, other = lived_through(dot=True), lived_through(dot=False)
    return Measure(
        ratio=Quantity.of([ours / other]),
        ours=Quantity.of([ours]),
        other=Quantity.of([other]),
        unit="bytes",
        what=f"peak of tensor memory in the steps of exact_step; {_model_in_words()}",
    )


class _Step:
    """A student, an optimizer and a batch; `run` takes one training step, on all or the first samples of the batch."""

    def __init__(self, device: torch.device, *, dot: bool) -> None:
        self.student = models.build("resnet2d", num_classes=_CLASSES, input_shape=_SHAPE, options=_STUDENT).to(device)
        self.inputs = torch.randn(_BATCH, *_SHAPE).to(device)
        self.targets = torch.randint(_CLASSES, (_BATCH,)).to(device)
        self.teacher_logits = torch.randn(_BATCH, _CLASSES).to(device)
        params = self.student.parameters()
        self.optimizer = (
            DOT(params, lr=_LR, momentum=_MOMENTUM, delta=_DELTA, weight_decay=_WEIGHT_DECAY)
            if dot
            else torch.optim.SGD(params, lr=_LR, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)
        )

    def run(self, samples: int | None = None) -> None:
        logits = self.student(self.inputs[:samples])
        task = 0.1 * F.cross_entropy(logits, self.targets[:samples])
        distill = 0.9 * losses.kd(logits, self.teacher_logits[:samples], temperature=4.0)
        if isinstance(self.optimizer, DOT):
            self.optimizer.backward(task=task, distill=distill)
        else:
            (task + distill).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def resnet50_shapes(*, shrink: int) -> list[tuple[int, ...]]:
    """The shapes of ResNet-50's 161 parameters (He et al., arXiv 1512.03385, table 1), channels divided by `shrink`.

    With the normalisation's scale and shift after each convolution, a projection shortcut in the first block of each
    stage, and 100 classes.
    """
    shapes: list[tuple[int, ...]] = []

    def convolution(channels: int, out: int, kernel: int) -> int:
        shapes.extend([(out, channels, kernel, kernel), (out,), (out,)])
        return out

    channels = convolution(3, 64 // shrink, 7)
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = 64 // shrink * 2**stage
        for block in range(blocks):
            convolution(channels, inner, 1)
            convolution(inner, inner, 3)
            convolution(inner, 4 * inner, 1)
            if block == 0:
                convolution(channels, 4 * inner, 1)
            channels = 4 * inner
    return [*shapes, (_CLASSES, channels), (_CLASSES,)]


def linear_losses(params: Sequence[Tensor], grads: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """One scalar per stream whose gradients at `params` are those given."""
    return {
        stream: torch.stack([(p * grad).sum() for p, grad in zip(params, of_stream, strict=True)]).sum()
        for stream, of_stream in grads.items()
    }


def _model_in_words() -> str:
    size = "x".join(str(n) for n in _SHAPE)
    return f"resnet2d depth {_STUDENT['depth']} width {_STUDENT['width']}, batch {_BATCH} of {size}, {_CLASSES} classes"


def _timing(
    seconds: tuple[list[float], list[float]], what: str, *, goal: float | None = None, limit: float | None = None
) -> Measure:
    ratios = [ours / other for ours, other in zip(*seconds, strict=True)]
    ours, other = (Quantity.of(values) for values in seconds)
    return Measure(ratio=Quantity.of(ratios), ours=ours, other=other, unit="seconds", what=what, goal=goal, limit=limit)
