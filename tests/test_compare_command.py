"""`dotkd compare` of several settings, from the command to the files.

The contract:
- one teacher for all settings, no run twice, and what is there already is skipped when values are added;
- tables, JSON, CSV, LaTeX and pictures are written, those of a setting in its folder;
- a run that diverges, or a teacher, is told and counted, and takes nothing else down.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import tiny_runs
from dotkd.cli import conduct
from test_cli import TINY, dotkd, run_here


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_waiting_for_the_disk: None) -> tuple[str, ...]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(conduct, "run_jobs", run_here)
    return ("compare", "digits", f"data={tiny_runs.vectors(tmp_path)}", *TINY, "--trainers", "sgd,dot", "--out", "c")


def test_an_ablation_from_the_first_run_to_the_last(words: tuple[str, ...], tmp_path: Path):
    code, out, err = dotkd(*words, "--vary", "delta=0.05", "--seeds", "2")
    assert code == 0, err
    folder = tmp_path / "c"
    first = ["teacher", *(f"digits-delta=0.05/{cell}/seed-{seed}" for cell in ("kd", "kd+dot") for seed in (0, 1))]
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("summary.json")}
    assert {path.parent.relative_to(folder).as_posix() for path in kept} == set(first)

    code, out, err = dotkd(*words, "--vary", "delta=0.05,0.075", "--seeds", "2")
    assert code == 0, err
    assert "5 of 7 runs in c are finished already" in err
    assert "2/2 runs  delta=0.075: kd+dot seed 1: test accuracy" in err
    ended = {path.parent.relative_to(folder).as_posix() for path in folder.rglob("summary.json")}
    assert ended == {*first, *(f"digits-delta=0.075/kd+dot/seed-{seed}" for seed in (0, 1))}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    found = json.loads((folder / "comparison.json").read_text())
    assert [(setting["name"], setting["directory"], setting["varied"]) for setting in found["settings"]] == [
        (f"delta={delta}", f"digits-delta={delta}", {"delta": delta}) for delta in (0.05, 0.075)
    ]
    assert found["family"]["tests"] <= 2
    kd = [setting["cells"][0]["val_selected"] for setting in found["settings"]]
    assert kd[0] == kd[1]
    # A run that is shared was trained with the configuration of the setting that holds it.
    assert {run["directory"].partition("/")[0] for run in found["runs"] if run["cell"] == "kd"} == {"digits-delta=0.05"}
    with (folder / "comparison.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["delta"], line["cell"], line["seed"]) for line in lines[:4]] == [
        ("0.05", "kd", "0"),
        ("0.05", "kd", "1"),
        ("0.05", "kd+dot", "0"),
        ("0.05", "kd+dot", "1"),
    ]
    assert len(lines) == 8
    assert (folder / "comparison.tex").read_text().count("kd+dot") == 2
    pictures = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert pictures[0] == "ablation-delta.png"
    assert pictures[1:] == [
        f"digits-delta={delta}/{name}.png" for delta in (0.05, 0.075) for name in ("accuracy", "trade-off")
    ]
    assert "| delta=0.075 " in out
    assert out.count("kd+dot and kd was shown") + out.count("shown to be") + out.count("Nothing is shown") == 2
    assert dotkd("resume", "c")[0] == 2


def test_what_diverges_is_told_and_the_rest_goes_on(words: tuple[str, ...], tmp_path: Path):
    options = "student_options={}", "max_skips=2", "log_every=1"
    vary = ("--vary", "student=mlp,tiny_runs:faulty", "--seeds", "2")
    code, out, err = dotkd(*words, *options, *vary)
    assert code == 0, err
    found = json.loads((tmp_path / "c" / "comparison.json").read_text())
    well, badly = found["settings"]
    assert [cell["val_selected"]["diverged"] for cell in well["cells"]] == [0, 0]
    assert [(cell["val_selected"]["n"], cell["val_selected"]["diverged"]) for cell in badly["cells"]] == [(0, 2)] * 2
    assert [run["status"] for run in found["runs"]] == ["done"] * 4 + ["diverged"] * 4
    assert "2 of kd (student=tiny_runs:faulty), 2 of kd+dot (student=tiny_runs:faulty)" in out
    assert "0 (2 diverged)" in (tmp_path / "c" / "comparison.tex").read_text()


def test_one_teacher_that_diverges_leaves_the_others(words: tuple[str, ...], tmp_path: Path):
    options = "teacher_options={}", "max_skips=2", "log_every=1"
    for _ in range(2):  # also where it is found diverged already
        code, out, err = dotkd(*words, *options, "--vary", "teacher=mlp,tiny_runs:faulty", "--seeds", "1")
        assert code == 3
        assert "the teacher diverged (c" in err
        assert "75.00" in out or "± -" in out
    found = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert [cell["val_selected"]["n"] for setting in found["settings"] for cell in setting["cells"]] == [1, 1, 0, 0]
