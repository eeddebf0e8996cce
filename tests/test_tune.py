"""`dotkd tune`, from the command to its files.

The contract:
- each trainer gets the same number of trials, all of them run folders; trial 0 is the configuration as given, so that
  the best is never worse on the validation split; tune.json and best-TRAINER.yaml hold what was found, the latter as a
  configuration that gives the chosen trial's bits again;
- nothing is chosen on the test split: other labels there change no trial and no choice;
- a tuning that was stopped goes on, by the same command, to the same trials; another one in its folder is refused;
- the final test has seeds that no trial had, and its differences are those of the paired statistics;
- a diverged trial costs its budget and is never the best; a failed one is tried again.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest

import tiny_runs
from dotkd.cli import tune_conduct
from dotkd.config import Config
from dotkd.evidence.jobs import run_jobs
from tune_command import dotkd, run_here, tuned, write_mine


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_waiting_for_the_disk: None) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune_conduct, "run_jobs", run_here)
    return write_mine()


def test_a_tuning_from_the_first_trial_to_the_final_test(mine: str, tmp_path: Path):
    words = ("tune", mine, "--trials", 2, "--trainers", "sgd,dot", "--final-seeds", 2, "--out", "t")
    code, out, err = dotkd(*words)
    assert code == 0, err
    table = tuned("t")
    assert table["recipe"] == "mine"
    protocol = table["protocol"]
    assert (protocol["trials"], protocol["epochs"], protocol["epochs_budget"], protocol["split"]) == (2, 2, 4, "val")
    assert protocol["split_samples"] == tiny_runs.VAL
    assert protocol["space"]["dot"] == {**protocol["space"]["sgd"], "delta": "0..0.095"}
    for line in protocol["text"]:
        assert f"- {line}\n" in out
    assert "2 trials of at most 2 epochs for each trainer, 4 epochs each" in out
    assert list(table["trainers"]) == ["sgd", "dot"]
    for name, found in table["trainers"].items():
        trials = found["trials"]
        assert [trial["number"] for trial in trials] == [0, 1]
        assert sum(trial["epochs"] for trial in trials) == 4
        assert trials[0]["params"] == {
            "lr": 0.05,
            "distill_weight": 0.9,
            "temperature": 4.0,
            **({} if name == "sgd" else {"delta": 0.075}),
        }
        assert found["best"]["val_accuracy"] == max(trial["val_accuracy"] for trial in trials)
        for trial in trials:
            folder = Path("t", name, f"trial-{trial['number']:04d}")
            summary = json.loads((folder / "summary.json").read_text())
            assert summary["val_accuracy"]["last"] == trial["val_accuracy"]
            config = Config.from_sources(folder / "config.yaml")
            assert (config.trainer, config.seed, config.task_weight) == (name, 0, None)
            assert {key: getattr(config, key) for key in trial["params"]} == trial["params"]
        # The file of the best is a configuration like any other, and gives that trial again.
        number = next(t["number"] for t in trials if t["val_accuracy"] == found["best"]["val_accuracy"])
        best = Config.from_sources(f"t/best-{name}.yaml")
        assert best == Config.from_sources(Path("t", name, f"trial-{number:04d}", "config.yaml"))
    assert "1/4 runs  sgd trial 0: validation accuracy" in err
    ahead = max(table["trainers"], key=lambda name: table["trainers"][name]["best"]["val_accuracy"])
    assert f"next: dotkd train t/best-{ahead}.yaml --out runs/tuned" in out
    assert Path("t", "report.html").is_file()

    final = table["final"]
    assert (final["seeds"], final["split"], final["against"]) == ([1, 2], "test", "sgd")
    last = {name: [] for name in table["trainers"]}
    for run in final["runs"]:
        folder = Path("t", "final", run["trainer"], f"seed-{run['seed']}")
        summary = json.loads((folder / "summary.json").read_text())
        assert run["test_accuracy_last"] == summary["test_accuracy"]["last"]
        assert summary["config"] == {
            **Config.from_sources(f"t/best-{run['trainer']}.yaml").model_dump(mode="json"),
            "seed": run["seed"],
        }
        last[run["trainer"]].append(run["test_accuracy_last"])
    assert final["trainers"]["sgd"]["gain"] is None
    row, difference = final["trainers"]["dot"], np.subtract(last["dot"], last["sgd"])
    assert row["last"]["mean"] == pytest.approx(np.mean(last["dot"]))
    assert row["gain"]["mean"] == pytest.approx(difference.mean())
    assert row["gain"]["n"] == 2

    # Again: nothing is run, all is told. More seeds: only those are run.
    kept = {path: path.stat().st_mtime_ns for path in Path("t").rglob("summary.json")}
    assert len(kept) == 4 + 4
    code, out, err = dotkd(*words, "--final-seeds", 3)
    assert code == 0, err
    assert "4 of 4 trials in t have ended already" in err
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(Path("t").rglob("summary.json"))) == 4 + 6
    again = tuned("t")
    assert again["trainers"] == table["trainers"]
    assert again["final"]["seeds"] == [1, 2, 3]

    code, out, err = dotkd("tune", mine, "lr=0.1", "--trials", 4, "--space", "temperature=1,4", "--out", "t")
    assert (code, out) == (2, "")
    assert err.startswith(
        "dotkd: t holds another tuning; choose another --out, or take its settings:\n  trials: 2 there, 4 now\n"
    )
    assert "\n  lr: 0.05 there, 0.1 now" in err
    assert "\n  space of sgd: 'lr=0.001..1:log, distill_weight=0.09..9:log, temperature=1..10:log' there, " in err
    assert dotkd("resume", "t")[2].startswith("dotkd: t holds a tuning: give its `dotkd tune` again")


def test_the_test_split_has_no_part_in_the_choice(mine: str, tmp_path: Path):
    arrays = dict(np.load("vectors.npz"))
    arrays["y_test"] = np.random.RandomState(0).permutation(arrays["y_test"])
    arrays["x_test"] = arrays["x_test"] + 100.0
    np.savez("garbage.npz", **arrays)
    words = ("--trials", 3, "--final-seeds", 0)
    assert dotkd("tune", mine, *words, "--out", "clean")[0] == 0
    code, out, _ = dotkd("tune", mine, "data=arrays:garbage.npz", *words, "--out", "garbage")
    assert code == 0
    clean, garbage = tuned("clean"), tuned("garbage")
    assert clean["trainers"] == garbage["trainers"]
    assert "final" not in clean
    assert out.endswith(
        "next: dotkd tune mine.yaml data=arrays:garbage.npz --trainers sgd,dot --trials 3 --out garbage "
        "--final-seeds 8\n"
    )
    told = [
        json.loads(Path(name, "dot/trial-0001/summary.json").read_text())["test_accuracy"]["last"]
        for name in ("clean", "garbage")
    ]
    assert told[0] != told[1]  # the labels are others indeed


def test_a_tuning_that_was_stopped_goes_on_to_the_same_trials(mine: str, tmp_path: Path):
    words = ("tune", mine, "--trials", 2, "--final-seeds", 1)
    assert dotkd(*words, "--out", "whole")[0] == 0
    trial = 2 * tiny_runs.STEPS
    # In its third trial's second epoch, in the next one's second step, and in the final test.
    for stop, ended in ((2 * trial + 6, "2 of 4"), (2 + 2, "3 of 4"), (6 + 3, "4 of 4")):
        with tiny_runs.before_each_step(tiny_runs.signal_in(stop, signal.SIGTERM)):
            code, _, err = dotkd(*words, "--out", "stopped")
        assert code == 75, err
        assert f"interrupted: {ended} trials have ended" in err
        assert not Path("stopped", "tune.json").exists()
    assert dotkd(*words, "--out", "stopped")[0] == 0
    whole, stopped = tuned("whole"), tuned("stopped")
    assert stopped["trainers"] == whole["trainers"]
    weights = [
        *Path("whole").glob("*/trial-*/student.safetensors"),
        *Path("whole").glob("final/*/*/student.safetensors"),
    ]
    assert len(weights) == 4 + 2
    for path in weights:
        assert (Path("stopped") / path.relative_to("whole")).read_bytes() == path.read_bytes()


def test_worker_processes_give_the_same_trials(mine: str, monkeypatch: pytest.MonkeyPatch):
    words = ("tune", mine, "teacher_weights=null", "teacher_epochs=1", "--trials", 2, "--trainers", "dot")
    words += ("--final-seeds", 0, "--jobs", 1)
    assert dotkd(*words, "--out", "here")[0] == 0
    monkeypatch.setattr(tune_conduct, "run_jobs", run_jobs)
    code, _, err = dotkd(*words, "--out", "there")
    assert code == 0, err
    assert tuned("there")["trainers"] == tuned("here")["trainers"]
    for kind in ("teacher", "dot/trial-0001"):
        weights = Path(kind, "student.safetensors")
        assert ("there" / weights).read_bytes() == ("here" / weights).read_bytes()
    assert Config.from_sources("there/best-dot.yaml").teacher_weights == str(Path("there/teacher").resolve())
    assert not Path("there/logs").exists()
