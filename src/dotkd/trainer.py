"""The one training loop: any student, with or without a teacher, by SGD, DOT, their controls or their AdamW forms."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd import checkpoint, data, models
from dotkd.assembly import assemble
from dotkd.batch_statistics import BatchStatistics
from dotkd.checkpoint import save_weights, write_atomically
from dotkd.config import Config, ConfigError
from dotkd.data import Augment, Batch, SplitName
from dotkd.distiller import Distiller, logits_of, refuse_non_finite
from dotkd.evaluation import Examiner
from dotkd.metrics import Display, Log, Means, to_json
from dotkd.randomness import random_state, restore_random_state, seed_everything
from dotkd.schedule import learning_rate
from dotkd.signals import StopRequest, stop_on_signal
from dotkd.summary import best_epoch, summarise, where_not_finite

# What a run leaves in its folder: where one of these is, another run has been.
_PARTS = ("config.yaml", "metrics.jsonl", "summary.json", "checkpoints", "student.safetensors", "teacher")
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Interrupted(RuntimeError):
    """A signal stopped the run at a step boundary; its checkpoint is saved."""


class Diverged(RuntimeError):
    """Too many steps in a row had a gradient that is not finite; the text says where."""


class RunExists(ValueError):
    """The output folder holds another run."""


class Trainer:
    """Trains ``config.student`` and leaves a run folder that needs no library to be read.

    The folder holds ``config.yaml``, ``metrics.jsonl``, ``summary.json``, ``student.safetensors`` (the weights after
    the last epoch), ``student_val_selected.safetensors`` (after the epoch of the best validation accuracy),
    ``student_ema.safetensors`` (with ``ema``), ``checkpoints/``, and ``teacher/``, a run folder of its own, where the
    teacher was trained here. With ``method: none`` a teacher given by ``teacher_weights`` is only measured against.

    Args:
        out: the run folder.
        display: where a person watches; None for silence.
        resuming: go on with the run that ``out`` holds instead of refusing it.

    Raises:
        RunExists: ``out`` holds a run already.
        ValueError: data, models and config do not fit together.
    """

    def __init__(
        self, config: Config, out: str | Path, *, display: Display | None = None, resuming: bool = False
    ) -> None:
        self.config, self.out, self._display = config, Path(out).expanduser(), display
        if not resuming and any((self.out / name).exists() for name in _PARTS):
            raise RunExists(f"{self.out} already holds a run: `dotkd resume` continues it, or choose another folder")
        parts = assemble(config)
        self.device, self.dataset = parts.device, parts.dataset
        self.student, self.teacher = parts.student, parts.teacher
        if self.teacher is not None and not config.teacher_weights:
            teacher_config(config)  # refused now rather than when its turn comes
        self._augment: Augment = parts.augment
        self._plan, self._ema = parts.plan, parts.average
        self._steps_per_epoch = data.batch_count(self.dataset, "train", batch_size=config.batch_size, drop_last=True)
        compiled = torch.compile(self.student) if config.compile else self.student
        self._forward = cast("nn.Module", compiled)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self._clip = torch.tensor(config.clip_norm, device=self.device) if config.clip_norm else None
        self._means = Means(self.device)
        self._statistics = BatchStatistics(self.student)
        self._distiller: Distiller | None = None
        self._step = self._epoch = self._skipped_before = 0
        self._seconds = 0.0
        self._history: list[dict[str, Any]] = []  # the evaluation of every epoch so far

    @classmethod
    def resume(cls, out: str | Path, *, display: Display | None = None) -> Trainer:
        """The trainer of the run in ``out``; its ``fit()`` goes on to the same bits as if it had never stopped.

        Raises:
            FileNotFoundError: ``out`` holds no run.
        """
        path = Path(out).expanduser() / "config.yaml"
        if not path.is_file():
            raise FileNotFoundError(f"{path.parent} holds no run: it has no config.yaml")
        return cls(Config.from_sources(path), out, display=display, resuming=True)

    def fit(self) -> dict[str, Any]:
        """Train to the end, or on from the newest checkpoint; returns what ``summary.json`` holds.

        Raises:
            Interrupted: SIGINT or SIGTERM arrived; :meth:`resume` continues.
            Diverged: ``max_skips`` steps in a row were skipped.
            CheckpointError: the disk refused a file, or every checkpoint is damaged.
        """
        if (self.out / "summary.json").exists():
            return json.loads((self.out / "summary.json").read_text())
        self.out.mkdir(parents=True, exist_ok=True)
        write_atomically(self.out / "config.yaml", self.config.to_yaml())
        self._prepare_teacher()
        self._examiner = self._examine()
        seed_everything(self.config.seed, self.device)  # not to depend on how the teacher came about
        kept = self._restore()
        log = Log(self.out, keep=kept, step=self._step, tensorboard=self.config.tensorboard, display=self._display)
        if self._display:
            title = f"{self.config.student}, {self.config.method}, {self.config.trainer}"
            self._display.start(title, steps=self._steps_per_epoch * self.config.epochs, done=self._step)
        try:
            with stop_on_signal() as stop:
                while self._epoch < self.config.epochs:
                    self._train_epoch(log, stop)
                    self._end_epoch(log)
                    self._save(log)
            return self._finish("done")
        except Diverged:
            self._finish("diverged")
            raise
        finally:
            log.close()
            if self._display:
                self._display.stop()

    # --- the loop ---------------------------------------------------------------------------------------------------

    def _train_epoch(self, log: Log, stop: StopRequest) -> None:
        config = self.config
        epoch_batches = data.batches(
            self.dataset,
            "train",
            batch_size=config.batch_size,
            epoch=self._epoch,
            seed=config.seed,
            start=self._step - self._epoch * self._steps_per_epoch,
            shuffle=True,
            drop_last=True,
            augment=self._augment,
            device=self.device,
        )
        self.student.train()
        began, first = time.perf_counter(), self._step
        for batch in epoch_batches:
            self._train_step(batch)
            self._step += 1
            if self._display:
                self._display.step()
            if self._log_due():
                now = time.perf_counter()
                self._write_means(log, (self._step - first) * config.batch_size / (now - began), batch)
                self._seconds += now - began
                began, first = now, self._step
            if stop or (config.checkpoint_every and self._step % config.checkpoint_every == 0):
                self._seconds += time.perf_counter() - began
                self._save(log)
                began, first = time.perf_counter(), self._step
            if stop:
                raise Interrupted(f"{stop.name} at step {self._step}: saved; `dotkd resume {self.out}` continues")

    def _log_due(self) -> bool:
        """About every ``log_every`` steps, such that the records divide an epoch evenly and the last one closes it."""
        records = max(1, round(self._steps_per_epoch / self.config.log_every))
        done = self._step - self._epoch * self._steps_per_epoch
        return done * records // self._steps_per_epoch > (done - 1) * records // self._steps_per_epoch

    def _train_step(self, batch: Batch) -> None:
        """One optimizer step. Nothing here may wait for the device."""
        config, optimizer = self.config, self._plan.optimizer
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, self._step, self._steps_per_epoch)
        self._statistics.remember()
        for inputs, targets, index in zip(*(part.chunk(config.accumulate) for part in batch), strict=True):
            with self._autocast():
                task, distill, logits = self._losses(inputs, targets, index)
            loss = optimizer.join(**self._plan.streams(task, distill))
            self._scaler.scale(loss * (len(targets) / len(batch.targets))).backward()
            self._means.add(task, distill, logits, targets)
        if self._clip is not None:
            optimizer.clip_grad_norm_(self._scaler.scale(self._clip))
        self._scaler.step(optimizer)
        self._scaler.update()
        self._statistics.put_back_if(optimizer.last_step_skipped)
        optimizer.zero_grad()
        if self._ema:
            self._ema.update_parameters(self.student)

    def _losses(self, inputs: Tensor, targets: Tensor, index: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        if self._distiller is None or self.config.method == "none":
            logits = logits_of(self._forward(inputs))
            task = F.cross_entropy(logits.float(), targets, label_smoothing=self.config.label_smoothing)
            return task, None, logits
        known = self._examiner.known("train")
        return self._distiller(
            inputs, targets, None if known is None else known[index.to(self.device, non_blocking=True)]
        )

    def _write_means(self, log: Log, rate: float, batch: Batch) -> None:
        optimizer = self._plan.optimizer
        task, distill, accuracy, _ = self._means.read()
        log.write(
            {
                "kind": "train",
                "step": self._step,
                "epoch": self._epoch + 1,
                "task_loss": task,
                "distill_loss": None if self.config.method == "none" else distill,
                "accuracy": accuracy,
                "lr": optimizer.param_groups[0]["lr"],
                "images_per_second": rate,
                "skipped_steps": self._skipped_before + optimizer.skipped_steps,
            }
        )
        if optimizer.skipped_in_a_row >= self.config.max_skips:
            raise Diverged(self._diagnosis(batch))

    def _end_epoch(self, log: Log) -> None:
        self._epoch += 1
        record: dict[str, Any] = {"kind": "eval", "step": self._step, "epoch": self._epoch}
        splits: tuple[SplitName, ...] = ("val", "test")
        record |= {split: self._examiner.scores(self.student, split)._asdict() for split in splits}
        if self._ema:
            record["ema"] = {split: self._examiner.scores(self._ema.module, split)._asdict() for split in splits}
        self._history.append(record)
        log.write(record)
        if best_epoch(self._history) is record:
            save_weights(self.out / "student_val_selected.safetensors", self.student.state_dict())

    # --- teacher and scores -----------------------------------------------------------------------------------------

    def _prepare_teacher(self) -> None:
        config = self.config
        if self.teacher is None:
            return
        if not config.teacher_weights:
            models.load_weights(self.teacher, teacher_run(config, self.out / "teacher", display=self._display))
        self._distiller = Distiller(
            self._forward,
            self.teacher,
            "kd" if config.method == "none" else config.method,
            temperature=config.temperature,
            label_smoothing=config.label_smoothing,
            options=config.method_options,
            checks=False,  # data and teacher are checked once, beforehand; in the loop it would make the host wait
        )

    def _examine(self) -> Examiner:
        # Without augmentation every epoch shows the teacher the same view of the training samples too.
        fixed: tuple[SplitName, ...] = ("train", "val", "test") if self._augment == "none" else ("val", "test")
        size = max(256, self.config.batch_size)
        return Examiner(self.dataset, self._distiller, fixed=fixed, batch_size=size, device=self.device)

    def _autocast(self) -> torch.autocast:
        precision = self.config.precision
        return torch.autocast(self.device.type, _PRECISIONS[precision], enabled=precision != "fp32")

    # --- what is saved ----------------------------------------------------------------------------------------------

    def _save(self, log: Log) -> None:
        state = {
            "optimizer": self._plan.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "ema": self._ema.state_dict() if self._ema else None,
            "random": random_state(self.device),
            "means": self._means.sums,
            "epoch": self._epoch,
            "history": self._history,
            "seconds": self._seconds,
            "skipped": self._skipped_before + self._plan.optimizer.skipped_steps,
            "metrics": log.position,
            "fingerprint": self.dataset.fingerprint,
        }
        checkpoint.save(self.out / "checkpoints", self._step, student=self.student.state_dict(), state=state)

    def _restore(self) -> int:
        """Load the newest whole checkpoint, if there is one; returns the bytes of metrics.jsonl that belong to it."""
        found = checkpoint.load_latest(self.out / "checkpoints")
        if found is None:
            return 0
        for path, reason in found.skipped:
            warnings.warn(f"{path} is damaged ({reason}): going on from {found.path}", RuntimeWarning, stacklevel=3)
        state = found.state
        if state["fingerprint"] != self.dataset.fingerprint:
            raise ValueError(f"{self.config.data} is not the data that {self.out} was trained on: it has changed since")
        try:
            self.student.load_state_dict(found.student)
        except RuntimeError as error:
            raise ValueError(f"{found.path} does not fit the student of {self.out}/config.yaml: {error}") from error
        self._plan.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self._ema:
            self._ema.load_state_dict(state["ema"])
        self._means.sums.copy_(state["means"])
        self._step, self._epoch, self._history = found.step, state["epoch"], state["history"]
        self._seconds, self._skipped_before = state["seconds"], state["skipped"]
        restore_random_state(state["random"], self.device)
        return state["metrics"]

    def _finish(self, status: str) -> dict[str, Any]:
        save_weights(self.out / "student.safetensors", self.student.state_dict())
        if self._ema:
            save_weights(self.out / "student_ema.safetensors", self._ema.module.state_dict())
        splits: tuple[SplitName, ...] = ("train", "test")
        finals = {split: self._examiner.scores(self.student, split) for split in splits}
        summary = summarise(
            self.config,
            self._history,
            self.device,
            status=status,
            losses={split: {"task": v.task_loss, "distill": v.distill_loss} for split, v in finals.items()},
            teacher_test_accuracy=self._examiner.teacher_accuracy("test"),
            seconds=self._seconds,
            steps=self._step,
            skipped_steps=self._skipped_before + self._plan.optimizer.skipped_steps,
            images_per_second=self._step * self.config.batch_size / self._seconds if self._seconds else None,
            parameters={
                "student": models.parameter_count(self.student),
                "teacher": models.parameter_count(self.teacher) if self.teacher else None,
            },
        )
        text = to_json(summary, indent=2)
        write_atomically(self.out / "summary.json", text + "\n")
        return json.loads(text)

    def _diagnosis(self, batch: Batch) -> str:
        """Why steps are skipped, found on one batch."""
        optimizer = self._plan.optimizer
        skipped = optimizer.skipped_in_a_row
        if self._distiller and self._examiner.known("train") is None:
            refuse_non_finite(self._distiller.teacher_logits(batch.inputs), batch.index)
        optimizer.zero_grad()
        task, distill, _ = self._losses(batch.inputs, batch.targets, batch.index)
        why = where_not_finite(optimizer, self._plan.streams(task, distill), self.student.named_parameters())
        return f"{skipped} steps in a row skipped since step {self._step - skipped + 1}: {why}; lower lr or delta"


def teacher_run(config: Config, out: Path, *, display: Display | None = None) -> Path:
    """Train the teacher of ``config`` on its task loss in the run folder ``out``, or finish that; returns ``out``.

    Raises:
        Diverged: now, or when it was trained before; nothing can be distilled from it.
    """
    resuming = (out / "config.yaml").exists()
    summary = Trainer(teacher_config(config), out, display=display, resuming=resuming).fit()
    if summary["status"] == "diverged":
        raise Diverged(f"the teacher in {out} diverged: nothing can be distilled from it")
    return out


def teacher_config(config: Config) -> Config:
    """The config of the run that trains the teacher of ``config``; raises ConfigError where there can be none."""
    try:
        return config.replace(
            student=config.teacher,
            student_options=config.teacher_options,
            student_weights=None,
            method="none",
            method_options={},
            task_weight=1.0,
            trainer="adamw" if "adamw" in config.trainer else "sgd",
            epochs=config.teacher_epochs or config.epochs,
            lr=config.teacher_lr or config.lr,
            label_smoothing=0.0,
            ema=None,
        )
    except ConfigError as error:
        lines = "\n".join(f"the teacher's training: {problem}" for problem in error.problems)
        raise ConfigError(lines) from error
