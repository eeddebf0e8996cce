"""One optimizer step, and all that a step changes: what a checkpoint has to hold."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from dotkd import distributed, sharding
from dotkd.assembly import Parts
from dotkd.batch_statistics import BatchStatistics
from dotkd.config import Config
from dotkd.data import Batch
from dotkd.data.transfer import to_device
from dotkd.distiller import Distiller, refuse_non_finite
from dotkd.methods.activations import in_eval_mode, logits_of
from dotkd.metrics import Means
from dotkd.models.hubs import is_of_library
from dotkd.optim.diagnostics import Measurement, measure
from dotkd.randomness import random_state, restore_random_state, seed_apart
from dotkd.schedule import learning_rate
from dotkd.summary import where_not_finite
from dotkd.whole_step import Computed, WholeStep


class Stepper:
    """Trains the student of ``parts`` step by step, and counts the ``means`` of what it sees.

    One of several processes gets its part of each batch, and all of them take each step together: weights and buffers
    of student, method and average are those of the main process to begin with, and parameters stay equal from then on.
    The buffers, running statistics of batch norm above all, follow the main process's at the start of each step.
    """

    def __init__(self, config: Config, parts: Parts, *, steps_per_epoch: int) -> None:
        self._config, self._steps_per_epoch, self._device = config, steps_per_epoch, parts.device
        self.student, self.average = parts.student, parts.average
        self._plan = parts.plan
        self.optimizer = parts.plan.optimizer  # before the student is compiled: it sees to the second backward pass
        self._distiller = parts.distiller if config.method != "none" else None
        self._execution = parts.execution
        self._whole: WholeStep | None = None
        model = parts.student
        if parts.execution.compiled and compiles_whole(config, self._distiller):
            self._whole = self._whole_step()
        elif parts.execution.compiled:
            model = cast("nn.Module", torch.compile(parts.student))
        self._together: DistributedDataParallel | None = None
        self._sharded = config.parallel == "fsdp" and distributed.size() > 1
        if distributed.size() > 1 and not self._sharded:
            self._together = model = _together(model, parts.student, parts.example)
            scaled = config.clip_norm is not None or parts.execution.precision == "fp16"
            self.optimizer.distribute(self._together, reduce="gradients" if scaled else None)
        self._forward: Callable[[Tensor], Any] = model
        if self._distiller:
            self._distiller.run_student_by(model)
            if self._whole is None:
                self._distiller.overlap()
        self.means = Means(parts.device)
        self.measured: Measurement | None = None
        self._scaler = torch.amp.GradScaler(parts.device.type, enabled=parts.execution.precision == "fp16")
        self._clip = torch.tensor(config.clip_norm, device=parts.device) if config.clip_norm else None
        self.extra = self._distiller.extra if self._distiller else nn.ModuleDict()
        self._statistics = BatchStatistics(nn.ModuleList([parts.student, self.extra]))
        self._buffers = list(self._followed())
        self._skipped_before = 0
        self._share, self._portion = torch.ones(2, device=parts.device).unbind()

    @property
    def skipped_steps(self) -> int:
        """Steps skipped since the run began. Reading it waits for the device."""
        return self._skipped_before + self.optimizer.skipped_steps

    def step(self, batch: Batch, number: int, *, measuring: bool = False) -> None:
        """Optimizer step ``number`` of the run (from 0). Nothing here may wait for the device.

        With ``measuring``, in all processes, ``measured`` is of this step.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self._config, number, self._steps_per_epoch)
        batch = self._arranged(batch)
        distributed.follow_main(self._buffers)
        self._statistics.remember()
        parts = batch.chunks(self._config.accumulate)
        for part in parts:
            portion = len(part.targets) / len(batch.targets)
            if self._whole:
                losses, logits = self._fill(self._whole, part, number, portion)
            else:
                with nullcontext() if part is parts[-1] else self._alone():
                    with self._execution.autocast():
                        losses, logits = self._losses(part, number)
                    loss = self.optimizer.join(**self._plan.weigh(losses, number // self._steps_per_epoch))
                    self._scaler.scale(loss * portion).backward()
            self.means.add(losses, logits, part.targets)
        if self._clip is not None:
            self.optimizer.clip_grad_norm_(self._scaler.scale(self._clip))
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self._statistics.put_back_if(self.optimizer.last_step_skipped)
        if measuring:
            self.optimizer.average_buffers()
            self.measured = measure(self.optimizer)
        self.optimizer.zero_grad()
        if self.average:
            self.average.update_parameters(self.student)

    def start_together(self) -> None:
        """Take over the main process's weights and buffers; refuse a teacher that is not the same in all processes.

        Raises:
            ValueError: naming the teacher's tensor.
        """
        models = [self.student, self.extra, *([self.average] if self.average else [])]
        distributed.follow_main(buffer for model in models for buffer in model.buffers())
        if not self._sharded:
            distributed.follow_main(weight for model in models for weight in model.parameters())
        if self._distiller and self._distiller.teacher:
            distributed.refuse_unequal(self._distiller.teacher.state_dict().items())
            if self._sharded:
                sharding.shard(self._distiller.teacher, self._device)

    def settle(self) -> None:
        """Make all that the processes keep apart between steps equal, as :meth:`state` and an evaluation need it."""
        if distributed.size() > 1:
            self.optimizer.average_buffers()
            distributed.follow_main(self._buffers)

    def diagnosis(self, batch: Batch, number: int) -> str:
        """Why steps are skipped, found on one batch after ``number`` steps of the run.

        Raises:
            ValueError: the teacher's logits for it are not finite; the text names the samples.
        """
        skipped = self.optimizer.skipped_in_a_row
        found = distributed.gathered(distributed.all_or_none(partial(self._not_finite, batch, number)))
        why = next(filter(None, found), "on its own this batch is finite in float32: the loss scale may be at its end")
        return f"{skipped} steps in a row skipped since step {number - skipped + 1}: {why}; lower lr or delta"

    def _not_finite(self, batch: Batch, number: int) -> str:
        if self._distiller and self._distiller.teacher and batch.taught is None:
            refuse_non_finite(self._distiller.teacher_logits(batch.inputs, batch.targets), batch.index)
        self.optimizer.zero_grad()
        with self._alone():
            losses, _ = self._losses(batch, number)
            streams = self._plan.weigh(losses, number // self._steps_per_epoch)
            named = [*self.student.named_parameters(), *self.extra.named_parameters()]
            return where_not_finite(streams, named)

    def state(self) -> dict[str, Any]:
        """All that a step changes but the student: nested dicts of tensors and plain values.

        What each process has of its own is that of the main one, and under "others" that of the rest.
        """
        own = {"random": random_state(self._device), "means": self.means.sums.cpu()}
        main, *others = distributed.gathered(own)
        return {
            "optimizer": sharding.whole(self.optimizer.state_dict()),
            "scaler": self._scaler.state_dict(),
            "ema": self.average.state_dict() if self.average else None,
            "extra": sharding.whole(self.extra.state_dict()),
            **main,
            "skipped": self.skipped_steps,
            **({"others": others} if others else {}),
        }

    def load_state(self, state: dict[str, Any], step: int) -> int:
        """Go back to where :meth:`state` was taken, after ``step`` steps; returns how many processes there were.

        If that is not how many there are now, what is drawn at random from here on is drawn anew.
        """
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.load_state_dict(state["ema"])
        sharding.load_whole(self.extra, state["extra"])
        self._skipped_before = state["skipped"] - self.optimizer.skipped_steps
        saved = [state, *state.get("others", [])]
        if len(saved) == distributed.size():
            own = saved[distributed.rank()]
            restore_random_state(own["random"], self._device)
            self.means.sums.copy_(own["means"])
        else:
            seed_apart(self._config.seed, step, distributed.rank())
            if distributed.is_main():
                self.means.sums.copy_(torch.stack([entry["means"] for entry in saved]).sum(0))
        return len(saved)

    def _arranged(self, batch: Batch) -> Batch:
        strong = None if batch.strong is None else self._execution.arranged(batch.strong)
        return batch._replace(inputs=self._execution.arranged(batch.inputs), strong=strong)

    def _whole_step(self) -> WholeStep:
        distiller, config = self._distiller, self._config

        def compute(
            inputs: Tensor, targets: Tensor, taught: Tensor | None, strong: Tensor | None, share: Tensor
        ) -> Computed:
            with self._execution.autocast():
                if distiller:
                    losses, logits = distiller.streams(inputs, targets, taught, strong=strong)
                else:
                    losses, logits = self._task_loss(inputs, targets)
            return Computed(losses, self._plan.weigh(losses, share=share), logits)

        teachers = [distiller.teacher] if distiller and distiller.teacher else []
        params = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
        # Gradients are added up over micro-batches, and what adds up first is kept as it came.
        return WholeStep(compute, [self.student, *teachers], params, keep=config.accumulate > 1)

    def _fill(self, whole: WholeStep, batch: Batch, number: int, portion: float) -> tuple[dict[str, Tensor], Tensor]:
        """Fill the optimizer's streams from ``portion`` of a batch by the compiled step; the losses and the logits."""
        self._share.fill_(self._plan.share(number // self._steps_per_epoch))
        seed = self._scaler.scale(self._portion.fill_(portion))
        computed, grads = whole(seed, batch.inputs, batch.targets, batch.taught, batch.strong, self._share)
        self.optimizer.fill(computed.streams, grads)
        return computed.losses, computed.logits

    def _task_loss(self, inputs: Tensor, targets: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        logits = logits_of(self._forward(inputs))
        task = F.cross_entropy(logits.float(), targets, label_smoothing=self._config.label_smoothing)
        return {"task": task}, logits

    def _losses(self, batch: Batch, number: int) -> tuple[dict[str, Tensor], Tensor]:
        """The unweighted losses by stream, and the student's logits."""
        if self._distiller is None:
            return self._task_loss(batch.inputs, batch.targets)
        index = None
        if self._distiller.objective.wants_index:
            index = to_device(batch.index, self._device)
        return self._distiller.streams(
            batch.inputs,
            batch.targets,
            batch.taught,
            strong=batch.strong,
            index=index,
            progress=number / (self._config.epochs * self._steps_per_epoch),
        )

    def _alone(self) -> AbstractContextManager[None]:
        """Within, backward passes leave the gradients in each process to itself."""
        return self._together.no_sync() if self._together else nullcontext()

    def _followed(self) -> Iterator[Tensor]:
        """Buffers that each process moves by its own samples; of the method, those that no reduction keeps equal."""
        yield from self.student.buffers()
        if self.average:
            yield from self.average.buffers()
        for layer in self.extra.modules():
            if isinstance(layer, _NormBase):
                yield from layer.buffers(recurse=False)


def compiles_whole(config: Config, distiller: Distiller | None) -> bool:
    """Whether a step can be compiled as a whole, and not the student alone.

    What runs in it must do the same in every step: models and methods of this library, and models of the libraries that
    it knows, on logits, with a teacher that does not learn. Code of the user's own may have a state; methods that look
    inside, that know the samples or that change in the course of training do. With `low_memory` there are no gradients,
    and of several processes each has to send what it computes meanwhile.
    """
    specs = [config.student, config.teacher if config.method != "none" else config.student]
    specs += [str(entry.get("model", config.teacher)) for entry in config.more_teachers]
    if config.low_memory or distributed.size() > 1 or any(":" in spec and not is_of_library(spec) for spec in specs):
        return False
    if distiller is None:
        return True
    objective = distiller.objective
    changes = objective.looks_inside or objective.wants_index or objective.wants_progress
    return ":" not in config.method and not changes and not config.teacher_learns


def _together(model: nn.Module, student: nn.Module, example: Tensor) -> DistributedDataParallel:
    """``model``, which runs ``student``, with gradients averaged over the processes."""
    trained = [p for p in student.parameters() if p.requires_grad]
    with in_eval_mode(student):
        logits = logits_of(student(example))
    reached = cast("Sequence[Tensor | None]", torch.autograd.grad(logits.sum(), trained, allow_unused=True))
    # Looking for parameters without a gradient costs time in every step, so it is done only where there are some.
    # Buffers are seen to here: DDP would move them between the two passes of a method with two views.
    options: dict[str, Any] = {"find_unused_parameters": any(grad is None for grad in reached)}
    known = inspect.signature(DistributedDataParallel.__init__).parameters  # torch 2.13 has another name for it
    options["forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"] = False
    return DistributedDataParallel(model, **options)
