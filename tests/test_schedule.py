"""The contract of `dotkd.schedule`: from a config to an optimizer, loss weights and learning rates.

- The learning rate of step t of T, with w steps of warm-up: lr (t + 1) / (w + 1) while t < w; then constant, or times
  gamma at the start of each milestone epoch, or lr / 2 (1 + cos(pi (t - w) / (T - w))).
- Every trainer equals a loop over torch's own optimizers (literal_loop.py) on the same batches: `sgd` one
  optimizer on the weighted sum, `dot` two with momentum mu -/+ delta, `dot-normalized` the same with the learning rates
  times (1 - m) / (1 - mu), `sgd-matched` one with the loss weights and the decay times DOT's steady-state factors,
  `adamw` torch's; `dot-adamw` equals its literal transcription. Clipping, smoothing and Nesterov included.
- The optimizer sees the rates of the schedule, and metrics.jsonl reports them.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from safetensors.torch import load_file

from dotkd import Trainer, models
from dotkd.schedule import learning_rate, plan, weights
from literal_loop import literal_run
from tiny_runs import CLASSES, FEATURES, STEPS, given_teacher, records, tiny, vectors

TRAINERS = ("sgd", "sgd-matched", "dot", "dot-normalized", "adamw", "dot-adamw")


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def rates(steps_per_epoch=5, **changes):
    config = tiny("digits", **changes)
    return [learning_rate(config, step, steps_per_epoch) for step in range(config.epochs * steps_per_epoch)]


def test_constant_is_constant():
    assert rates(schedule="constant", lr=0.3, epochs=2) == [0.3] * 10


def test_step_multiplies_by_gamma_at_the_start_of_each_milestone_epoch():
    found = rates(2, schedule="step", lr=1.0, epochs=6, milestones=(2, 3, 5), gamma=0.5)
    assert found == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.125, 0.125]


def test_cosine_falls_from_lr_towards_0_and_is_half_of_it_in_the_middle():
    found = rates(schedule="cosine", lr=0.4, epochs=4)
    assert found == pytest.approx([0.4 * (1 + math.cos(math.pi * t / 20)) / 2 for t in range(20)])
    assert found[0] == 0.4
    assert found[10] == pytest.approx(0.2)
    assert 0 < found[-1] < 0.4 * 0.01


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_warm_up_rises_linearly_to_lr_and_the_schedule_begins_after_it(schedule):
    found = rates(schedule=schedule, lr=1.0, epochs=3, warmup_epochs=0.8)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    rest = [1.0 if schedule == "constant" else (1 + math.cos(math.pi * k / 11)) / 2 for k in range(11)]
    assert found[4:] == pytest.approx(rest)


def test_warm_up_before_milestones_counts_epochs_from_the_start_of_the_run():
    found = rates(2, schedule="step", lr=1.0, epochs=4, milestones=(2,), warmup_epochs=1)
    assert found == pytest.approx([1 / 3, 2 / 3, 1, 1, 0.1, 0.1, 0.1, 0.1])


@pytest.mark.parametrize("warmup", [0.1, 0.3, 0.5, 0.99, 1.3])
def test_a_part_of_an_epoch_of_warm_up_never_overshoots(warmup):
    found = rates(4, schedule="cosine", lr=1.0, epochs=2, warmup_epochs=warmup)
    peak = found.index(max(found))
    assert max(found) <= 1.0
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)


def test_one_step_in_all_is_taken_at_full_rate():
    assert rates(1, schedule="cosine", lr=0.7, epochs=1) == [0.7]


def test_the_matched_control_has_the_weights_of_dots_steady_state():
    config = tiny("digits", trainer="sgd-matched", momentum=0.9, delta=0.075, task_weight=0.1, distill_weight=0.9)
    config = config.replace(weight_decay=5e-4)
    optimizer, task, distill, warmup = plan(config, [torch.nn.Parameter(torch.zeros(2))])
    assert warmup == 0
    assert task == pytest.approx(0.1 / 1.75)  # FACTS of the method: task and decay x0.571, distillation x4
    assert distill == pytest.approx(0.9 * 4.0)
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(5e-4 / 1.75)
    assert optimizer.streams == ("total",)


def test_without_distillation_the_task_loss_has_weight_1():
    config = tiny("digits", trainer="sgd", method="none", task_weight=0.1)
    made = plan(config, [torch.nn.Parameter(torch.zeros(2))])
    assert (made.task_weight, made.distill_weight) == (1.0, 0.0)
    assert float(made.weigh({"task": torch.tensor(2.0)})["total"]) == 2.0


def test_streams_are_apart_where_the_optimizer_keeps_them_apart_and_summed_elsewhere():
    losses = {"task": torch.tensor(2.0), "target": torch.tensor(1.0), "nontarget": torch.tensor(3.0)}
    params = [torch.nn.Parameter(torch.zeros(2))]

    def weighed(trainer, epoch=0, **changes):
        config = tiny("digits", trainer=trainer, method="deepkd", task_weight=0.5, distill_weight=0.25, **changes)
        return {name: value.item() for name, value in plan(config, params).weigh(losses, epoch).items()}

    assert weighed("dot") == {"task": 1.0, "distill": 1.0}
    assert weighed("sgd") == {"total": 2.0}
    assert weighed("deepkd") == {"task": 1.0, "target": 0.25, "nontarget": 0.75}
    warm = {"distill_warmup_epochs": 4, "epochs": 6}
    assert [weighed("dot", epoch, **warm)["distill"] for epoch in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_weights_are_those_given_else_those_published_for_the_method():
    assert weights(tiny("digits")) == (0.1, 0.9, 0.0)
    assert weights(tiny("digits", method="dkd", epochs=40)) == (1.0, 1.0, 20.0)
    assert weights(tiny("digits", method="at", task_weight=0.5)) == (0.5, 1000.0, 0.0)
    given = {"task_weight": 0.0, "distill_weight": 2.0, "distill_warmup_epochs": 0.0}
    assert weights(tiny("digits", method="dkd", **given)) == (0.0, 2.0, 0.0)


def test_deepkd_has_three_momenta_and_the_decay_in_the_task_stream():
    config = tiny("digits", trainer="deepkd", method="deepkd", momentum=0.8, delta=0.1, weight_decay=0.3)
    (group,) = plan(config, [torch.nn.Parameter(torch.zeros(2))]).optimizer.param_groups
    assert group["momenta"] == pytest.approx({"task": 0.9, "target": 0.7, "nontarget": 0.9})
    assert (group["decay_stream"], group["weight_decay"]) == ("task", 0.3)


def compare_with_the_literal_loop(folder, student="tiny_runs:double", **changes):
    """The trainer's run and the literal one, from the same weights on the same batches, in float64."""
    values = {"lr": 0.05, "momentum": 0.8, "delta": 0.15, "weight_decay": 0.01, "epochs": 3, "temperature": 3.0}
    values |= {"seed": 3, "student": student, "student_options": {}, "schedule": "constant", **given_teacher(folder)}
    config = tiny(vectors(folder), **{**values, **changes})
    trainer = Trainer(config, folder / "run")
    student, teacher = (
        copy.deepcopy(trainer.student),
        models.build("mlp", num_classes=CLASSES, input_shape=(FEATURES,), options=config.teacher_options),
    )
    teacher.load_state_dict(load_file(config.teacher_weights))
    trainer.fit()

    def rate(step):
        return config.lr if config.schedule == "constant" else 0.5 * config.lr * (1 + math.cos(math.pi * step / 12))

    *_, expected = literal_run(config, student, teacher.eval(), rate)
    return load_file(folder / "run" / "student.safetensors"), expected


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # The task loss is float32 by contract: float64 weights differ where one of its roundings falls otherwise.
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


@pytest.fixture(scope="module")
def plain_weights(tmp_path_factory):
    found, _ = compare_with_the_literal_loop(tmp_path_factory.mktemp("plain"), trainer="dot")
    return found


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_trainer_equals_its_literal_loop(tmp_path, trainer):
    assert_equal(*compare_with_the_literal_loop(tmp_path, trainer=trainer))


@pytest.mark.parametrize("trainer", ["sgd", "dot", "sgd-matched"])
def test_smoothing_clipping_nesterov_and_cosine_equal_the_literal_loop(tmp_path, trainer):
    extras = {"label_smoothing": 0.2, "clip_norm": 0.1, "nesterov": True, "schedule": "cosine"}
    found, expected = compare_with_the_literal_loop(tmp_path, trainer=trainer, **extras)
    assert_equal(found, expected)


@pytest.mark.parametrize("trainer", ["sgd", "adamw"])
def test_the_task_loss_alone_equals_the_literal_loop(tmp_path, trainer):
    extras = {"method": "none", "label_smoothing": 0.2, "task_weight": 0.3}
    assert_equal(*compare_with_the_literal_loop(tmp_path, trainer=trainer, **extras))


@pytest.mark.parametrize(
    "changes", [{"label_smoothing": 0.2}, {"clip_norm": 0.1}, {"nesterov": True}, {"delta": 0.1}, {"temperature": 2.0}]
)
def test_each_of_these_changes_the_weights(plain_weights, tmp_path, changes):
    # The power of the two tests above: were one of these ignored by both loops, they would agree all the same.
    other, _ = compare_with_the_literal_loop(tmp_path, trainer="dot", **changes)
    assert float((plain_weights["head.weight"] - other["head.weight"]).abs().max()) > 1e-4


def test_metrics_report_the_rate_of_the_last_step(tmp_path):
    config = tiny(vectors(tmp_path), log_every=1, trainer="sgd", method="none", warmup_epochs=0.5)
    Trainer(config, tmp_path / "run").fit()
    reported = [record["lr"] for record in records(tmp_path / "run") if record["kind"] == "train"]
    assert reported == rates(STEPS, warmup_epochs=0.5)
