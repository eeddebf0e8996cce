"""The contract of `dotkd.Trainer` where all goes well.

- Every trainer and method runs, learns, and leaves a folder that needs no library; folders may have any name.
- The same command gives the same bits, another seed gives others; the student starts from the seed alone. Splits do
  not depend on it.
- Training never sees the validation or the test split. `last`, `val_selected` (the test accuracy of the epoch that is
  best on validation) and `best_of_test` are what they are called; the weights of the selected epoch are kept.
- The teacher stays in eval mode and does not move.
(Ways of taking a step: test_trainer_modes; what goes wrong: test_trainer_faults; interruptions: test_resume.)
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from dotkd import Config, Trainer, data, models
from dotkd.checkpoint import load_latest
from dotkd.evaluation import Examiner, Scores, score
from tiny_runs import (
    BATCH,
    CLASSES,
    FEATURES,
    STEPS,
    TRAIN,
    before_each_step,
    everything,
    given_teacher,
    images,
    records,
    tiny,
    vectors,
)

TRAINERS = ("sgd", "sgd-matched", "dot", "dot-normalized", "adamw", "dot-adamw")
SMOOTH = {"student": "tiny_runs:smooth", "student_options": {}}


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


# --- what a run does and leaves


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_trainer_learns(home, teacher, tmp_path, trainer):
    lr = 0.03 if "adamw" in trainer else 0.05
    config = tiny(vectors(home), trainer=trainer, lr=lr, epochs=9, momentum=0.8, delta=0.1, **teacher)
    summary = Trainer(config, tmp_path / "run").fit()
    losses = [record for record in records(tmp_path / "run") if record["kind"] == "train"]
    assert summary["status"] == "done"
    assert summary["test_accuracy"]["last"] > 0.75  # a third by chance
    assert losses[-1]["task_loss"] < 0.8 * losses[0]["task_loss"]
    assert losses[-1]["distill_loss"] < 0.5 * losses[0]["distill_loss"]


@pytest.mark.parametrize("method", ["kd", "dkd", "jsd", "none"])
def test_every_method_learns(home, teacher, tmp_path, method):
    keys = {} if method == "none" else teacher
    trainer = "sgd" if method == "none" else "dot"
    config = tiny(vectors(home), trainer=trainer, method=method, epochs=9, lr=0.1, momentum=0.8, delta=0.1, **keys)
    summary = Trainer(config, tmp_path / "run").fit()
    assert summary["test_accuracy"]["last"] > 0.75
    assert (summary["losses"]["test"]["distill"] is None) == (method == "none")
    assert (summary["teacher_test_accuracy"] is None) == (method == "none")


def test_a_run_leaves_what_the_readme_lists(home, teacher, tmp_path):
    config = tiny(vectors(home), trainer="dot", ema=0.9, epochs=2, seed=3, **teacher)
    out = tmp_path / "run"
    summary = Trainer(config, out).fit()
    weights = {"student.safetensors", "student_ema.safetensors", "student_val_selected.safetensors"}
    files = {"config.yaml", "metrics.jsonl", "summary.json", "checkpoints", *weights}
    assert {path.name for path in out.iterdir()} == files
    assert Config.from_sources(out / "config.yaml") == config
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["config"] == json.loads(json.dumps(config.model_dump()))
    assert (summary["seed"], summary["trainer"], summary["method"]) == (3, "dot", "kd")
    assert summary["steps"] == 2 * STEPS
    assert summary["skipped_steps"] == 0
    assert summary["threads"] == 1
    assert summary["versions"]["torch"] == torch.__version__
    assert summary["seconds"] > 0
    assert summary["images_per_second"] == pytest.approx(2 * TRAIN / summary["seconds"])
    assert len(list((out / "checkpoints").iterdir())) == 2
    assert load_latest(out / "checkpoints").step == 2 * STEPS


def test_the_summary_is_that_of_the_weights_it_lies_beside(home, teacher, tmp_path):
    config = tiny(vectors(home), trainer="dot", ema=0.5, **teacher)
    out, dataset = tmp_path / "run", data.load(vectors(home))
    summary = Trainer(config, out).fit()

    def logits(path, split, **options):
        model = models.build("mlp", num_classes=CLASSES, input_shape=(FEATURES,), options=options)
        models.load_weights(model.eval(), path)
        return model(next(data.batches(dataset, split, batch_size=TRAIN)).inputs).detach()

    for split in ("train", "test"):
        known = logits(teacher["teacher_weights"], split, **teacher["teacher_options"])
        found, targets = logits(out, split, width=8), getattr(dataset, split).targets
        task = torch.nn.functional.cross_entropy(found, targets)
        kl = torch.nn.functional.kl_div((found / 4).log_softmax(1), (known / 4).softmax(1), reduction="batchmean")
        assert summary["losses"][split] == pytest.approx({"task": float(task), "distill": 16 * float(kl)}, rel=1e-5)
    assert summary["test_accuracy"]["last"] == score(found, targets).accuracy
    assert summary["teacher_test_accuracy"] == score(known, targets).accuracy
    average = logits(out / "student_ema.safetensors", "test", width=8)
    assert summary["ema_test_accuracy"] == score(average, targets).accuracy
    parameters = [(FEATURES + 2) * 8 + 10 * 8 + 9 * 3, (FEATURES + 2) * 16 + 17 * 3]
    assert summary["parameters"] == dict(zip(("student", "teacher", "method"), [*parameters, 0], strict=True))


def test_a_teacher_without_weights_is_trained_first_in_a_run_folder_of_its_own(home, tmp_path):
    config = tiny(vectors(home), trainer="dot", teacher_epochs=3, teacher_lr=0.1, task_weight=0.0, distill_weight=1.0)
    Trainer(config, tmp_path / "run").fit()
    held = Config.from_sources(tmp_path / "run" / "teacher" / "config.yaml")
    assert (held.student, held.method, held.trainer, held.epochs, held.lr) == ("mlp", "none", "sgd", 3, 0.1)
    summary = json.loads((tmp_path / "run" / "teacher" / "summary.json").read_text())
    assert summary["steps"] == 3 * STEPS
    own = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert own["teacher_test_accuracy"] == summary["test_accuracy"]["last"]


@pytest.mark.parametrize("name", ["with spaces", "Größe δ 蒸留", "a'b\"c", "deep/er/still"])
def test_folders_may_have_any_name(tmp_path, name):
    folder = tmp_path / name
    config = tiny(vectors(folder), trainer="sgd", **{**SMOOTH, **given_teacher(folder)})
    Trainer(config, folder / "out ü").fit()
    assert Trainer.resume(folder / "out ü").fit()["status"] == "done"


def test_relative_paths_and_the_home_folder_work(tmp_path, monkeypatch):
    vectors(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Trainer(tiny("arrays:vectors.npz", method="none", trainer="sgd", epochs=1), "~/run").fit()
    assert (tmp_path / "run" / "summary.json").is_file()


# --- the same bits


@pytest.mark.parametrize("trainer", ["dot", "adamw"])
def test_the_same_command_gives_the_same_bits_and_another_seed_gives_others(home, tmp_path, trainer):
    changes = {"student": "tiny_runs:dropout", "student_options": {}, "augment": "crop-flip", "ema": 0.9}
    config = tiny(images(home), trainer=trainer, teacher="tiny_runs:dropout", **changes)
    Trainer(config, tmp_path / "first").fit()
    torch.rand(17)  # whatever else the process draws must not matter
    Trainer(config, tmp_path / "second").fit()
    Trainer(config.replace(seed=1), tmp_path / "third").fit()
    assert everything(tmp_path / "first") == everything(tmp_path / "second")
    for kind in ("student.safetensors", "records", "state"):
        assert everything(tmp_path / "first")[kind] != everything(tmp_path / "third")[kind]


def test_the_student_starts_from_the_seed_alone(home, teacher, tmp_path):
    base = tiny(vectors(home), trainer="sgd", method="none", seed=5)
    others = [base.replace(method="kd", **teacher), base.replace(method="kd"), base.replace(trainer="adamw")]
    first = Trainer(base, tmp_path / "run").student.state_dict()
    for config in others:
        again = Trainer(config, tmp_path / "run").student.state_dict()
        assert all(torch.equal(first[name], value) for name, value in again.items())
    other = Trainer(base.replace(seed=6), tmp_path / "run").student.state_dict()
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_where_the_teacher_comes_from_does_not_change_the_students_bits(home, tmp_path):
    changes = {"student": "tiny_runs:dropout", "student_options": {}, "teacher": "tiny_runs:smooth"}
    config = tiny(vectors(home), trainer="dot", **changes)
    Trainer(config, tmp_path / "first").fit()
    Trainer(config.replace(teacher_weights=str(tmp_path / "first" / "teacher")), tmp_path / "second").fit()
    assert everything(tmp_path / "first") == everything(tmp_path / "second")


# --- splits and selection


@pytest.mark.parametrize("given", [True, False], ids=["validation given", "validation held out"])
def test_training_sees_the_training_samples_once_an_epoch_and_no_other(tmp_path, given):
    config = tiny(vectors(tmp_path, validation=given), trainer="sgd", method="none", validation=0.25, **SMOOTH)
    dataset, seen = data.load(config.data, validation=0.25), []
    trainer = Trainer(config, tmp_path / "run")
    with before_each_step(lambda count, inputs: seen.extend(map(tuple, inputs.tolist()))):
        trainer.fit()
    rows = {
        split: {tuple(row) for batch in data.batches(dataset, split, batch_size=BATCH) for row in batch.inputs.tolist()}
        for split in ("train", "val", "test")
    }
    assert set(seen) == rows["train"]
    assert len(seen) == 2 * len(dataset.train.targets)
    assert not set(seen) & (rows["val"] | rows["test"])


def test_the_three_accuracies_are_what_they_are_called(home, tmp_path, monkeypatch):
    table = {"val": [0.2, 0.7, 0.7, 0.4, 0.4], "test": [0.9, 0.5, 0.6, 0.3, 0.3]}
    counts = {"val": 0, "test": 0}

    def scripted(self, model, split):
        if split == "train":
            return Scores(0.0, 0.0, None)
        counts[split] += 1
        return Scores(table[split][counts[split] - 1], 1.0, None)

    monkeypatch.setattr(Examiner, "scores", scripted)
    config = tiny(vectors(home), trainer="sgd", method="none", epochs=4, schedule="constant", **SMOOTH)
    summary = Trainer(config, tmp_path / "run").fit()
    assert summary["test_accuracy"] == {"last": 0.3, "val_selected": 0.5, "best_of_test": 0.9}
    assert summary["val_accuracy"] == {"last": 0.4, "best": 0.7}
    monkeypatch.undo()
    Trainer(config.replace(epochs=2), tmp_path / "shorter").fit()
    selected = load_file(tmp_path / "run" / "student_val_selected.safetensors")
    expected = load_file(tmp_path / "shorter" / "student.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in selected.items())


# --- the teacher


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_the_teacher_stays_in_eval_mode_and_does_not_move(home, tmp_path, augment):
    config = tiny(images(home), trainer="dot", teacher="tiny_runs:dropout", augment=augment, epochs=1)
    trainer = Trainer(config, tmp_path / "run")
    trainer.fit()
    stored = load_file(tmp_path / "run" / "teacher" / "student.safetensors")
    assert not any(module.training for module in trainer.teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in trainer.teacher.parameters())
    assert all(torch.equal(stored[name], value) for name, value in trainer.teacher.state_dict().items())
    assert stored["inner.2.num_batches_tracked"] == STEPS  # its own training's, and no more
