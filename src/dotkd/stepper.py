"""One optimizer step, and all that a step changes: what a checkpoint has to hold."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd.assembly import Parts
from dotkd.batch_statistics import BatchStatistics
from dotkd.config import Config
from dotkd.data import Batch
from dotkd.distiller import Distiller, logits_of, refuse_non_finite
from dotkd.metrics import Means
from dotkd.randomness import random_state, restore_random_state
from dotkd.schedule import learning_rate
from dotkd.summary import where_not_finite

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Stepper:
    """Trains the student of ``parts`` step by step, and counts the ``means`` of what it sees.

    ``distiller`` and ``known``, the teacher's logits for the training split where its samples look alike in every epoch
    (N, C), are set once the teacher has its weights.
    """

    def __init__(self, config: Config, parts: Parts, *, steps_per_epoch: int) -> None:
        self._config, self._steps_per_epoch, self._device = config, steps_per_epoch, parts.device
        self.student, self.average = parts.student, parts.average
        self._plan = parts.plan
        self.optimizer = parts.plan.optimizer  # before the student is compiled: it sees to the second backward pass
        self.forward = cast("nn.Module", torch.compile(parts.student)) if config.compile else parts.student
        self.means = Means(parts.device)
        self.distiller: Distiller | None = None
        self.known: Tensor | None = None
        self._scaler = torch.amp.GradScaler(parts.device.type, enabled=config.precision == "fp16")
        self._clip = torch.tensor(config.clip_norm, device=parts.device) if config.clip_norm else None
        self._statistics = BatchStatistics(parts.student)
        self._skipped_before = 0

    @property
    def skipped_steps(self) -> int:
        """Steps skipped since the run began. Reading it waits for the device."""
        return self._skipped_before + self.optimizer.skipped_steps

    def step(self, batch: Batch, number: int) -> None:
        """Optimizer step ``number`` of the run (from 0). Nothing here may wait for the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self._config, number, self._steps_per_epoch)
        self._statistics.remember()
        for inputs, targets, index in zip(*(part.chunk(self._config.accumulate) for part in batch), strict=True):
            with self._autocast():
                task, distill, logits = self._losses(inputs, targets, index)
            loss = self.optimizer.join(**self._plan.streams(task, distill))
            self._scaler.scale(loss * (len(targets) / len(batch.targets))).backward()
            self.means.add(task, distill, logits, targets)
        if self._clip is not None:
            self.optimizer.clip_grad_norm_(self._scaler.scale(self._clip))
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self._statistics.put_back_if(self.optimizer.last_step_skipped)
        self.optimizer.zero_grad()
        if self.average:
            self.average.update_parameters(self.student)

    def diagnosis(self, batch: Batch, number: int) -> str:
        """Why steps are skipped, found on one batch after ``number`` steps of the run.

        Raises:
            ValueError: the teacher's logits for it are not finite; the text names the samples.
        """
        skipped = self.optimizer.skipped_in_a_row
        if self.distiller and self.known is None:
            refuse_non_finite(self.distiller.teacher_logits(batch.inputs), batch.index)
        self.optimizer.zero_grad()
        task, distill, _ = self._losses(batch.inputs, batch.targets, batch.index)
        why = where_not_finite(self.optimizer, self._plan.streams(task, distill), self.student.named_parameters())
        return f"{skipped} steps in a row skipped since step {number - skipped + 1}: {why}; lower lr or delta"

    def state(self) -> dict[str, Any]:
        """All that a step changes but the student: nested dicts of tensors and plain values."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "ema": self.average.state_dict() if self.average else None,
            "random": random_state(self._device),
            "means": self.means.sums,
            "skipped": self.skipped_steps,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to where :meth:`state` was taken."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.load_state_dict(state["ema"])
        restore_random_state(state["random"], self._device)
        self.means.sums.copy_(state["means"])
        self._skipped_before = state["skipped"] - self.optimizer.skipped_steps

    def _losses(self, inputs: Tensor, targets: Tensor, index: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        if self.distiller is None or self._config.method == "none":
            logits = logits_of(self.forward(inputs))
            task = F.cross_entropy(logits.float(), targets, label_smoothing=self._config.label_smoothing)
            return task, None, logits
        known = None if self.known is None else self.known[index.to(self._device, non_blocking=True)]
        return self.distiller(inputs, targets, known)

    def _autocast(self) -> torch.autocast:
        precision = self._config.precision
        return torch.autocast(self._device.type, _PRECISIONS[precision], enabled=precision != "fp32")
