"""The contract of the trainer with methods, teachers and views other than one teacher's logits for one view.

- Every method trains, with one momentum and with two; what it brings is trained by the same optimizer and saved apart,
  in method.safetensors, not with the student.
- A stopped run with a method that has state (a projector, a memory) ends with the same bits.
- `deepkd` is three torch optimizers on the three gradients. Warm-up scales the distillation loss epoch by epoch.
- A method of the user's own is a function or a class in a file. Mixed samples and second views reach it.
- Several teachers are their mean, or the best for each sample; `self` is the student's moving average; a part of the
  teacher that learns moves by its own task loss, the rest stays; a teacher of other classes answers in the student's.
- Without a validation split nothing is selected, and nothing says otherwise.
"""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dotkd import Trainer, data, losses, models
from dotkd.config import ConfigError
from dotkd.methods import METHODS
from tiny_runs import (
    BATCH,
    CLASSES,
    FEATURES,
    STEPS,
    dropout,
    everything,
    given_teacher,
    images,
    records,
    run_with_stops,
    tiny,
    vectors,
)

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

NETS = {"student": "tiny_runs:dropout", "student_options": {}, "student_features": ["inner.1", "inner"]}


def feature_run(home, method, **changes):
    """Vectors as maps of one pixel; the teacher is a perceptron."""
    given = given_teacher(home)
    values = {"method": method, "epochs": 2, "lr": 0.01, **NETS, **given, **changes}
    return tiny(vectors(home), **values)


@pytest.fixture(scope="module")
def small_images(tmp_path_factory):
    home = tmp_path_factory.mktemp("images")
    teacher = models.build("resnet8", num_classes=CLASSES, input_shape=(3, 8, 8))
    save_file(teacher.state_dict(), home / "teacher.safetensors")
    return images(home), str(home / "teacher.safetensors")


def image_config(small_images, **changes):
    source, weights = small_images
    values = {"teacher": "resnet8", "teacher_weights": weights, "student": "resnet2d", "student_options": {"width": 4}}
    return tiny(source, **{**values, "epochs": 1, "lr": 0.001, "batch_size": 32, "log_every": 100, **changes})


@pytest.mark.parametrize("trainer", ["sgd", "dot"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_with_one_momentum_and_with_two(small_images, tmp_path, method, trainer):
    Trainer(image_config(small_images, method=method, trainer=trainer), tmp_path / "run").fit()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["skipped_steps"] == 0
    (trained,) = [record for record in records(tmp_path / "run") if record["kind"] == "train"]
    assert math.isfinite(trained["task_loss"])
    assert math.isfinite(trained["distill_loss"])
    assert trained["distill_loss"] != 0
    assert math.isfinite(summary["losses"]["train"]["distill"])
    # The memory of CRD knows the training samples alone.
    assert (summary["losses"]["test"]["distill"] is None) == (method == "crd")
    held = tmp_path / "run" / "method.safetensors"
    assert held.exists() == (summary["parameters"]["method"] > 0 or method == "ofd")


def test_a_projector_is_trained_and_saved_apart(small_images, tmp_path):
    config = image_config(small_images, method="fitnet", trainer="dot")
    trainer = Trainer(config, tmp_path / "run")
    before = {name: value.clone() for name, value in trainer.distiller.extra.state_dict().items()}
    trainer.fit()
    saved = load_file(tmp_path / "run" / "method.safetensors")
    assert saved.keys() == before.keys()
    assert all(name.startswith("method.") for name in saved)
    assert not torch.equal(saved["method.regressor.conv.weight"], before["method.regressor.conv.weight"])
    student = load_file(tmp_path / "run" / "student.safetensors")
    assert not [name for name in student if "regressor" in name]


@pytest.mark.parametrize(("method", "options"), [("crd", {"negatives": 8, "dim": 4}), ("ofd", {}), ("corsd", {})])
@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_stopped_run_of_a_method_with_state_ends_with_the_same_bits(tmp_path, method, options, stop):
    changes = {"student_features": ["inner.1", "inner"], "teacher": "tiny_runs:dropout", "teacher_options": {}}
    changes |= {"teacher_features": ["inner.1", "inner"]}
    torch.manual_seed(3)
    save_file(dropout(CLASSES, (FEATURES,)).state_dict(), tmp_path / "net.safetensors")
    config = feature_run(
        tmp_path,
        method,
        method_options=options,
        trainer="dot",
        **changes,
        teacher_weights=str(tmp_path / "net.safetensors"),
    )
    Trainer(config, tmp_path / "whole").fit()
    run_with_stops(config, tmp_path / "run", stop)
    assert everything(tmp_path / "run") == everything(tmp_path / "whole")


def test_deepkd_is_three_optimizers_on_three_gradients(tmp_path):
    changes = {"student": "tiny_runs:double", "student_options": {}, "schedule": "constant", **given_teacher(tmp_path)}
    changes |= {"momentum": 0.8, "delta": 0.15, "weight_decay": 0.01, "lr": 0.02, "temperature": 3.0}
    config = tiny(vectors(tmp_path), method="deepkd", trainer="deepkd", **changes)
    trainer = Trainer(config, tmp_path / "run")
    student = copy.deepcopy(trainer.student)
    teacher = models.build("mlp", num_classes=CLASSES, input_shape=(FEATURES,), options=config.teacher_options)
    teacher.load_state_dict(load_file(config.teacher_weights))
    trainer.fit()

    params = list(student.parameters())
    momenta = {"task": (0.95, 0.01), "target": (0.65, 0.0), "nontarget": (0.95, 0.0)}
    optimizers = {
        name: torch.optim.SGD(params, lr=0.02, momentum=mu, weight_decay=decay) for name, (mu, decay) in momenta.items()
    }
    dataset, step = data.load(config.data), 0
    for epoch in range(config.epochs):
        for batch in data.batches(dataset, "train", batch_size=BATCH, epoch=epoch, shuffle=True, drop_last=True):
            logits, known = student.train()(batch.inputs), teacher.eval()(batch.inputs).detach()
            parts = losses.deepkd(
                logits, known, batch.targets, temperature=3.0, progress=step / (STEPS * config.epochs)
            )
            parts["task"] = torch.nn.functional.cross_entropy(logits.float(), batch.targets)
            grads = {name: torch.autograd.grad(0.5 * part, params, retain_graph=True) for name, part in parts.items()}
            for name, optimizer in optimizers.items():
                for p, grad in zip(params, grads[name], strict=True):
                    p.grad = grad.clone()
                optimizer.step()
            step += 1
    found = load_file(tmp_path / "run" / "student.safetensors")
    for name, value in student.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


# --- methods of the user's own


def test_a_method_of_ones_own_is_a_function_or_a_class_in_a_file(tmp_path, monkeypatch):
    (tmp_path / "own_methods.py").write_text(
        "import torch\n"
        "def gap(student_logits, teacher_logits, *, target, power=2.0):\n"
        "    return (student_logits - teacher_logits).abs().pow(power).mean() + 0 * target.sum()\n"
        "class Hint(torch.nn.Module):\n"
        "    def __init__(self, student, teacher, *, scale=1.0):\n"
        "        super().__init__()\n"
        "        self.scale, self.map = scale, torch.nn.Linear(student.embedding, teacher.embedding)\n"
        "    def forward(self, student, teacher):\n"
        "        return self.scale * (self.map(student.embedding) - teacher.embedding).square().mean()\n"
    )
    monkeypatch.chdir(tmp_path)
    plain = tiny(vectors(tmp_path), method="own_methods:gap", method_options={"power": 1.0}, **given_teacher(tmp_path))
    assert Trainer(plain, tmp_path / "plain").fit()["status"] == "done"
    config = feature_run(tmp_path, "own_methods:Hint", teacher_features=["hiddn"], method_options={"scale": 2.0})
    with pytest.raises(ValueError, match="the teacher has no module `hiddn`"):
        Trainer(config, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
    Trainer(config.replace(teacher_features=()), tmp_path / "hint").fit()
    assert "method.map.weight" in load_file(tmp_path / "hint" / "method.safetensors")


# --- views


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixed_samples_are_learnt_from_by_both_losses(small_images, tmp_path, mix):
    config = image_config(small_images, mix=mix, trainer="dot")
    trainer = Trainer(config, tmp_path / "run")
    assert trainer.fit()["status"] == "done"
    assert trainer._known is None  # the teacher sees each mixed sample, as the student does
    with pytest.raises(ConfigError, match="mix: expected none with method nkd"):
        image_config(small_images, mix=mix, method="nkd")


def test_a_second_view_costs_both_cross_entropies(small_images, tmp_path):
    config = image_config(small_images, method="crld", augment="crop-flip", trainer="sgd")
    trainer = Trainer(config, tmp_path / "run")
    first = next(trainer.batching.batches(trainer.dataset, device=trainer.device))
    assert first.strong.shape == first.inputs.shape
    assert not torch.equal(first.strong, first.inputs)
    trainer.distiller.train()
    task, _, logits = trainer.distiller(first.inputs, first.targets, strong=first.strong)
    strong = trainer.student(first.strong)
    expected = sum(torch.nn.functional.cross_entropy(z, first.targets) for z in (logits, strong))
    torch.testing.assert_close(task, expected)


# --- teachers


def two_teachers(folder):
    first = given_teacher(folder)
    other = models.build("mlp", num_classes=CLASSES, input_shape=(FEATURES,), options={"width": 5, "depth": 1})
    save_file(other.state_dict(), folder / "other.safetensors")
    more = [{"weights": str(folder / "other.safetensors"), "options": {"width": 5, "depth": 1}}]
    return {**first, "more_teachers": more}


@pytest.mark.parametrize("choice", ["mean", "best"])
def test_several_teachers_are_their_mean_or_the_best_one(tmp_path, choice):
    config = tiny(vectors(tmp_path), teacher_choice=choice, **two_teachers(tmp_path))
    trainer = Trainer(config, tmp_path / "run")
    trainer.fit()
    (batch,) = data.batches(trainer.dataset, "train", batch_size=96)
    logits = torch.stack([teacher(batch.inputs) for teacher in trainer.teacher.teachers]).detach()
    if choice == "mean":
        expected = logits.mean(0)
    else:
        costs = torch.stack([torch.nn.functional.cross_entropy(z, batch.targets, reduction="none") for z in logits])
        expected = logits[costs.argmin(0), torch.arange(96)]
    torch.testing.assert_close(trainer._known._logits, expected)


def test_features_of_several_teachers_are_refused(tmp_path):
    config = feature_run(tmp_path, "pkt", **two_teachers(tmp_path))
    with pytest.raises(ValueError, match="expected one teacher for method 'pkt', which looks inside it, got several"):
        Trainer(config, tmp_path / "run")


def test_a_pretrained_teacher_is_taken_as_it_comes(tmp_path):
    config = tiny(vectors(tmp_path), teacher="tiny_runs:pretrained", teacher_epochs=0, trainer="dot")
    trainer = Trainer(config, tmp_path / "run")
    before = trainer.teacher.head.weight.clone()
    assert trainer.fit()["status"] == "done"
    assert not (tmp_path / "run" / "teacher").exists()
    assert torch.equal(trainer.teacher.head.weight, before)
    for changes, name in (({"teacher": "mlp"}, "hidden"), ({"teacher_options": {"fresh_head": True}}, "head")):
        with pytest.raises(ValueError, match=rf"teacher_epochs 0 takes the teacher as it comes, but `{name}[\w.]*` of"):
            Trainer(config.replace(**changes), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_a_student_learns_from_its_own_average(tmp_path):
    config = tiny(vectors(tmp_path), teacher="self", ema=0.9, trainer="dot", log_every=1)
    trainer = Trainer(config, tmp_path / "run")
    assert trainer.teacher is trainer._stepper.average.module
    before = {name: value.clone() for name, value in trainer.teacher.state_dict().items()}
    summary = trainer.fit()
    assert not (tmp_path / "run" / "teacher").exists()
    assert not torch.equal(before["head.weight"], trainer.teacher.state_dict()["head.weight"])
    assert trainer._known is None
    trained = [record["distill_loss"] for record in records(tmp_path / "run") if record["kind"] == "train"]
    assert max(trained) > 0
    assert summary["teacher_test_accuracy"] == summary["ema_test_accuracy"]


def test_a_stopped_run_of_a_student_that_teaches_itself_ends_with_the_same_bits(tmp_path):
    config = tiny(
        vectors(tmp_path), teacher="self", ema=0.9, trainer="dot", student="tiny_runs:dropout", student_options={}
    )
    Trainer(config, tmp_path / "whole").fit()
    run_with_stops(config, tmp_path / "run", 3, 2)
    assert everything(tmp_path / "run") == everything(tmp_path / "whole")


def test_a_part_of_the_teacher_learns_and_the_rest_stays(tmp_path):
    config = feature_run(tmp_path, "kd", teacher_learns=["head"], trainer="dot", student_features=[])
    trainer = Trainer(config, tmp_path / "run")
    before = {name: value.clone() for name, value in trainer.teacher.state_dict().items()}
    trainer.fit()
    after = trainer.teacher.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"head.weight", "head.bias"}
    saved = load_file(tmp_path / "run" / "method.safetensors")
    assert torch.equal(saved["teacher_head.weight"], after["head.weight"])
    run_with_stops(config, tmp_path / "again", 3)
    assert everything(tmp_path / "again") == everything(tmp_path / "run")
    with pytest.raises(ValueError, match=r"unknown module of the teacher 'haed', expected .*; did you mean 'head'\?"):
        Trainer(config.replace(teacher_learns=["haed"]), tmp_path / "wrong")


def test_the_acclimation_loss_is_the_teachers_own_cross_entropy(tmp_path):
    config = tiny(vectors(tmp_path), teacher_learns=["head"], acclimation_weight=0.5, **given_teacher(tmp_path))
    trainer = Trainer(config, tmp_path / "run")
    batch = next(trainer.batching.batches(trainer.dataset, device=trainer.device))
    trainer.student.eval()
    task, distill, logits = trainer.distiller(batch.inputs, batch.targets)
    known = trainer.teacher(batch.inputs)
    cross_entropy = torch.nn.functional.cross_entropy
    torch.testing.assert_close(task, cross_entropy(logits, batch.targets) + 0.5 * cross_entropy(known, batch.targets))
    torch.testing.assert_close(distill, losses.kd(logits, known.detach()))
    (grad,) = torch.autograd.grad(distill, trainer.teacher.head.weight, allow_unused=True)
    assert grad is None


def test_a_teacher_of_other_classes_and_pictures_answers_in_the_students(small_images, tmp_path):
    torch.manual_seed(0)
    model = models.build("resnet8", num_classes=7, input_shape=(3, 16, 16))
    save_file(model.state_dict(), tmp_path / "wide.safetensors")
    taken = {"image_size": 16, "num_classes": 7, "classes": [5, [0, 1], 2], "mean": [0.5], "std": [0.25]}
    changes = {"teacher": "resnet8", "teacher_input": taken, "teacher_weights": str(tmp_path / "wide.safetensors")}
    for method in ("kd", "at", "srrl"):
        config = image_config(small_images, **changes, method=method)
        trainer = Trainer(config, tmp_path / method)
        (batch,) = data.batches(trainer.dataset, "test", batch_size=96)
        pixels = batch.inputs * trainer.dataset.std.view(3, 1, 1) + trainer.dataset.mean.view(3, 1, 1)
        large = torch.nn.functional.interpolate(
            (pixels - 0.5) / 0.25, (16, 16), mode="bilinear", align_corners=False, antialias=True
        )
        wide = model.eval()(large).double()
        expected = torch.stack([wide[:, 5], wide[:, :2].exp().sum(1).log(), wide[:, 2]], 1).float()
        torch.testing.assert_close(trainer.teacher(batch.inputs), expected, rtol=1e-4, atol=1e-4)
        assert trainer.fit()["status"] == "done"


# --- without validation


def test_without_a_validation_split_nothing_is_selected(tmp_path):
    config = tiny("digits", validation=0, trainer="dot", epochs=1, teacher="self", ema=0.9)
    summary = Trainer(config, tmp_path / "run").fit()
    assert summary["test_accuracy"]["val_selected"] is None
    assert summary["val_accuracy"] == {"last": None, "best": None}
    assert summary["test_accuracy"]["last"] > 0.1
    assert not (tmp_path / "run" / "student_val_selected.safetensors").exists()
    (record,) = [record for record in records(tmp_path / "run") if record["kind"] == "eval"]
    assert set(record) == {"kind", "step", "epoch", "test", "ema"}
    whole = data.load("digits", validation=0)
    assert len(whole.train.targets) == len(data.load("digits").train.targets) + len(data.load("digits").val.targets)
    assert np.isclose(summary["losses"]["test"]["task"], record["test"]["task_loss"])
