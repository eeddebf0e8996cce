"""The one training loop: any student, with or without a teacher, by SGD, DOT, their controls or their AdamW forms."""

from __future__ import annotations

import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from dotkd import data, distributed, models, sharding
from dotkd.assembly import assemble
from dotkd.cache.known import Counts, Known, Table
from dotkd.cache.of_run import RunCache
from dotkd.config import Config
from dotkd.config_teacher import teacher_config
from dotkd.data import Batch, SplitName
from dotkd.evaluation import Examiner
from dotkd.metrics import Display, Log, NoLog
from dotkd.randomness import seed_apart, seed_everything
from dotkd.run_folder import RunFolder
from dotkd.signals import StopRequest, stop_on_signal
from dotkd.starting import RunExists, check_processes, refuse_other_run
from dotkd.stepper import Stepper
from dotkd.summary import best_epoch, summarise

__all__ = ["Diverged", "Interrupted", "RunExists", "Trainer", "teacher_run"]


class Interrupted(RuntimeError):
    """A signal stopped the run at a step boundary; its checkpoint is saved."""


class Diverged(RuntimeError):
    """Too many steps in a row had a gradient that is not finite; the text says where."""


class Trainer:
    """Trains ``config.student`` and leaves a run folder that needs no library to be read.

    The folder holds ``config.yaml``, ``metrics.jsonl``, ``summary.json``, ``student.safetensors`` (the weights after
    the last epoch), ``student_val_selected.safetensors`` (after the epoch of the best validation accuracy),
    ``student_ema.safetensors`` (with ``ema``), ``method.safetensors`` (what the method trained besides),
    ``checkpoints/``, and ``teacher/``, a run folder of its own, where the teacher was trained here. With ``method:
    none`` a teacher given by ``teacher_weights`` is only measured against.

    In several processes (`dotkd.distributed.process_group`) each trains on its part of every batch, to the weights that
    one process would end with; the main one writes the folder, which all have to see. Started there by torchrun with
    the same config, a run goes on, as torchrun starts the processes again when one has died.

    Args:
        out: the run folder.
        display: where a person watches; None for silence.
        resuming: go on with the run that ``out`` holds instead of refusing it.

    Raises:
        RunExists: ``out`` holds a run already.
        ValueError: data, models and config do not fit together, or do not fit the number of processes.
    """

    def __init__(
        self, config: Config, out: str | Path, *, display: Display | None = None, resuming: bool = False
    ) -> None:
        self.config, self.out = config, Path(out).expanduser()
        self._folder = RunFolder(self.out)
        self._display = display if distributed.is_main() else None
        check_processes(config)
        if not resuming:
            distributed.main_decides(partial(refuse_other_run, self.out, config))
        parts = distributed.all_or_none(partial(assemble, config))
        if config.parallel == "fsdp" and distributed.size() > 1:
            parts = sharding.spread(config, parts)
        self.device, self.dataset, self._execution = parts.device, parts.dataset, parts.execution
        self.student, self.distiller, self._untrained = parts.student, parts.distiller, parts.teacher
        self.teacher = parts.distiller.teacher if parts.distiller else None
        if self._untrained is not None:
            teacher_config(config)  # refused now rather than when its turn comes
        self.batching = parts.batches
        self.cache = distributed.all_or_none(partial(RunCache, config, parts)) if config.cache else None
        self._known: Known | None = None
        self._steps_per_epoch = data.batch_count(self.dataset, "train", batch_size=config.batch_size, drop_last=True)
        self._stepper = Stepper(config, parts, steps_per_epoch=self._steps_per_epoch)
        self._step = self._epoch = 0
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
        if (finished := self._folder.begin(self.config)) is not None:
            return finished
        self._examiner = self.examine()
        seed_everything(self.config.seed, self.device)  # not to depend on how the teacher came about
        if distributed.size() > 1:
            seed_apart(self.config.seed, 0, distributed.rank())
        kept = self._restore()
        self._stepper.start_together()
        if self.cache:
            begun = self._step - self._epoch * self._steps_per_epoch
            self.cache.check(self._epoch, begun, self._steps_per_epoch)
        tensorboard = self.config.tensorboard
        log = self._folder.log(keep=kept, step=self._step, tensorboard=tensorboard, display=self._display)
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
            if self.cache:
                self.cache.flush()
            log.close()
            if self._display:
                self._display.stop()

    @property
    def _splits(self) -> tuple[SplitName, ...]:
        """What is measured after every epoch; there is no validation split with ``validation: 0``."""
        return ("test",) if self.dataset.val is None else ("val", "test")

    # --- the loop ---------------------------------------------------------------------------------------------------

    def _train_epoch(self, log: Log | NoLog, stop: StopRequest) -> None:
        config = self.config
        epoch_batches = self.batching.batches(
            self.dataset, device=self.device, epoch=self._epoch, start=self._step - self._epoch * self._steps_per_epoch
        )
        if self._known:
            epoch_batches = self._known.teach(epoch_batches)
        self.student.train()
        if self.distiller:
            self.distiller.train()
        began, first = time.perf_counter(), self._step
        for batch in epoch_batches:
            due = self._log_due()
            self._stepper.step(batch, self._step, measuring=due and config.diagnostics)
            self._step += 1
            if self._display:
                self._display.step()
            saving = bool(config.checkpoint_every and self._step % config.checkpoint_every == 0)
            if due or saving:
                # Also where nothing is saved, for the bits not to depend on whether the run stops here.
                self._stepper.settle()
            if due:
                now = time.perf_counter()
                self._write_means(log, (self._step - first) * config.batch_size / (now - began), batch)
                self._seconds += now - began
                began, first = now, self._step
            # Processes look out for each other's signals where they meet in any case.
            stopping = (due or distributed.size() == 1) and stop.agreed()
            if stopping or saving:
                self._seconds += time.perf_counter() - began
                self._save(log)
                began, first = time.perf_counter(), self._step
            if stopping:
                raise Interrupted(f"{stop.name} at step {self._step}: saved; `dotkd resume {self.out}` continues")

    def _log_due(self) -> bool:
        """Whether a record follows the next step: about every ``log_every``, evenly, and the last closes the epoch."""
        records = max(1, round(self._steps_per_epoch / self.config.log_every))
        done = self._step - self._epoch * self._steps_per_epoch
        return (done + 1) * records // self._steps_per_epoch > done * records // self._steps_per_epoch

    def _write_means(self, log: Log | NoLog, rate: float, batch: Batch) -> None:
        stepper = self._stepper
        task, distill, accuracy, _ = stepper.means.read()
        skipped = stepper.skipped_steps
        measured = stepper.measured.read(max(1, self._step - skipped)) if stepper.measured else None
        log.write(
            {
                "kind": "train",
                "step": self._step,
                "epoch": self._epoch + 1,
                "task_loss": task,
                "distill_loss": None if self.config.method == "none" else distill,
                "accuracy": accuracy,
                "lr": stepper.optimizer.param_groups[0]["lr"],
                "images_per_second": rate,
                "skipped_steps": skipped,
                **({"diagnostics": measured} if measured else {}),
                **self._cache_counts(),
            }
        )
        if stepper.optimizer.skipped_in_a_row >= self.config.max_skips:
            raise Diverged(stepper.diagnosis(batch, self._step))

    def _end_epoch(self, log: Log | NoLog) -> None:
        self._epoch += 1
        record: dict[str, Any] = {"kind": "eval", "step": self._step, "epoch": self._epoch}
        record |= {split: self._examiner.scores(self.student, split)._asdict() for split in self._splits}
        if average := self._stepper.average:
            record["ema"] = {split: self._examiner.scores(average.module, split)._asdict() for split in self._splits}
        self._history.append(record)
        log.write(record)
        if best_epoch(self._history) is record:
            self._folder.save_weights("student_val_selected", self.student)

    # --- teacher and scores -----------------------------------------------------------------------------------------

    def examine(self) -> Examiner:
        """Train or load the teacher, and return what scores the student as it is against it.

        Whatever the teacher says of samples that never change, it is asked here, once.
        """
        config = self.config
        self.train_teacher()
        fixed: tuple[SplitName, ...] = ()
        if self.distiller and self.distiller.teacher_is_fixed and config.teacher != "self":
            # Where every epoch shows the teacher the same training samples, it is asked about them once too.
            alike = self.batching.view_count == 1 and not config.cache
            fixed = ("train", *self._splits) if alike else self._splits
        size = max(256, config.batch_size)
        examiner = Examiner(self.dataset, self.distiller, fixed=fixed, batch_size=size, device=self.device)
        if self.cache:
            self._known = self.cache.open()
        elif (logits := examiner.known("train")) is not None:
            self._known = Table(logits)
        return examiner

    def train_teacher(self) -> None:
        """Give a teacher without weights those of a run of its own, in ``teacher/``."""
        if self._untrained is not None:
            out = teacher_run(self.config, self.out / "teacher", display=self._display)
            models.load_weights(self._untrained, out)
            self._untrained = None

    def _cache_counts(self) -> dict[str, Any]:
        """For metrics and summary: how often the cache was read, and the teacher asked; nothing without a cache."""
        return {"cache": self.cache.counts._asdict()} if self.cache else {}

    # --- what is saved ----------------------------------------------------------------------------------------------

    def _save(self, log: Log | NoLog) -> None:
        state = {
            **self._stepper.state(),
            "epoch": self._epoch,
            "history": self._history,
            "seconds": self._seconds,
            "metrics": log.position,
            "fingerprint": self.dataset.fingerprint,
            **self._cache_counts(),
        }
        self._folder.save_checkpoint(self._step, self.student, state)

    def _restore(self) -> int:
        """Load the newest whole checkpoint, if there is one; returns the bytes of metrics.jsonl that belong to it."""
        found = self._folder.load_checkpoint(self.student)
        if found is None:
            return 0
        state = found.state
        if state["fingerprint"] != self.dataset.fingerprint:
            raise ValueError(f"{self.config.data} is not the data that {self.out} was trained on: it has changed since")
        processes = self._stepper.load_state(state, found.step)
        if processes != distributed.size() and distributed.is_main():
            told = f"a run of {processes} goes on in {distributed.size()} processes: what is drawn at random (dropout)"
            warnings.warn(f"{told} is drawn anew, all else is equal to rounding", RuntimeWarning, stacklevel=3)
        self._step, self._epoch, self._history = found.step, state["epoch"], state["history"]
        self._seconds = state["seconds"]
        if self.cache:
            self.cache.counts = Counts(**state["cache"])
        return state["metrics"]

    def _finish(self, status: str) -> dict[str, Any]:
        self._folder.save_weights("student", self.student)
        if average := self._stepper.average:
            self._folder.save_weights("student_ema", average.module)
        splits: tuple[SplitName, ...] = ("train", "test")
        examine = self._examiner.final_scores if self.distiller else partial(self._examiner.scores, self.student)
        finals = {split: examine(split) for split in splits}
        if self._stepper.extra.state_dict():
            self._folder.save_weights("method", self._stepper.extra)
        summary = summarise(
            self.config,
            self._history,
            self.device,
            status=status,
            execution=self._execution.as_json(),
            losses={split: {"task": v.task_loss, "distill": v.distill_loss} for split, v in finals.items()},
            teacher_test_accuracy=self._examiner.teacher_accuracy("test"),
            seconds=self._seconds,
            steps=self._step,
            skipped_steps=self._stepper.skipped_steps,
            **self._cache_counts(),
            images_per_second=self._step * self.config.batch_size / self._seconds if self._seconds else None,
            parameters={
                "student": models.parameter_count(self.student),
                "teacher": models.parameter_count(self.teacher) if self.teacher else None,
                "method": models.parameter_count(self._stepper.extra),
            },
            **({"processes": distributed.size()} if distributed.size() > 1 else {}),
        )
        return self._folder.save_summary(summary)


def teacher_run(config: Config, out: Path, *, display: Display | None = None) -> Path:
    """Train the teacher of ``config`` on its task loss in the run folder ``out``, or finish that; returns ``out``.

    Raises:
        Diverged: now, or when it was trained before; nothing can be distilled from it.
    """
    resuming = distributed.main_decides((out / "config.yaml").exists)
    summary = Trainer(teacher_config(config), out, display=display, resuming=resuming).fit()
    if summary["status"] == "diverged":
        raise Diverged(f"the teacher in {out} diverged: nothing can be distilled from it")
    return out
