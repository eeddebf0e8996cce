"""The contract of a run's folder and its checkpoints.

- A folder with a run, or with any part of one, is refused and left as it is; one without a run cannot be resumed.
- A run cannot go on with other data than before, nor with a checkpoint of another student. A finished run is not
  trained again: its summary is returned.
- A checkpoint holds the student and what an exact resumption needs, and not the teacher.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file

from dotkd import Trainer
from dotkd.checkpoint import load_latest
from dotkd.trainer import RunExists
from tiny_runs import before_each_step, die_in, given_teacher, image_run, records, stopped_at, tiny, vector_run, vectors

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing holds no run: it has no config\.yaml"):
        Trainer.resume(tmp_path / "nothing")


def test_a_folder_with_a_run_is_refused_and_left_as_it_is(home, tmp_path):
    out = tmp_path / "run"
    stopped_at(6, vector_run(home), out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(RunExists, match=f"{out} already holds a run: `dotkd resume` continues it"):
        Trainer(vector_run(home), out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("kept", ["summary.json", "metrics.jsonl", "checkpoints", "student.safetensors", "teacher"])
def test_a_folder_with_any_part_of_a_run_is_refused(home, tmp_path, kept):
    out = tmp_path / "run"
    out.mkdir()
    (out / kept).write_text("{}") if "." in kept else (out / kept).mkdir()
    with pytest.raises(RunExists, match="already holds a run"):
        Trainer(vector_run(home), out)


def test_a_finished_run_is_not_trained_again(home, tmp_path):
    out = tmp_path / "run"
    first = Trainer(vector_run(home).replace(epochs=1), out).fit()
    before = (out / "metrics.jsonl").read_bytes()
    with before_each_step(die_in(1)):
        again = Trainer.resume(out).fit()
    assert again == json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(first))
    assert (out / "metrics.jsonl").read_bytes() == before


def test_other_data_than_before_is_refused(tmp_path):
    source = vectors(tmp_path)
    config = tiny(source, student="tiny_runs:smooth", student_options={}, **given_teacher(tmp_path))
    stopped_at(2, config, tmp_path / "run")
    arrays = dict(np.load(tmp_path / "vectors.npz"))
    arrays["x_train"][0, 0] += 1
    np.savez(tmp_path / "vectors.npz", **arrays)
    with pytest.raises(ValueError, match=r"is not the data that .* was trained on: it has changed since"):
        Trainer.resume(tmp_path / "run").fit()


def test_a_checkpoint_of_another_student_is_refused_with_the_keys(home, tmp_path):
    config = tiny(vectors(home), trainer="dot", checkpoint_every=1, student_options={"width": 8}, **given_teacher(home))
    Trainer(config, tmp_path / "run").fit()
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "config.yaml").write_text(config.replace(student_options={"width": 9}).to_yaml())
    with pytest.raises(ValueError, match=r"(?s)step-00000008 does not fit the student of .*head\.weight.*\[3, 9\]"):
        Trainer.resume(tmp_path / "run").fit()


def test_the_teacher_is_not_in_a_checkpoint(home, tmp_path):
    teacher = given_teacher(tmp_path, width=512, depth=3)
    Trainer(vector_run(home).replace(epochs=1, **teacher), tmp_path / "run").fit()
    size = sum(path.stat().st_size for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file())
    assert size < (tmp_path / "teacher.safetensors").stat().st_size / 10
    found = load_latest(tmp_path / "run" / "checkpoints")
    assert found.student.keys() == load_file(tmp_path / "run" / "student.safetensors").keys()


def test_the_loss_scale_is_in_the_checkpoint_and_comes_back(home, tmp_path):
    config = image_run(home).replace(teacher_epochs=1, epochs=1)
    # Two passes a step: 8 belong to the teacher.
    stopped_at(12, config, tmp_path / "run")
    saved = load_latest(tmp_path / "run" / "checkpoints").state["scaler"]
    assert saved["scale"] > 0
    assert saved["_growth_tracker"] == 2  # two steps of the student since the scale was set


def test_the_position_in_metrics_is_that_of_the_file(home, tmp_path):
    stopped_at(6, vector_run(home), tmp_path / "run")
    state = load_latest(tmp_path / "run" / "checkpoints").state
    assert state["metrics"] == (tmp_path / "run" / "metrics.jsonl").stat().st_size
    assert [record["step"] for record in records(tmp_path / "run")] == [2, 4, 4, 6]
