"""`dotkd analyse`: what it measures of finished runs, and what it says of runs that cannot be measured.

The contract:
- the student in the middle of the landscape has the losses and the accuracy that its run reported;
- the curvature is that of the losses it names, of the student as it was trained;
- likeness to the teacher is of the points of both, 1 for a student that is its teacher;
- what is there by the same settings and weights is not measured again, anything else is;
- runs without a teacher, taught by themselves or by features, and diverged ones, are told and counted;
- cells are compared in pairs of equal seed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import tiny_runs
from dotkd import Config, Trainer, analysis, losses
from dotkd.analysis import Settings, analyse
from dotkd.cli import app
from dotkd.evidence.curvature import curvature
from dotkd.evidence.flatness import Analysed, make_rows
from dotkd.evidence.runs import read_run
from run_folders import make_run

ALL = Settings(samples=1000, points=3)


@pytest.fixture(scope="module")
def config(home: Path, teacher: dict[str, object]) -> Config:
    small = {"width": 4, "depth": 1}  # few enough parameters for the whole Hessian
    return tiny_runs.tiny(tiny_runs.vectors(home), trainer="dot", epochs=1, student_options=small, **teacher)


@pytest.fixture(scope="module")
def run(home: Path, config: Config) -> Path:
    Trainer(config, home / "run").fit()
    return home / "run"


def copied(run: Path, to: Path) -> Path:
    return Path(shutil.copytree(run, to, dirs_exist_ok=True))


def dotkd(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_the_middle_of_the_landscape_is_the_student(run, tmp_path):
    found = analyse(copied(run, tmp_path / "run"), ("line", "plane"), ALL)
    reported = json.loads((run / "summary.json").read_text())["losses"]["train"]
    line, plane = found["landscape"]["line"], found["landscape"]["plane"]
    assert line["alpha"] == plane["alpha"] == plane["beta"] == [-1.0, 0.0, 1.0]
    assert (found["split"], found["samples"]) == ("train", tiny_runs.TRAIN)
    for values in (line, {name: plane[name][1] for name in ("task_loss", "distill_loss", "accuracy")}):
        assert values["task_loss"][1] == pytest.approx(reported["task"], rel=1e-5)
        assert values["distill_loss"][1] == pytest.approx(reported["distill"], rel=1e-5)
        assert len(set(values["task_loss"])) == 3
    assert [row[1] for row in plane["task_loss"]] == pytest.approx(line["task_loss"], rel=1e-6)


def test_the_curvature_is_of_the_losses_it_names(run, config, tmp_path):
    found = analyse(copied(run, tmp_path / "run"), ("hessian", "objective"), ALL)
    subject = analysis.load(run, samples=ALL.samples, seed=ALL.seed)
    assert torch.equal(
        subject.student.state_dict()["head.weight"], load_file(run / "student.safetensors")["head.weight"]
    )

    def task(logits, targets, taught):
        return F.cross_entropy(logits, targets)

    def objective(logits, targets, taught):
        return 0.1 * task(logits, targets, taught) + 0.9 * losses.kd(logits, taught, temperature=4.0)

    for name, loss in (("hessian", task), ("hessian_objective", objective)):
        wanted = curvature(subject.student, subject.samples, loss)
        assert found[name]["eigenvalues"] == pytest.approx(wanted.eigenvalues, rel=1e-4)
        assert found[name]["trace"] == pytest.approx(wanted.trace._asdict(), rel=1e-4)
        assert len(found[name]["eigenvalues_normalised"]) == 5
    assert found["hessian"]["eigenvalues"] != pytest.approx(found["hessian_objective"]["eigenvalues"], rel=0.1)


def test_a_student_that_is_its_teacher(home, teacher, tmp_path):
    config = tiny_runs.tiny(tiny_runs.vectors(home), trainer="sgd", epochs=1, **teacher)
    config = config.replace(student_options=teacher["teacher_options"], student_features=("head",))
    folder = tmp_path / "same"
    Trainer(config, folder).fit()
    shutil.copy(Path(str(teacher["teacher_weights"])) / "student.safetensors", folder / "student.safetensors")
    found = analyse(folder, ("cka", "line"), ALL)
    cka = found["cka"]
    assert cka["student_points"] == ["head", "logits"]
    assert cka["teacher_points"][-1] == "logits"
    assert cka["values"][-1][-1] == pytest.approx(1.0)
    assert len(cka["values"]) == 2
    assert found["landscape"]["line"]["distill_loss"][1] == pytest.approx(0.0, abs=1e-9)


def test_what_is_there_is_kept_and_anything_else_measured_again(run, tmp_path, monkeypatch):
    folder = copied(run, tmp_path / "run")
    first = analyse(folder, ("line", "cka"), ALL)
    loads = []
    load = analysis.load
    monkeypatch.setattr(analysis, "load", lambda *given, **named: loads.append(given) or load(*given, **named))
    assert analyse(folder, ("cka", "line"), ALL) == first
    assert not loads
    more = analyse(folder, ("plane",), ALL)
    assert len(loads) == 1
    assert more["landscape"]["line"] == first["landscape"]["line"]
    assert more["cka"] == first["cka"]
    finer = analyse(folder, ("line",), ALL._replace(points=5))
    assert (len(finer["landscape"]["line"]["alpha"]), len(finer["landscape"]["plane"]["alpha"])) == (5, 3)
    other = analyse(folder, ("line",), ALL._replace(samples=50))
    assert (other["samples"], other["landscape"]["plane"], "cka" in other) == (50, None, False)
    weights = load_file(folder / "student.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, folder / "student.safetensors")
    assert analyse(folder, ("line",), ALL._replace(samples=50))["landscape"] != other["landscape"]
    assert len(loads) == 4
    (folder / "analysis.json").write_text("[")
    with pytest.raises(ValueError, match=r"analysis\.json cannot be read as an analysis"):
        analyse(folder, ("line",), ALL)


@pytest.mark.parametrize(
    ("changes", "absent", "has_distill", "has_cka"),
    [
        ({"method": "none", "trainer": "sgd"}, {}, True, True),
        (
            {"method": "none", "trainer": "sgd", "teacher_weights": None},
            dict.fromkeys(("cka", "distill_loss"), "method none, and no teacher_weights to measure against"),
            False,
            False,
        ),
        (
            {"method": "fitnet", "teacher_features": ["head"], "student_features": ["head"]},
            {"distill_loss": "that of method fitnet is no function of logits alone"},
            False,
            True,
        ),
        ({"teacher": "self", "ema": 0.5, "teacher_options": {}, "teacher_weights": None}, {}, True, True),
        ({"teacher_weights": None, "teacher_epochs": 1}, {}, True, True),
    ],
)
def test_kinds_of_runs(config, tmp_path, changes, absent, has_distill, has_cka):
    Trainer(config.replace(**changes), tmp_path / "run").fit()
    found = analyse(tmp_path / "run", ("line", "cka"), ALL)
    assert found["absent"] == absent
    assert (found["landscape"]["line"]["distill_loss"] is not None, found["cka"] is not None) == (has_distill, has_cka)
    reported = json.loads((tmp_path / "run" / "summary.json").read_text())["losses"]["train"]
    if has_distill:
        assert found["landscape"]["line"]["distill_loss"][1] == pytest.approx(reported["distill"], rel=1e-4)
    if absent:
        assert analyse(tmp_path / "run", ("line", "cka"), ALL) == found  # done, though there was nothing to do
    if changes.get("method") == "fitnet":
        with pytest.raises(ValueError, match="there is no objective to take the curvature of: that of method fitnet"):
            analyse(tmp_path / "run", ("objective",), ALL)


def test_what_is_missing_is_told(run, config, tmp_path):
    folder = copied(run, tmp_path / "run")
    (folder / "config.yaml").write_text(config.replace(teacher_weights=str(tmp_path / "gone")).to_yaml())
    with pytest.raises(FileNotFoundError, match=r"no weights at .*gone"):
        analyse(folder, ("line",), ALL)
    (folder / "config.yaml").write_text(config.replace(teacher_weights=None).to_yaml())
    with pytest.raises(FileNotFoundError, match=r"was taught by .*teacher, which has no student\.safetensors"):
        analyse(folder, ("line",), ALL)
    (folder / "student.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no finished run: it has no student\.safetensors"):
        analyse(folder, ("line",), ALL)
    for settings, text in ((ALL._replace(samples=3), "at least 4 samples, got 3"), (Settings(points=2), "3 points")):
        with pytest.raises(ValueError, match=text):
            analyse(run, ("line",), settings)


def test_the_command(run, tmp_path):
    for seed in (0, 1):
        copied(run, tmp_path / "kd+dot" / f"seed-{seed}")
    make_run(tmp_path / "kd" / "seed-0", status="diverged")
    make_run(tmp_path / "teacher")  # what runs were taught by is none of them
    code, out, err = dotkd("analyse", tmp_path, "--what", "line,cka", "--points", 3)
    assert code == 0
    assert "1/3" in err
    assert "kd/seed-0: diverged, nothing to measure" in err
    cells = [[word.strip() for word in row.split("|")[1:-1]] for row in out.splitlines() if row.startswith("| kd")]
    assert [row[:2] for row in cells[:2]] == [["kd", "0, 1 diverged"], ["kd+dot", "2"]]
    assert "teacher" not in err
    assert (tmp_path / "kd+dot" / "seed-1" / "analysis.json").is_file()
    code, _, err = dotkd("analyse", tmp_path / "kd+dot", "--what", "lines")
    assert code == 2
    assert "expected --what to be one of line, hessian, cka, plane, objective, got 'lines'; did you mean 'line'?" in err
    code, _, err = dotkd("analyse", tmp_path / "nothing")
    assert code == 2
    assert "holds no finished run: there is no summary.json in it or below" in err


def test_rows_compare_cells_by_pairs_of_seeds(tmp_path):
    def analysed(cell: str, seed: int, eigenvalue: float | None, trainer: str, method: str = "kd") -> Analysed:
        status = "diverged" if eigenvalue is None else "done"
        folder = make_run(tmp_path / cell / f"seed-{seed}", method=method, trainer=trainer, seed=seed, status=status)
        both = {"eigenvalues": [eigenvalue], "trace": {"mean": 10.0 + seed}}
        line = {"alpha": [-1, -0.5, 0, 0.5, 1], "task_loss": [9, 3, 1, 5, 9]}
        normalised = {"eigenvalues_normalised": [1.0], "trace_normalised": {"mean": 1.0}}
        hessian = {**both, **normalised}
        cka = {"values": [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]]}
        return Analysed(read_run(folder), {"landscape": {"line": line}, "hessian": hessian, "cka": cka})

    plain = [analysed("kd", seed, value, "sgd") for seed, value in enumerate((5.0, 7.0, 9.0))]
    dot = [analysed("kd+dot", seed, value, "dot") for seed, value in enumerate((4.0, 5.0, None))]
    ce = [analysed("ce", 0, 20.0, "sgd", "none")]
    rows = {row.cell: row for row in make_rows([*ce, *plain, *dot])}
    assert {name: row.against for name, row in rows.items()} == {"ce": "kd", "kd": None, "kd+dot": "kd"}
    mean, change = rows["kd+dot"].figures["eigenvalue"]
    assert (mean.mean, mean.n, mean.diverged) == (4.5, 2, 1)
    assert (change.mean, change.n) == (-1.5, 2)
    assert rows["ce"].figures["eigenvalue"][1].mean == 15.0
    assert rows["kd"].figures["eigenvalue"][1].mean is None
    assert rows["kd"].figures["rise"][0].mean == 3.0  # (3 + 5) / 2 - 1
    assert rows["kd"].figures["cka"][0].mean == 0.5  # the last before the logits
