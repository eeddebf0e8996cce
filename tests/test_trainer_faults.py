"""The contract of `dotkd.Trainer` where something is wrong.

- What does not fit together is refused with its value when the trainer is made, and nothing is written.
- A step that is not finite is skipped and counted, and changes neither weights nor momenta. `max_skips` of them in a
  row (looked at whenever a record is written) end the run as Diverged, naming the streams and the first parameter; the
  folder says so, and a teacher that diverged is never distilled.
- A teacher that is not finite is refused, naming the samples.
"""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import dotkd
from dotkd import Trainer, models
from dotkd.checkpoint import load_latest
from dotkd.summary import where_not_finite
from dotkd.trainer import Diverged
from tiny_runs import (
    CLASSES,
    FEATURES,
    TRAIN,
    Net,
    given_teacher,
    images,
    plain,
    records,
    tiny,
    vectors,
)

FAULTY = {"student": "tiny_runs:faulty", "schedule": "constant", "log_every": 1}


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def faulty(home, first, last, **changes):
    values = {**FAULTY, "student_options": {"first": first, "last": last}, **given_teacher(home), **changes}
    return tiny(vectors(home), **values)


# --- refused before anything is written


def refused(config, tmp_path, text, kind=ValueError):
    with pytest.raises(kind, match=text):
        Trainer(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_gpu_that_is_not_there_is_refused(home, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text = "device 'cuda:1' was asked for, but torch sees no GPU: use device=cpu or device=auto"
    refused(tiny(vectors(home), device="cuda:1"), tmp_path, text)
    assert Trainer(tiny(vectors(home), device="auto"), tmp_path / "run").device == torch.device("cpu")


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_logits_of_a_wrong_width_are_refused(home, tmp_path, who):
    text = r"expected tiny_runs:too_wide to give logits of shape \(N, 3\) for arrays:.*, got \(2, 5\)"
    refused(tiny(vectors(home), **{who: "tiny_runs:too_wide", f"{who}_options": {}}), tmp_path, text)


def test_a_batch_larger_than_the_training_split_is_refused(home, tmp_path):
    text = f"the train split of .* has {TRAIN} samples, fewer than batch_size {TRAIN + 1}, and drop_last drops them"
    refused(tiny(vectors(home), batch_size=TRAIN + 1), tmp_path, text)
    Trainer(tiny(vectors(home), batch_size=TRAIN), tmp_path / "run")


def test_augmentation_of_what_is_no_picture_is_refused(home, tmp_path):
    text = r"augment 'crop-flip' needs inputs \(C, H, W\), arrays:.* has \(8,\)"
    refused(tiny(vectors(home), augment="crop-flip"), tmp_path, text)


@pytest.mark.parametrize("whose", ["teacher", "student"])
def test_weights_that_are_not_there_or_do_not_fit_are_refused(home, tmp_path, whose):
    given = given_teacher(tmp_path, width=4)
    config = tiny(vectors(home), **given_teacher(home))
    missing = config.replace(**{f"{whose}_weights": str(tmp_path / "teachers.safetensors")})
    refused(missing, tmp_path, r"no weights at .*; did you mean .*teacher\.safetensors\?", FileNotFoundError)
    other = config.replace(**{f"{whose}_weights": given["teacher_weights"]})
    refused(other, tmp_path, r"(?s)do not fit this model \(\d+ entries differ, nothing was loaded\):\n  .*head\.weight")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"schedule": "step", "milestones": (2,), "teacher_epochs": 1}, "the teacher's training: milestones: expected"),
        ({"warmup_epochs": 1.5, "teacher_epochs": 1}, "the teacher's training: warmup_epochs: expected a number < 1"),
    ],
)
def test_a_teachers_training_that_cannot_be_is_refused_at_once(home, tmp_path, changes, text):
    config = tiny(vectors(home), epochs=3, **changes)
    refused(config, tmp_path, text)
    Trainer(config.replace(**given_teacher(home)), tmp_path / "run")


shared_model = Net(FEATURES)


def test_one_model_for_teacher_and_student_is_refused(home, tmp_path):
    given = {"teacher": "test_trainer_faults:the_one", "student": "test_trainer_faults:the_one", "student_options": {}}
    torch.save(shared_model.state_dict(), tmp_path / "w.pt")
    config = tiny(vectors(home), **given, teacher_weights=str(tmp_path / "w.pt"))
    with pytest.raises(ValueError, match=r"teacher and student share 4 parameters \(.*inner\.1\.weight, \.\.\.\)"):
        Trainer(config, tmp_path / "run").fit()


def the_one():
    return shared_model


def test_a_single_sample_with_batch_norm_is_refused(home, tmp_path):
    config = tiny(vectors(home), student="tiny_runs:dropout", student_options={}, batch_size=1, **given_teacher(home))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        Trainer(config, tmp_path / "run").fit()


# --- steps that are not finite


@pytest.mark.parametrize("trainer", ["dot", "sgd", "adamw", "dot-adamw"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_bad_step_is_skipped_and_counted_and_changes_nothing(home, tmp_path, trainer, precision):
    config = faulty(home, 4, 4, trainer=trainer, precision=precision, epochs=2, checkpoint_every=1, lr=0.01)
    kept = {}
    save = dotkd.checkpoint.save

    def keeping(directory, step, *, student, state):
        kept[step] = (plain(dict(student)), plain(state["optimizer"]["state"]))
        return save(directory, step, student=student, state=state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dotkd.checkpoint, "save", keeping)
        summary = Trainer(config, tmp_path / "run").fit()
    assert kept[4] == kept[3]
    assert kept[3] != kept[2]
    assert kept[5] != kept[4]
    assert summary["status"] == "done"
    assert summary["skipped_steps"] == 1
    counts = [record["skipped_steps"] for record in records(tmp_path / "run") if record["kind"] == "train"]
    assert counts == [0, 0, 0, 1, 1, 1, 1, 1]
    losses = [record["task_loss"] for record in records(tmp_path / "run") if record["kind"] == "train"]
    assert [loss is None for loss in losses] == [step == 4 for step in range(1, 9)]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_bad_step_leaves_no_trace_in_the_statistics_of_batch_norm(home, tmp_path, precision):
    # They are moved by the forward pass, before the gradients tell that the step must be skipped.
    changes = {"student": "tiny_runs:faulty_inside", "student_options": {"step": 4}, "precision": precision}
    config = faulty(home, 0, 0, checkpoint_every=1, epochs=2, **changes)
    kept = {}
    save = dotkd.checkpoint.save

    def keeping(directory, step, *, student, state):
        kept[step] = plain(dict(student))
        return save(directory, step, student=student, state=state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dotkd.checkpoint, "save", keeping)
        summary = Trainer(config, tmp_path / "run").fit()
    assert kept[4] == kept[3] != kept[2]
    assert summary["skipped_steps"] == 1
    assert summary["losses"]["test"]["task"] < 2


def test_a_bad_step_does_not_reach_the_average(home, tmp_path):
    config = faulty(home, 3, 3, trainer="dot", ema=0.5, epochs=1)
    Trainer(config, tmp_path / "run").fit()
    average = load_latest(tmp_path / "run" / "checkpoints").state["ema"]
    assert all(bool(value.isfinite().all()) for value in average.values())


def test_skipped_steps_are_counted_over_interruptions(home, tmp_path):
    config = faulty(home, 2, 3, trainer="dot", epochs=2)
    trainer = Trainer(config, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Trainer, "_end_epoch", lambda self, log: self._save(log) or (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
    # The resumed model counts its calls anew, so it skips two more.
    assert Trainer.resume(tmp_path / "run").fit()["skipped_steps"] == 4


@pytest.mark.parametrize("log_every", [1, 4])
def test_too_many_bad_steps_in_a_row_end_the_run_with_a_diagnosis(home, tmp_path, log_every):
    config = faulty(home, 6, 10**9, trainer="dot", epochs=5, max_skips=3, log_every=log_every)
    with pytest.raises(Diverged) as caught:
        Trainer(config, tmp_path / "run").fit()
    text = str(caught.value)
    assert "3 steps in a row skipped since step 6: " in text
    assert "the loss of stream 'task' is not finite" in text
    assert "the gradient of stream 'task' is not finite, first in inner.1.weight" in text
    assert "the gradient of stream 'distill' is not finite, first in inner.1.weight" in text
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["skipped_steps"]) == ("diverged", 8, 3)
    assert summary["test_accuracy"]["last"] is not None  # of the one epoch that ended
    weights = models.build("tiny_runs:faulty", num_classes=CLASSES, input_shape=(FEATURES,))
    models.load_weights(weights, tmp_path / "run")
    assert all(bool(p.isfinite().all()) for p in weights.parameters())


def test_fewer_bad_steps_in_a_row_do_not_end_it(home, tmp_path):
    summary = Trainer(faulty(home, 3, 4, trainer="dot", epochs=2, max_skips=3), tmp_path / "run").fit()
    assert (summary["status"], summary["skipped_steps"]) == ("done", 2)


def test_a_run_that_diverged_before_its_first_epoch_ended_has_no_accuracies(home, tmp_path):
    config = faulty(home, 1, 10**9, trainer="sgd", method="none", teacher_weights=None, max_skips=2)
    with pytest.raises(Diverged, match="stream 'total' is not finite, first in inner"):
        Trainer(config, tmp_path / "run").fit()
    summary = Trainer.resume(tmp_path / "run").fit()
    assert summary["status"] == "diverged"
    assert summary["test_accuracy"] == {"last": None, "val_selected": None, "best_of_test": None}


def test_the_diagnosis_tells_the_streams_apart():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    out = model(torch.ones(4, 3))
    streams = {"task": out.square().mean(), "distill": (out * math.inf).sum()}
    text = where_not_finite(streams, model.named_parameters())
    assert "stream 'task'" not in text
    assert text.startswith("the loss of stream 'distill' is not finite; the gradient of stream 'distill' is not finite")
    assert text.endswith("first in weight")
    assert all(p.grad is None for p in model.parameters())


# --- teachers


def nan_teacher(folder, **options):
    torch.manual_seed(0)
    shape = (options.pop("features"),)
    torch.save(
        models.build("tiny_runs:nan_teacher", num_classes=CLASSES, input_shape=shape).state_dict(), folder / "t.pt"
    )
    return {"teacher": "tiny_runs:nan_teacher", "teacher_options": options, "teacher_weights": str(folder / "t.pt")}


def test_a_teacher_that_is_not_finite_is_refused_with_the_samples(home, tmp_path):
    dataset = dotkd.data.load(vectors(home))
    first = (dataset.train.inputs[:, 0] - dataset.mean[0]) / dataset.std[0]
    values, index = first.sort(descending=True)
    config = tiny(vectors(home), **nan_teacher(tmp_path, features=FEATURES, above=float(values[1:3].mean())))
    text = (
        rf"the teacher's logits are not finite for 2 samples.*: \[{', '.join(map(str, sorted(index[:2].tolist())))}\]"
    )
    with pytest.raises(ValueError, match=text):
        Trainer(config, tmp_path / "run").fit()


def test_a_teacher_that_fails_in_training_alone_is_named_when_the_run_ends(home, tmp_path):
    # Its answers to augmented views are looked at only when steps are skipped: looking would make the host wait.
    config = tiny(images(home), augment="crop-flip", **nan_teacher(tmp_path, features=192, size=24), max_skips=2)
    with pytest.raises(ValueError, match=r"the teacher's logits are not finite for 24 samples: \[\d+, "):
        Trainer(config, tmp_path / "run").fit()


def test_a_teacher_that_diverged_is_never_distilled(home, tmp_path):
    config = tiny(vectors(home), teacher="tiny_runs:faulty", max_skips=2)
    with pytest.raises(Diverged):
        Trainer(config, tmp_path / "run").fit()
    with pytest.raises(Diverged, match=r"the teacher in .*teacher diverged: nothing can be distilled from it"):
        Trainer.resume(tmp_path / "run").fit()
    assert not (tmp_path / "run" / "summary.json").exists()
    assert Trainer.resume(tmp_path / "run" / "teacher").fit()["status"] == "diverged"
