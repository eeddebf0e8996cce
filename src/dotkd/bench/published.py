"""The update of the published DOT implementation, kept as it works there, to be measured against.

One tensor at a time, in two passes: the task gradients move theta, then the distillation gradients move it again. To
learn whether the other loss reached a parameter too, each pass searches the other pass's list for it from the start, by
identity: N^2 comparisons a step for N parameters, and never a kernel for more than one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class PublishedUpdate:
    """Momenta mu - Delta and mu + Delta; a parameter that one loss alone reaches uses mu.

    As published, such a parameter decays in its distillation buffer from its second step on, but not on its first.
    `dotkd.DOT` decays always; everywhere else both compute the same.
    """

    def __init__(
        self, params: Sequence[Tensor], *, lr: float, momentum: float, delta: float, weight_decay: float
    ) -> None:
        self._params = list(params)
        self._lr = lr
        self._task, self._distill, self._alone = momentum - delta, momentum + delta, momentum
        self._weight_decay = weight_decay
        self._state: dict[Tensor, dict[str, Tensor]] = {p: {} for p in self._params}

    @torch.no_grad()
    def step(self, task_grads: Sequence[Tensor | None], distill_grads: Sequence[Tensor | None]) -> None:
        """One update; a gradient of None means that this loss does not reach that parameter."""
        task = self._gather("task", task_grads)
        distill = self._gather("distill", distill_grads)
        for i, p in enumerate(task[0]):
            d = task[1][i]
            if self._weight_decay != 0:
                d = d.add(p, alpha=self._weight_decay)
            buffer = task[2][i]
            if buffer is None:
                buffer = d.clone().detach()
            else:
                buffer.mul_(self._task if _is_among(p, distill[0]) else self._alone).add_(d)
            p.add_(buffer, alpha=-self._lr)
            self._state[p]["task"] = buffer
        for i, p in enumerate(distill[0]):
            d = distill[1][i]
            buffer = distill[2][i]
            if buffer is None:
                buffer = d.clone().detach()
            elif _is_among(p, task[0]):
                buffer.mul_(self._distill).add_(d)
            else:
                if self._weight_decay != 0:
                    d = d.add(p, alpha=self._weight_decay)
                buffer.mul_(self._alone).add_(d)
            p.add_(buffer, alpha=-self._lr)
            self._state[p]["distill"] = buffer

    def _gather(
        self, stream: str, grads: Sequence[Tensor | None]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
        reached: tuple[list[Tensor], list[Tensor], list[Tensor | None]] = ([], [], [])
        for p, grad in zip(self._params, grads, strict=True):
            if grad is not None:
                reached[0].append(p)
                reached[1].append(grad)
                reached[2].append(self._state[p].get(stream))
        return reached


def published_gradients(
    params: Sequence[Tensor], task: Tensor, distill: Tensor
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """The gradients of both losses as published: the distillation loss first, its graph kept, and then the task loss.

    Between the passes the gradients are taken off the parameters, and so they are at the end.
    """
    found: list[list[Tensor | None]] = []
    for loss, keep in ((distill, True), (task, False)):
        for p in params:
            p.grad = None
        loss.backward(retain_graph=keep)
        found.append([p.grad for p in params])
    for p in params:
        p.grad = None
    return found[1], found[0]


def _is_among(p: Tensor, others: Sequence[Tensor]) -> bool:
    # Tensors compare element by element, so `in` would not do.
    for other in others:  # noqa: SIM110 - `any` over a generator would be slower than what is transcribed
        if p is other:
            return True
    return False
