"""How `dotkd tune` refuses, and what becomes of trials that do not end well.

The contract:
- what is wrong with the words is one message, exit code 2, before anything is written;
- a trial that is pruned keeps its folder, has no summary and costs its trial; one that diverges costs its own, and a
  trainer whose trials all diverge ends the command with 3; one that fails ends it with 1 and is tried again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from dotkd.cli import tune_conduct
from dotkd.evidence.jobs import Ending, Job, Work
from dotkd.tuning.protocol import UNPRUNED_TRIALS
from tune_command import Tell, dotkd, run_here, tuned, write_mine


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_waiting_for_the_disk: None) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune_conduct, "run_jobs", run_here)
    return write_mine()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digit"], "did you mean digits?"),
        (["digits", "lrr=1"], "lrr: unknown key, got 1; did you mean lr?"),
        (["digits", "validation=0"], "validation: expected a number > 0, got 0: trials are chosen on the validation"),
        (["digits", "trainer=dot"], "trainer is what is tuned, each by itself: give it as --trainers"),
        (["digits", "--trainers", "sgd,dott"], "got 'dott'; did you mean 'dot'?"),
        (["digits", "--trainers", "sgd,sgd"], "expected --trainers to name each once, got 'sgd,sgd'"),
        (["digits", "--trainers", ","], "expected --trainers to name each once, got ','"),
        (["digits", "--trials", "0"], "expected --trials of at least 1, got 0"),
        (["digits", "--jobs", "0"], "expected --jobs of at least 1, got 0"),
        (["digits", "--final-seeds", "-1"], "expected --final-seeds of at least 0, got -1"),
        (["digits", "--space", "lrr=1..2"], "--space lrr: unknown key; did you mean lr?"),
        (["digits", "--space", "delta=0..0.1"], "--space delta=0..0.1: at 0.1 with dot: delta: expected"),
        (["digits", "--trainers", "sgd", "--space", "delta=0..0.09"], "delta means nothing to sgd with method kd"),
        (["digits", "data=arrays:nowhere.npz"], "there is no nowhere.npz"),
        (["digits", "teacher_weights=nowhere.pt"], "no weights at nowhere.pt"),
    ],
)
def test_wrong_input_is_one_message(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = dotkd("tune", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, out, err = dotkd("tune", "digits")
    assert (code, out) == (1, "")
    assert "tuning needs the package optuna: pip install 'dotkd[tune]'" in err


def test_a_folder_of_something_else_is_left_alone(mine: str):
    Path("other").mkdir()
    Path("other", "kept").write_text("mine")
    code, out, err = dotkd("tune", mine, "--out", "other")
    assert (code, out) == (2, "")
    assert "other is not empty and holds no tuning; choose another folder with --out" in err
    assert [path.name for path in Path("other").iterdir()] == ["kept"]


def test_a_pruned_trial(mine: str):
    # Nearly no learning rate at all, where a trial draws it, is far behind the others after the second epoch.
    words = ("--trainers", "dot", "--trials", 9, "--space", "lr=0.05,1e-9", "--final-seeds", 0)
    code, out, err = dotkd("tune", mine, "epochs=4", *words, "--out", "t")
    assert code == 0, err
    found = tuned("t")["trainers"]["dot"]
    pruned = [trial for trial in found["trials"] if trial["state"] == "pruned"]
    assert pruned
    assert {trial["state"] for trial in found["trials"][:UNPRUNED_TRIALS]} == {"complete"}
    for trial in pruned:
        folder = Path("t/dot", f"trial-{trial['number']:04d}")
        assert 2 <= trial["epochs"] < 4
        assert (folder / "metrics.jsonl").read_text().count('"eval"') == trial["epochs"]
        assert not (folder / "summary.json").exists()
        assert f"dot trial {trial['number']}: pruned" in err
    assert found["best"]["params"]["lr"] == 0.05
    counts = [len(found["trials"]) - len(pruned), len(pruned), 0, sum(trial["epochs"] for trial in found["trials"])]
    (row,) = [line for line in out.splitlines() if line.startswith("| dot ")]
    assert [int(cell) for cell in row.strip("| ").split("|")[-4:]] == counts
    # Given again, it is not tried again.
    code, _, err = dotkd("tune", mine, "epochs=4", *words, "--out", "t")
    assert (code, err) == (0, "9 of 9 trials in t have ended already\n")


def test_a_diverged_trial(mine: str):
    words = ("max_skips=2", "log_every=1", "--trainers", "sgd", "--space", "lr=0.05,1e30", "--final-seeds", 0)
    code, _, err = dotkd("tune", mine, *words, "--trials", 4, "--out", "t")
    assert code == 0, err
    found = tuned("t")["trainers"]["sgd"]
    diverged = [trial for trial in found["trials"] if trial["state"] == "diverged"]
    assert [trial["params"]["lr"] for trial in diverged] == [1e30] * len(diverged) != []
    assert {trial["val_accuracy"] for trial in diverged} == {None}
    assert len(found["trials"]) == 4
    assert found["best"]["params"]["lr"] == 0.05
    code, _, err = dotkd("tune", mine, *words, "student=tiny_runs:faulty", "--trials", 1, "--out", "bad")
    assert code == 3
    assert "every trial of sgd diverged" in err
    assert tuned("bad")["trainers"]["sgd"]["best"] is None
    assert not list(Path("bad").glob("best-*"))


def test_a_teacher_that_diverged_teaches_nothing(mine: str):
    words = ("teacher=tiny_runs:faulty", "teacher_options={}", "teacher_weights=null", "max_skips=2", "log_every=1")
    for _ in range(2):  # also where it is found diverged already
        code, _, err = dotkd("tune", mine, *words, "--trials", 1, "--out", "t")
        assert code == 3
        assert "the teacher diverged (t/teacher)" in err


def test_a_failed_trial_is_told_and_tried_again(mine: str, monkeypatch: pytest.MonkeyPatch):
    def one_fails(jobs: Sequence[Job], work: Work, **tell: Tell) -> dict[str, Ending]:
        return run_here(jobs, lambda job: "failed" if job.name == "dot trial 1" else work(job), **tell)

    words = ("tune", mine, "--trials", 2, "--final-seeds", 1)
    assert dotkd(*words, "--out", "whole")[0] == 0
    monkeypatch.setattr(tune_conduct, "run_jobs", one_fails)
    code, _, err = dotkd(*words, "--out", "t")
    assert code == 1
    assert "1 of the runs did not end (the same command tries them again):\n  dot trial 1: failed" in err
    assert [trial["state"] for trial in tuned("t")["trainers"]["dot"]["trials"]] == ["complete", "failed"]
    assert "final" not in tuned("t")  # the budgets are not equal yet
    monkeypatch.setattr(tune_conduct, "run_jobs", run_here)
    assert dotkd(*words, "--out", "t")[0] == 0
    assert tuned("t")["trainers"] == tuned("whole")["trainers"]
