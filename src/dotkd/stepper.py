"""One optimizer step, and all that a step changes: what a checkpoint has to hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd.assembly import Parts
from dotkd.batch_statistics import BatchStatistics
from dotkd.config import Config
from dotkd.data import Batch
from dotkd.distiller import refuse_non_finite
from dotkd.methods.activations import logits_of
from dotkd.metrics import Means
from dotkd.randomness import random_state, restore_random_state
from dotkd.schedule import learning_rate
from dotkd.summary import where_not_finite

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Stepper:
    """Trains the student of ``parts`` step by step, and counts the ``means`` of what it sees."""

    def __init__(self, config: Config, parts: Parts, *, steps_per_epoch: int) -> None:
        self._config, self._steps_per_epoch, self._device = config, steps_per_epoch, parts.device
        self.student, self.average = parts.student, parts.average
        self._plan = parts.plan
        self.optimizer = parts.plan.optimizer  # before the student is compiled: it sees to the second backward pass
        self._distiller = parts.distiller if config.method != "none" else None
        self._forward: Callable[[Tensor], Any] = parts.student
        if config.compile and self._distiller:
            self._distiller.compile()
        elif config.compile:
            self._forward = cast("Callable[[Tensor], Any]", torch.compile(parts.student))
        self.means = Means(parts.device)
        self._scaler = torch.amp.GradScaler(parts.device.type, enabled=config.precision == "fp16")
        self._clip = torch.tensor(config.clip_norm, device=parts.device) if config.clip_norm else None
        self.extra = self._distiller.extra if self._distiller else nn.ModuleDict()
        self._statistics = BatchStatistics(nn.ModuleList([parts.student, self.extra]))
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
        for part in batch.chunks(self._config.accumulate):
            with self.autocast():
                losses, logits = self._losses(part, number)
            loss = self.optimizer.join(**self._plan.weigh(losses, number // self._steps_per_epoch))
            self._scaler.scale(loss * (len(part.targets) / len(batch.targets))).backward()
            self.means.add(losses, logits, part.targets)
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
        if self._distiller and self._distiller.teacher and batch.taught is None:
            refuse_non_finite(self._distiller.teacher_logits(batch.inputs, batch.targets), batch.index)
        self.optimizer.zero_grad()
        losses, _ = self._losses(batch, number)
        streams = self._plan.weigh(losses, number // self._steps_per_epoch)
        named = [*self.student.named_parameters(), *self.extra.named_parameters()]
        why = where_not_finite(streams, named)
        return f"{skipped} steps in a row skipped since step {number - skipped + 1}: {why}; lower lr or delta"

    def state(self) -> dict[str, Any]:
        """All that a step changes but the student: nested dicts of tensors and plain values."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "ema": self.average.state_dict() if self.average else None,
            "extra": self.extra.state_dict(),
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
        self.extra.load_state_dict(state["extra"])
        restore_random_state(state["random"], self._device)
        self.means.sums.copy_(state["means"])
        self._skipped_before = state["skipped"] - self.optimizer.skipped_steps

    def _losses(self, batch: Batch, number: int) -> tuple[dict[str, Tensor], Tensor]:
        """The unweighted losses by stream, and the student's logits."""
        if self._distiller is None:
            logits = logits_of(self._forward(batch.inputs))
            task = F.cross_entropy(logits.float(), batch.targets, label_smoothing=self._config.label_smoothing)
            return {"task": task}, logits
        index = None
        if self._distiller.objective.wants_index:
            index = batch.index.to(self._device, non_blocking=True)
        return self._distiller.streams(
            batch.inputs,
            batch.targets,
            batch.taught,
            strong=batch.strong,
            index=index,
            progress=number / (self._config.epochs * self._steps_per_epoch),
        )

    def autocast(self) -> torch.autocast:
        """The precision of forward passes."""
        precision = self._config.precision
        return torch.autocast(self._device.type, _PRECISIONS[precision], enabled=precision != "fp32")
