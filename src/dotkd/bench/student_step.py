"""One training step of a student, as it is taken with DOT, without it, and by the published implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd import losses, models
from dotkd.bench.published import PublishedUpdate, published_gradients
from dotkd.optim import DOT

BATCH, CLASSES, SHAPE = 64, 100, (3, 32, 32)
STUDENT = "resnet8x4"  # of the literature, for CIFAR-100
LR, MOMENTUM, DELTA, WEIGHT_DECAY = 1e-3, 0.9, 0.075, 5e-4

Kind = Literal["dot", "dot-low-memory", "plain", "published"]
Ask = Callable[[Tensor], Tensor]


class Step:
    """A student, an optimizer and a batch; `run` takes one training step, on all or the first samples of the batch.

    kind: "dot" for the optimizer of this library, "dot-low-memory" for its mode whose buffers are the gradients,
    "plain" for one backward pass and torch's SGD, "published" for the loop of the published implementation without its
    data and its reading of losses. student: STUDENT unless given. ask: the teacher's logits (N, CLASSES) for inputs (N,
    *SHAPE); random ones unless given.
    """

    def __init__(
        self, device: torch.device, kind: Kind, *, student: nn.Module | None = None, ask: Ask | None = None
    ) -> None:
        if student is None:
            student = models.build(STUDENT, num_classes=CLASSES, input_shape=SHAPE)
        self.student = student.to(device)
        self.inputs = torch.randn(BATCH, *SHAPE).to(device)
        self.targets = torch.randint(CLASSES, (BATCH,)).to(device)
        given = torch.randn(BATCH, CLASSES).to(device)
        self.ask: Ask = ask or (lambda inputs: given[: len(inputs)])
        self._learn = learner(kind, self.student)

    def run(self, samples: int | None = None) -> None:
        """One step."""
        logits = self.student(self.inputs[:samples])
        task = 0.1 * F.cross_entropy(logits, self.targets[:samples])
        distill = 0.9 * losses.kd(logits, self.ask(self.inputs[:samples]), temperature=4.0)
        self._learn(task, distill)


def learner(kind: Kind, student: nn.Module) -> Callable[[Tensor, Tensor], None]:
    """What makes one update of the student from its task loss and its distillation loss."""
    params = list(student.parameters())
    if kind == "published":
        update = PublishedUpdate(params, lr=LR, momentum=MOMENTUM, delta=DELTA, weight_decay=WEIGHT_DECAY)
        return lambda task, distill: update.step(*published_gradients(params, task, distill))
    if kind == "plain":
        plain = torch.optim.SGD(params, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

        def learn(task: Tensor, distill: Tensor) -> None:
            (task + distill).backward()
            plain.step()
            plain.zero_grad()

        return learn
    low = kind == "dot-low-memory"
    dot = DOT(params, lr=LR, momentum=MOMENTUM, delta=DELTA, weight_decay=WEIGHT_DECAY, gradients_in_buffers=low)

    def learn_by_dot(task: Tensor, distill: Tensor) -> None:
        dot.backward(task=task, distill=distill)
        dot.step()
        dot.zero_grad()

    return learn_by_dot


def model_in_words() -> str:
    """What `Step` trains unless a student is given."""
    size = "x".join(str(n) for n in SHAPE)
    return f"{STUDENT}, batch {BATCH} of {size}, {CLASSES} classes"
