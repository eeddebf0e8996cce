"""Reading run folders.

The contract:
- a finished run is its summary.json, a curve the "eval" lines of its metrics.jsonl, in order of their step;
- a resumed run's later line counts; a last line that a kill cut short is passed over, any other damage is an error;
- null, NaN and infinity are None: none of them can be averaged;
- nothing here needs torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dotkd.evidence.runs import epochs_done, is_finished, read_evaluations, read_run
from run_folders import EPOCHS, make_run


def test_summary_is_read(tmp_path: Path):
    run = read_run(make_run(tmp_path / "a run", method="dkd", trainer="dot", seed=7, accuracy=0.91))
    assert (run.method, run.trainer, run.seed, run.status, run.diverged) == ("dkd", "dot", 7, "done", False)
    assert (run.val_selected, run.last, run.best_of_test) == (0.91, 0.91, 0.91)
    assert (run.test.task_loss, run.test.distill_loss, run.seconds) == (0.4, 1.2, 12.5)
    assert run.teacher_accuracy == 0.95
    assert run.config["lr"] == 0.05


def test_diverged_run_may_lack_every_number(tmp_path: Path):
    run = read_run(make_run(tmp_path, status="diverged", accuracy=None, task=float("nan"), distill=float("inf")))
    assert run.diverged
    assert (run.val_selected, run.test.task_loss, run.test.distill_loss) == (None, None, None)


def test_unfinished_folder_is_no_run(tmp_path: Path):
    assert not is_finished(tmp_path)
    with pytest.raises(ValueError, match=r"holds no finished run: it has no summary\.json"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": None}, r"summary\.json cannot be read as the summary of a run: .*NoneType"),
        ({"status": "finished"}, "to be done or diverged, got 'finished'"),
        ({"seconds": "12"}, "expected a number or null, got '12'"),
        ({"losses": [1, 2]}, "expected an object, got list"),
    ],
)
def test_damaged_summary_is_named(tmp_path: Path, change: dict[str, object], message: str):
    path = make_run(tmp_path) / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        read_run(tmp_path)


def test_missing_key_is_named(tmp_path: Path):
    (tmp_path / "summary.json").write_text('{"status": "done", "method": "kd"}')
    with pytest.raises(ValueError, match=r"summary\.json lacks the key 'trainer'"):
        read_run(tmp_path)


def test_evaluations_in_order_and_the_later_of_two_lines(tmp_path: Path):
    path = make_run(tmp_path) / "metrics.jsonl"
    scores = {"accuracy": 0.123, "task_loss": 1.0, "distill_loss": None}
    again = {"kind": "eval", "step": 20, "epoch": 2, "val": scores, "test": scores}
    path.write_text(path.read_text() + json.dumps(again) + "\n")
    points = read_evaluations(tmp_path)
    assert [point.step for point in points] == [10, 20, 30]
    assert (points[1].test.accuracy, points[1].test.distill_loss) == (0.123, None)
    assert points[2].test.distill_loss == 1.2


def test_epochs_are_counted_while_a_run_goes_on(tmp_path: Path):
    assert epochs_done(tmp_path) == 0
    assert epochs_done(make_run(tmp_path)) == EPOCHS


def test_line_cut_short_is_passed_over(tmp_path: Path):
    path = make_run(tmp_path) / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    assert [point.step for point in read_evaluations(tmp_path)] == [10, 20]


def test_damage_before_the_end_is_told_with_its_line(tmp_path: Path):
    path = make_run(tmp_path) / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:10]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 3: not a JSON object"):
        read_evaluations(tmp_path)


def test_run_without_metrics_has_no_evaluations(tmp_path: Path):
    assert read_evaluations(tmp_path) == []


def test_evidence_needs_no_torch():
    modules = "runs, comparison, statistics, verdict, jobs, lock, plots"
    code = f"import sys; from dotkd.evidence import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
