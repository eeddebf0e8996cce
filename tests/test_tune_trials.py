"""The studies behind `dotkd tune`: what is drawn, when a trial is pruned, what an ending means.

The contract:
- trial 0 is the configuration's own values; random trials of two trainers are equal in the keys they share; a trial is
  a function of the seed, its number and the trials that ended before, by whichever process;
- a trial is pruned where its best epoch so far is below the median of the ended ones at that epoch, not before a third
  of the epochs, not before five trials ended unpruned, and not after the last epoch;
- one that diverged counts as worst; of equal ones the first is best; a pruned one never is.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from dotkd.tuning.protocol import Protocol, make_protocol
from dotkd.tuning.study import WORST, Study, best_of
from dotkd.tuning.trial import Pruned, Reporter

EPOCHS = 6


@pytest.fixture
def protocol(tmp_path: Path) -> Protocol:
    made = make_protocol(
        "digits", [f"epochs={EPOCHS}"], trainers="sgd,dot", trials=13, spans=[], out=tmp_path / "tuned"
    )
    made.out.mkdir()
    return made


def report(protocol: Protocol, trainer: str, trial: int, accuracies: list[float], first: int = 1) -> int:
    """The epoch after which the trial with these accuracies is pruned, 0 where it is not."""
    reporter = Reporter(protocol.out, trainer, trial, first_pruning=protocol.first_pruning, epochs=EPOCHS)
    for epoch, accuracy in enumerate(accuracies, start=first):
        reporter.show({"kind": "train", "epoch": epoch})
        try:
            reporter.show({"kind": "eval", "epoch": epoch, "val": {"accuracy": accuracy}, "test": None})
        except Pruned:
            return epoch
    return 0


def make(protocol: Protocol, study: Study, trainer: str, number: int, accuracies: list[float]) -> str:
    """One trial to its end; returns the word for that."""
    trial, _ = study.begin(number)
    outcome = "pruned" if report(protocol, trainer, trial, accuracies) else "done"
    study.end(number, outcome)
    return outcome


def accuracy_of(params: dict[str, float | None]) -> float:
    return 1 / (1 + abs((params["lr"] or 0) - 0.1) + abs((params["distill_weight"] or 0) - 2))


def all_trials(protocol: Protocol, trainer: str, *, anew: bool) -> list[dict[str, float | None]]:
    """Parameters of all trials; anew: a study object for each, as by commands that were interrupted."""
    study = Study(protocol, trainer)
    found: list[dict[str, float | None]] = []
    for number in range(protocol.trials):
        study = Study(protocol, trainer) if anew else study
        trial, params = study.begin(number)
        if anew:  # begun, stopped, and begun again
            study = Study(protocol, trainer)
            assert study.begin(number) == (trial, params)
        pruned = report(protocol, trainer, trial, [accuracy_of(params)] * EPOCHS)
        study.end(number, "pruned" if pruned else "done")
        found.append(params)
    return found


def test_equal_seeds_give_equal_trials_whoever_draws_them(protocol: Protocol, tmp_path: Path):
    whole = {trainer: all_trials(protocol, trainer, anew=False) for trainer in ("sgd", "dot")}
    again = protocol._replace(out=tmp_path / "again")
    again.out.mkdir()
    assert {trainer: all_trials(again, trainer, anew=True) for trainer in ("dot", "sgd")} == whole
    own = {"lr": 0.05, "distill_weight": 0.9, "temperature": 4.0}
    assert (whole["sgd"][0], whole["dot"][0]) == (own, own | {"delta": 0.075})
    shared = [{key: params[key] for key in own} for params in whole["dot"]]
    assert shared[:10] == whole["sgd"][:10]
    assert len({params["lr"] for params in shared}) == protocol.trials
    for trainer, trials in whole.items():
        for params in trials:
            assert all(protocol.spaces[trainer][key].holds(value) for key, value in params.items())
    # TPE has learnt where it is good: not what random draws would do.
    assert shared[10:] != whole["sgd"][10:]
    assert statistics.mean(map(accuracy_of, whole["sgd"][10:])) > statistics.mean(map(accuracy_of, whole["sgd"][1:10]))


def test_another_seed_draws_others(protocol: Protocol):
    first = [Study(protocol, "sgd").begin(number)[1] for number in range(2)]
    other = protocol._replace(
        out=protocol.out / "other", configs={name: c.replace(seed=1) for name, c in protocol.configs.items()}
    )
    other.out.mkdir()
    second = [Study(other, "sgd").begin(number)[1] for number in range(2)]
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_pruning(protocol: Protocol):
    study = Study(protocol, "sgd")
    rising = [[0.1 * (k + 1) + 0.05 * epoch for epoch in range(EPOCHS)] for k in range(5)]
    for number, accuracies in enumerate(rising):  # each better than those before, and the sixth is the first to fall
        assert make(protocol, study, "sgd", number, accuracies) == "done"
    assert protocol.first_pruning == 2
    medians = [statistics.median(column) for column in zip(*rising, strict=True)]
    low = [medians[0] - 0.2, medians[1] - 0.001, 1.0, 1.0, 1.0, 1.0]
    trial, _ = study.begin(5)
    assert report(protocol, "sgd", trial, low) == 2
    study.end(5, "pruned")
    # At the median, or above it by an earlier epoch, it goes on.
    assert make(protocol, study, "sgd", 6, medians[:2] + [m + 0.01 for m in medians[2:]]) == "done"
    assert make(protocol, study, "sgd", 7, [0.9] + [0.0] * (EPOCHS - 1)) == "done"
    # After the last epoch nothing is pruned, however low.
    trial, _ = study.begin(8)
    assert report(protocol, "sgd", trial, [0.0], first=EPOCHS) == 0
    study.end(8, "done")
    # Another trainer's trials are not looked at.
    assert make(protocol, Study(protocol, "dot"), "dot", 0, [0.0] * EPOCHS) == "done"
    records = study.records()
    assert [record.state for record in records] == ["complete"] * 5 + ["pruned"] + ["complete"] * 3
    assert (records[5].epochs, records[5].val_accuracy) == (2, low[1])
    assert records[4].val_accuracy == rising[4][-1]


def test_no_trial_is_pruned_before_five_have_ended(protocol: Protocol):
    study = Study(protocol, "sgd")
    for number in range(5):
        assert make(protocol, study, "sgd", number, [0.9 - 0.1 * number] * EPOCHS) == "done"
    assert make(protocol, study, "sgd", 5, [0.4] * EPOCHS) == "pruned"


def test_a_trial_that_goes_on_reports_an_epoch_once_and_is_pruned_all_the_same(protocol: Protocol):
    study = Study(protocol, "sgd")
    for number in range(5):
        make(protocol, study, "sgd", number, [0.5] * EPOCHS)
    trial, _ = study.begin(5)
    assert report(protocol, "sgd", trial, [0.6]) == 0
    # It was killed, and comes by the first epoch again; then by the second, where it was pruned but nobody was told.
    assert report(protocol, "sgd", trial, [0.6, 0.6]) == 0
    assert report(protocol, "sgd", trial, [0.6, 0.6, 0.6], first=2) == 0
    trial, _ = study.begin(6)
    for _ in range(2):
        assert report(protocol, "sgd", trial, [0.4, 0.4, 0.4]) == 2


def test_the_best(protocol: Protocol):
    study = Study(protocol, "sgd")
    for number, (accuracy, outcome) in enumerate([(0.5, "done"), (0.9, "diverged"), (0.7, "done"), (0.7, "done")]):
        trial, _ = study.begin(number)
        report(protocol, "sgd", trial, [accuracy] * (EPOCHS if outcome == "done" else 1))
        study.end(number, outcome)
    trial, _ = study.begin(4)
    report(protocol, "sgd", trial, [0.95])
    study.end(4, "pruned")
    study.begin(5)
    records = study.records()
    assert [record.state for record in records] == ["complete", "diverged", "complete", "complete", "pruned", "open"]
    assert (records[1].val_accuracy, records[1].epochs) == (None, 1)
    assert study._study.trials[1].value == WORST == 0.0
    best = best_of(records)
    assert best is not None
    assert best.number == 2
    assert best_of(records[1:2]) is None
