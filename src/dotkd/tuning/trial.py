"""One trial in its worker process: what it says after each epoch, and whether it goes on."""

from __future__ import annotations

from pathlib import Path

from dotkd.metrics import Record
from dotkd.tuning.study import load_optuna, open_study


class Pruned(RuntimeError):
    """The trial is behind the others of its trainer; it ends here."""


class Reporter:
    """A display of `Trainer` that nobody watches: it tells the study the validation accuracy of each epoch.

    out, trainer, first_pruning: which study; trial: the storage's id; epochs: of a whole run, for after the last one
    nothing is pruned.
    """

    def __init__(self, out: Path, trainer: str, trial: int, *, first_pruning: int, epochs: int) -> None:
        self._study = open_study(out, trainer, first_pruning)
        self._trial = load_optuna().trial.Trial(self._study, trial)
        self._epochs = epochs
        self._last = self._study._storage.get_trial(trial).last_step or 0

    def start(self, title: str, *, steps: int, done: int) -> None:
        """Say nothing."""

    def step(self) -> None:
        """Say nothing."""

    def show(self, record: Record) -> None:
        """Report an evaluation, of which the test split's half is not looked at. Raises Pruned."""
        if record["kind"] != "eval":
            return
        epoch = record["epoch"]
        if epoch < self._last:
            return
        # One that goes on from a checkpoint comes by the epoch after it again, to the same bits.
        if epoch > self._last:
            self._trial.report(record["val"]["accuracy"], epoch)
        if epoch < self._epochs and self._trial.should_prune():
            raise Pruned

    def stop(self) -> None:
        """Say nothing."""
