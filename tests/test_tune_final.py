"""The final test of a tuning, from run folders to its table.

The contract:
- means and intervals are over the runs that ended well, the others are counted;
- a gain is paired over the seeds that both trainers finished, on the first trainer, with SciPy's p; where there is no
  such number it is null.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dotkd.tuning.final import as_json, make_rows, read_finals
from run_folders import make_run

SGD = [0.90, 0.91, 0.93, 0.95]
DOT = [0.92, 0.96, 0.94, None]


def finals(out: Path, trainers: dict[str, list[float | None]]) -> dict[str, list]:
    for name, accuracies in trainers.items():
        for seed, accuracy in enumerate(accuracies, start=1):
            folder = out / "final" / name / f"seed-{seed}"
            status = "diverged" if accuracy is None else "done"
            make_run(folder, trainer=name, seed=seed, status=status, accuracy=accuracy)
    return read_finals(out, list(trainers), range(1, 5))


def test_the_table_is_what_scipy_says(tmp_path: Path):
    runs = finals(tmp_path, {"sgd": SGD, "dot": DOT})
    first, second = make_rows(runs)
    assert first.gain is None
    assert first.last.mean == pytest.approx(np.mean(SGD))
    low, high = stats.t.interval(0.95, 3, np.mean(SGD), stats.sem(SGD))
    assert first.last.half_width == pytest.approx((high - low) / 2)
    assert (second.last.n, second.last.diverged) == (3, 1)
    difference = np.subtract(DOT[:3], SGD[:3])
    assert second.gain is not None
    assert (second.gain.n, second.gain.mean) == (3, pytest.approx(difference.mean()))
    assert second.gain.p == pytest.approx(stats.ttest_rel(DOT[:3], SGD[:3]).pvalue)
    table = as_json([first, second], runs, range(1, 5))
    assert table["against"] == "sgd"
    assert [run["status"] for run in table["runs"]] == ["done"] * 7 + ["diverged"]
    assert table["trainers"]["dot"]["gain"]["p"] == second.gain.p


def test_several_gains_are_one_family(tmp_path: Path):
    """Holm by hand: the smaller of two p-values counts twice, the larger once but not less than that."""
    sgd = [0.90, 0.91, 0.93, 0.95]
    others = {"dot": [0.92, 0.93, 0.96, 0.98], "sgd-matched": [0.90, 0.92, 0.92, 0.97]}
    _, dot, matched = make_rows(finals(tmp_path, {"sgd": sgd, **others}))
    small, large = (stats.ttest_rel(others[name], sgd).pvalue for name in others)
    assert small < large
    assert (dot.gain.p, matched.gain.p) == (pytest.approx(small), pytest.approx(large))
    assert dot.gain.p_corrected == pytest.approx(2 * small)
    assert matched.gain.p_corrected == pytest.approx(max(2 * small, large))
    assert dot.gain_val_selected == dot.gain  # these runs have one accuracy


def test_one_seed_has_no_interval_and_no_test(tmp_path: Path):
    runs = finals(tmp_path, {"sgd": [0.9], "dot": [0.95]})
    _, row = make_rows(runs)
    assert row.gain is not None
    assert (row.last.half_width, row.gain.half_width, row.gain.p, row.gain.n) == (None, None, None, 1)
    assert row.gain.mean == pytest.approx(0.05)


def test_a_trainer_alone_has_nothing_to_be_held_against(tmp_path: Path):
    (row,) = make_rows(finals(tmp_path, {"dot": [0.9, 0.8]}))
    assert (row.last.mean, row.gain, row.gain_val_selected) == (pytest.approx(0.85), None, None)
