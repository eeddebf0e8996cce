"""The contract of the two keys that save memory in a run.

- `low_memory`: every trainer of the SGD forms ends where it ends without it, to rounding; a stopped run goes on to the
  same bits; a step that is not finite is skipped and counted, and a run of them ends in the same diagnosis.
- `activation_checkpointing`: any method ends with the same bits as without it, features and second views included, in
  bf16 too, together with `low_memory` and micro-batches; the teacher that is trained first may use it as well.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from dotkd import Trainer, models
from dotkd.trainer import Diverged
from tiny_runs import CLASSES, everything, images, run_with_stops, tiny, vectors

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A run on small pictures with a given teacher of the family of residual networks."""
    home = tmp_path_factory.mktemp("pictures")
    torch.manual_seed(3)
    save_file(
        models.build("resnet8", num_classes=CLASSES, input_shape=(3, 8, 8)).state_dict(), home / "teacher.safetensors"
    )
    teacher = {"teacher": "resnet8", "teacher_weights": str(home / "teacher.safetensors")}
    student = {"student": "resnet2d", "student_options": {"width": 4}}
    return tiny(images(home), **teacher, **student, batch_size=32, epochs=2, lr=0.005)


def weights(out):
    return load_file(out / "student.safetensors")


@pytest.mark.parametrize("trainer", ["dot", "sgd", "dot-normalized", "sgd-matched", "deepkd"])
def test_low_memory_ends_where_the_ordinary_run_ends(home, teacher, tmp_path, trainer):
    config = tiny(vectors(home), student="tiny_runs:double", student_options={}, lr=0.01, ema=0.9, epochs=3, **teacher)
    config = config.replace(trainer=trainer, method="deepkd" if trainer == "deepkd" else "kd", accumulate=2)
    summaries = [Trainer(config.replace(low_memory=low), tmp_path / str(low)).fit() for low in (False, True)]
    plain, low = weights(tmp_path / "False"), weights(tmp_path / "True")
    for name, value in plain.items():
        # The losses are in float32, and what rounds otherwise there comes back through the weights.
        torch.testing.assert_close(low[name], value, rtol=0, atol=1e-6)
    assert summaries[1]["losses"]["test"] == pytest.approx(summaries[0]["losses"]["test"], abs=1e-5)
    assert summaries[1]["config"]["low_memory"]


def test_a_stopped_run_in_low_memory_goes_on_to_the_same_bits(home, teacher, tmp_path):
    student = {"student": "tiny_runs:dropout", "student_options": {}}
    config = tiny(vectors(home), trainer="dot", low_memory=True, epochs=3, **student, **teacher)
    Trainer(config, tmp_path / "whole").fit()
    run_with_stops(config, tmp_path / "stopped", 3, 4)
    assert everything(tmp_path / "stopped") == everything(tmp_path / "whole")


@pytest.mark.parametrize(("first", "last"), [(2, 2), (3, 4)])
def test_low_memory_skips_what_the_ordinary_run_skips(home, teacher, tmp_path, first, last):
    options = {"first": first, "last": last}
    config = tiny(vectors(home), trainer="dot", student="tiny_runs:faulty", student_options=options, **teacher)
    for low in (False, True):
        summary = Trainer(config.replace(low_memory=low), tmp_path / str(low)).fit()
        assert summary["skipped_steps"] == last - first + 1
    plain, low = weights(tmp_path / "False"), weights(tmp_path / "True")
    for name, value in plain.items():
        torch.testing.assert_close(low[name], value, rtol=0, atol=1e-5)


def test_a_run_of_skips_in_low_memory_ends_with_a_diagnosis(home, teacher, tmp_path):
    options = {"first": 2}
    config = tiny(vectors(home), trainer="dot", student="tiny_runs:faulty", student_options=options, **teacher)
    with pytest.raises(Diverged, match=r"steps in a row skipped since step 2: the loss of stream 'task' is not finite"):
        Trainer(config.replace(low_memory=True, max_skips=2), tmp_path / "run").fit()


METHODS = ["kd", "fitnet", "at", "ofd", "crd", "reviewkd", "srrl", "corsd", "mlkd"]


@pytest.mark.parametrize("method", METHODS)
def test_activation_checkpointing_changes_no_bit(pictures, tmp_path, method):
    """With maps, pre-activations, embeddings, a memory of the samples, a student without a teacher, two views."""
    config = pictures.replace(method=method, trainer="dot", epochs=1, lr=0.001)
    for again in (False, True):
        Trainer(config.replace(activation_checkpointing=again), tmp_path / str(again)).fit()
    assert everything(tmp_path / "True") == everything(tmp_path / "False")


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"low_memory": True, "accumulate": 2, "ema": 0.9}])
def test_activation_checkpointing_goes_with_the_other_keys(pictures, tmp_path, changes):
    config = pictures.replace(method="at", trainer="dot", **changes)
    for again in (False, True):
        Trainer(config.replace(activation_checkpointing=again), tmp_path / str(again)).fit()
    assert everything(tmp_path / "True") == everything(tmp_path / "False")


def test_a_teacher_that_is_trained_first_is_trained_in_the_same_way(pictures, tmp_path):
    config = pictures.replace(teacher_weights=None, teacher_epochs=1, epochs=1)
    for saving in (False, True):
        changes = {"activation_checkpointing": saving, "low_memory": saving}
        Trainer(config.replace(**changes), tmp_path / str(saving)).fit()
    plain, saved = (load_file(tmp_path / str(s) / "teacher" / "student.safetensors") for s in (False, True))
    for name, value in plain.items():
        torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-5)


def test_a_student_without_blocks_is_refused_before_anything_is_written(home, teacher, tmp_path):
    config = tiny(vectors(home), student="tiny_runs:linear", student_options={}, **teacher)
    with pytest.raises(ValueError, match=r"activation_checkpointing: expected a student with an nn\.Sequential"):
        Trainer(config.replace(activation_checkpointing=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()
