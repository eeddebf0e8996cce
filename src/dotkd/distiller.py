"""Student, frozen teacher and distillation loss, joined: a batch goes in, two losses come out and stay apart."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd.losses import LOSSES


class Losses(NamedTuple):
    """What a student is trained on: both losses, unweighted, shape (); and its logits, (N, C)."""

    task: Tensor
    distill: Tensor
    logits: Tensor


class Distiller:
    """Computes the task loss and the distillation loss of a batch.

    >>> student, teacher = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    >>> distiller = Distiller(student, teacher, method="kd", temperature=4.0)
    >>> task, distill, logits = distiller(torch.randn(8, 4), torch.randint(0, 3, (8,)))

    A model may return its logits, a tuple that starts with them, or an object with ``.logits``. The teacher is put into
    eval mode and frozen, and stays so.

    Args:
        method: a name from ``dotkd.losses.LOSSES``, or any function ``(student_logits, teacher_logits, ...) -> ()``;
            ``target`` and ``temperature`` are passed where its signature has them.
        temperature: divides the logits of both inside the distillation loss; dimensionless, > 0.
        label_smoothing: of the task loss (cross-entropy), in [0, 1).
        options: further keyword arguments of the method.
        checks: look at the values of targets and teacher logits that lie on a CPU. On other devices looking would make
            the host wait; there an optimizer of this library skips the step.

    Raises:
        ValueError: unknown method or option; teacher and student share parameters; a value outside its rule.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        method: str | Callable[..., Tensor] = "kd",
        *,
        temperature: float = 4.0,
        label_smoothing: float = 0.0,
        options: Mapping[str, Any] | None = None,
        checks: bool = True,
    ) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"expected `temperature` > 0 and finite, got {temperature}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"expected `label_smoothing` in [0, 1), got {label_smoothing}")
        shared = {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}
        if shared:
            names = [name for name, p in student.named_parameters() if id(p) in shared]
            raise ValueError(f"teacher and student share {len(names)} parameters ({names[0]}, ...): copy one of them")
        self.student = student
        self.teacher = teacher.eval().requires_grad_(False)
        self.label_smoothing = label_smoothing
        self.checks = checks
        self._loss = LOSSES[_nearest("method", method, LOSSES)] if isinstance(method, str) else method
        accepted = inspect.signature(self._loss).parameters
        self._options = dict(options or {})
        given_here = {*list(accepted)[:2], "target", "temperature"}
        for name in self._options:
            _nearest("option", name, {key: accepted[key] for key in accepted if key not in given_here})
        if "temperature" in accepted:
            self._options["temperature"] = temperature
        self._wants_target = "target" in accepted

    def __call__(
        self, inputs: Tensor, targets: Tensor, teacher_logits: Tensor | None = None, *, sample_ids: Tensor | None = None
    ) -> Losses:
        """The losses of one batch.

        Args:
            inputs: (N, ...), fed to the student, and to the teacher unless its logits are given.
            targets: (N,), int64 class indices in [0, C).
            teacher_logits: (N, C), where they are known already.
            sample_ids: (N,), what an error calls the samples; by default their position in the batch.

        Raises:
            ValueError: teacher and student disagree on the shape of the logits; with ``checks`` also a target outside
                [0, C) or teacher logits that are not finite.
            TypeError: targets that are not int64.
        """
        logits = logits_of(self.student(inputs))
        if teacher_logits is None:
            teacher_logits = self.teacher_logits(inputs, sample_ids=sample_ids)
        if targets.dtype != torch.int64:
            raise TypeError(f"expected targets of dtype torch.int64, got {targets.dtype}")
        if self.checks and targets.device.type == "cpu":
            outside = targets[(targets < 0) | (targets >= logits.shape[-1])]
            if outside.numel():
                raise ValueError(f"expected targets in [0, {logits.shape[-1]}), got {int(outside[0])}")
        task = F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)
        return Losses(task, self.distill_loss(logits, teacher_logits, targets), logits)

    @torch.no_grad()
    def teacher_logits(self, inputs: Tensor, *, sample_ids: Tensor | None = None) -> Tensor:
        """The teacher's logits, (N, C), always in eval mode. Raises as calling the distiller does."""
        if self.teacher.training:
            self.teacher.eval()
        logits = logits_of(self.teacher(inputs))
        if self.checks and logits.device.type == "cpu":
            refuse_non_finite(logits, sample_ids)
        return logits

    def distill_loss(self, student_logits: Tensor, teacher_logits: Tensor, targets: Tensor) -> Tensor:
        """The distillation loss alone, shape ()."""
        if student_logits.shape != teacher_logits.shape:
            raise ValueError(
                "expected teacher and student to give logits of one shape, "
                f"got {tuple(teacher_logits.shape)} and {tuple(student_logits.shape)}"
            )
        if self._wants_target:
            return self._loss(student_logits, teacher_logits, target=targets, **self._options)
        return self._loss(student_logits, teacher_logits, **self._options)


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output: a tensor, a tuple that starts with one, or an object with ``.logits``."""
    logits = getattr(output, "logits", output)
    if isinstance(logits, (tuple, list)) and logits:
        logits = logits[0]
    if not isinstance(logits, Tensor):
        raise TypeError(f"expected a model to return logits, (logits, ...) or .logits, got {type(output).__name__}")
    return logits


def refuse_non_finite(teacher_logits: Tensor, sample_ids: Tensor | None = None) -> None:
    """Raise ValueError naming the samples whose teacher logits, (N, C), are not all finite."""
    bad = (~teacher_logits.isfinite().flatten(1).all(1)).nonzero().flatten().cpu()
    if bad.numel():
        ids = (bad if sample_ids is None else sample_ids[bad]).tolist()
        raise ValueError(f"the teacher's logits are not finite for {len(ids)} samples: {ids[:10]}")


def _nearest(kind: str, name: str, known: Mapping[str, Any]) -> str:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        expected = f"one of {', '.join(known)}" if known else "none"
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown {kind} {name!r}, expected {expected}{hint}")
    return name
