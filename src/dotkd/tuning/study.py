"""The trials of each trainer: optuna's studies, asked for parameters and told how they did.

The sampler is made anew for each trial, seeded by the seed of the configuration and the trial's number. So a trial is a
function of these and of the trials that ended before, whether or not the command was interrupted in between; and the
random trials of two trainers are equal in the keys that both have. TPE is multivariate, for lr and distill_weight act
through their product with each other.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

from dotkd.tuning.protocol import RANDOM_TRIALS, UNPRUNED_TRIALS, Protocol
from dotkd.tuning.space import Range, Space, Value, own_values

JOURNAL = "trials.journal"
# Told to the sampler of a trial that diverged: no accuracy is less.
WORST = 0.0
_DIVERGED = "diverged"


class Record(NamedTuple):
    """A trial. state: complete, pruned, diverged, or open where it has not ended.

    val_accuracy: a fraction, after the last of the `epochs` it took; None where there is none, or it diverged.
    """

    number: int
    params: dict[str, Value]
    state: str
    val_accuracy: float | None
    epochs: int


def load_optuna() -> Any:
    """The package, quiet; raises ModuleNotFoundError naming the extra."""
    try:
        import optuna
    except ImportError as error:
        raise ModuleNotFoundError("tuning needs the package optuna: pip install 'dotkd[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class Study:
    """The trials of one trainer, in the storage that all of them share."""

    def __init__(self, protocol: Protocol, trainer: str) -> None:
        self._optuna = load_optuna()
        self._protocol, self._trainer = protocol, trainer
        self._space = protocol.spaces[trainer]
        self._study = open_study(protocol.out, trainer, protocol.first_pruning, create=True)

    def begin(self, number: int) -> tuple[int, dict[str, Value]]:
        """The storage's id of trial `number`, and its parameters; of one that is open, those that it has."""
        config = self._protocol.configs[self._trainer]
        if number == 0:
            own = own_values(config)
            self._study.enqueue_trial({key: own[key] for key in self._space}, skip_if_exists=True)
        self._study.sampler = self._sampler(config.seed, number)
        frozen = self._study.get_trials(deepcopy=False)
        waiting = self._optuna.trial.TrialState.WAITING
        if number < len(frozen) and frozen[number].state != waiting:
            trial = self._optuna.trial.Trial(self._study, frozen[number]._trial_id)
        else:
            trial = self._study.ask()
        assert trial.number == number, f"trial {number} came out as {trial.number}"
        return trial._trial_id, {key: _suggest(trial, key, self._space) for key in self._space}

    def end(self, number: int, outcome: str) -> None:
        """Trial `number` ended: done, pruned or diverged."""
        trial = self._study.get_trials(deepcopy=False)[number]
        state = self._optuna.trial.TrialState
        if outcome == "pruned":
            self._study.tell(number, state=state.PRUNED)
        elif outcome == "diverged":
            self._optuna.trial.Trial(self._study, trial._trial_id).set_user_attr(_DIVERGED, True)
            self._study.tell(number, WORST)
        else:
            self._study.tell(number, trial.intermediate_values[self._protocol.config.epochs])

    def records(self) -> list[Record]:
        """All trials that began so far."""
        found: list[Record] = []
        words = {"COMPLETE": "complete", "PRUNED": "pruned"}
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state.name == "WAITING":
                continue
            values = trial.intermediate_values
            diverged = trial.user_attrs.get(_DIVERGED, False)
            accuracy = None if diverged or not values else values[max(values)]
            state = "diverged" if diverged else words.get(trial.state.name, "open")
            found.append(Record(trial.number, dict(trial.params), state, accuracy, len(values)))
        return found

    def _sampler(self, seed: int, number: int) -> Any:
        import numpy as np

        drawn = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
        with warnings.catch_warnings():  # before its version 5 optuna calls these options experimental
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            return self._optuna.samplers.TPESampler(
                seed=drawn, n_startup_trials=RANDOM_TRIALS, multivariate=True, constant_liar=False
            )


def best_of(records: list[Record]) -> Record | None:
    """The complete trial of the highest accuracy, the first of equals; None without any."""
    complete = [record for record in records if record.state == "complete"]
    return max(complete, key=lambda record: record.val_accuracy or 0.0, default=None)


def open_study(out: Path, trainer: str, first_pruning: int, *, create: bool = False) -> Any:
    """The study of `trainer` in the folder `out`, with the pruner that the protocol states."""
    optuna = load_optuna()
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    path = str(out / JOURNAL)
    # The default lock is a symbolic link, which not every system grants.
    storage = optuna.storages.JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))
    pruner = optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED_TRIALS, n_warmup_steps=first_pruning)
    if not create:
        return optuna.load_study(study_name=trainer, storage=storage, pruner=pruner)
    return optuna.create_study(
        study_name=trainer, storage=storage, pruner=pruner, direction="maximize", load_if_exists=True
    )


def _suggest(trial: Any, key: str, space: Space) -> Value:
    span = space[key]
    if isinstance(span, Range):
        return trial.suggest_float(key, span.low, span.high, log=span.log)
    return trial.suggest_categorical(key, list(span.values))
