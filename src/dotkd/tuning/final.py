"""The final test of a tuning: each trainer's best, on fresh seeds, by pairs against the first trainer.

The accuracy that a trial was chosen by is a maximum over trials, all with one seed: too high by what luck adds to it,
and by more where more trials are noisy. So it is no result. The runs here have seeds that no trial had, and are scored
on the test split, on which nothing was chosen. Trainers share seeds (start and order of samples), hence pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dotkd.evidence.runs import Run, is_finished, read_run
from dotkd.evidence.statistics import Difference, Estimate, correct, estimate, paired_difference


class Row(NamedTuple):
    """A trainer's best over the fresh seeds. Accuracies are fractions of the test split.

    last: after the last epoch, as the trials were chosen. gain: paired, of `last`, on the first trainer, corrected over
    the trainers; None for the first. gain_val_selected: the same of `val_selected`, beside it and corrected by itself.
    """

    trainer: str
    last: Estimate
    val_selected: Estimate
    gain: Difference | None
    gain_val_selected: Difference | None


def read_finals(out: Path, trainers: Sequence[str], seeds: Sequence[int]) -> dict[str, list[Run]]:
    """{trainer: its runs of the final test that ended, in the order of their seeds}."""
    folders = {name: [out / "final" / name / f"seed-{seed}" for seed in seeds] for name in trainers}
    return {name: [read_run(path) for path in paths if is_finished(path)] for name, paths in folders.items()}


def make_rows(runs: Mapping[str, Sequence[Run]]) -> list[Row]:
    """The table; the first trainer is what the others are held against."""
    first = next(iter(runs))
    rows: list[Row] = []
    for name, made in runs.items():
        ended = [run for run in made if not run.diverged]
        diverged = len(made) - len(ended)
        last = estimate([run.last for run in ended], diverged)
        selected = estimate([run.selected for run in ended], diverged)
        if name == first:
            rows.append(Row(name, last, selected, None, None))
            continue
        gains = (
            paired_difference(_by_seed(made, quantity), _by_seed(runs[first], quantity))
            for quantity in ("last", "selected")
        )
        rows.append(Row(name, last, selected, *gains))
    return _corrected(_corrected(rows, "gain"), "gain_val_selected")


def _corrected(rows: Sequence[Row], quantity: str) -> list[Row]:
    """The rows with the p-values of one quantity as one family, corrected by Holm."""
    gains = correct({row.trainer: gain for row in rows if (gain := getattr(row, quantity)) is not None})
    return [row._replace(**{quantity: gains.get(row.trainer)}) for row in rows]


def as_json(rows: Sequence[Row], runs: Mapping[str, Sequence[Run]], seeds: Sequence[int]) -> dict[str, Any]:
    """The table and the numbers of each run, as JSON values; what does not exist is null."""
    return {
        "split": "test",
        "seeds": list(seeds),
        "against": rows[0].trainer,
        "trainers": {
            row.trainer: {
                name: None if value is None else value._asdict()
                for name, value in row._asdict().items()
                if name != "trainer"
            }
            for row in rows
        },
        "runs": [
            {
                "trainer": name,
                "seed": run.seed,
                "status": run.status,
                "test_accuracy_last": run.last,
                "test_accuracy_val_selected": run.val_selected,
                "seconds": run.seconds,
            }
            for name, made in runs.items()
            for run in made
        ],
    }


def _by_seed(runs: Sequence[Run], quantity: str) -> dict[int, float | None]:
    return {run.seed: getattr(run, quantity) for run in runs if not run.diverged}
