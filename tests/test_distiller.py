"""The contract of `dotkd.Distiller`.

- Called with a batch it returns the task loss (cross-entropy, smoothed if asked for) and the distillation loss, each
  unweighted, and the student's logits. The gradient reaches the student only.
- A model may return logits, a tuple that starts with them, or an object with `.logits`.
- The teacher, handed over in any mode, is in eval mode with frozen parameters at every call; nothing in it ever moves.
- Refused by text: parameters shared by teacher and student, unknown methods and options (nearest name), a value
  outside its rule, logits of two widths, targets out of range or of a wrong type, teacher logits that are not finite
  (naming the samples).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dotkd
from dotkd.distiller import logits_of, refuse_non_finite

N, D, C = 12, 5, 4


def net(classes=C, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(D, 7), nn.BatchNorm1d(7), nn.Dropout(0.5), nn.Linear(7, classes))


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(N, D), torch.randint(0, C, (N,))


class Output(NamedTuple):
    logits: torch.Tensor
    features: torch.Tensor


class HiddenAway:
    def __init__(self, logits):
        self.logits = logits


class Wrapped(nn.Module):
    """A model whose logits come wrapped in something."""

    def __init__(self, model, wrap):
        super().__init__()
        self.model, self.wrap = model, wrap

    def forward(self, inputs):
        return self.wrap(self.model(inputs))


WRAPS = {
    "pair": lambda logits: (logits, logits * 0),
    "list": lambda logits: [logits, None],
    "object": HiddenAway,
    "named tuple": lambda logits: Output(logits, logits * 0),
}


# --- what it computes


def test_both_losses_come_unweighted_with_the_logits(batch):
    student, teacher = net(), net(seed=2)
    inputs, targets = batch
    found = dotkd.Distiller(student.eval(), teacher, "kd", temperature=2.0)(inputs, targets)
    logits = student(inputs)
    assert isinstance(found, dotkd.Losses)
    assert found._fields == ("task", "distill", "logits")
    torch.testing.assert_close(found.logits, logits)
    torch.testing.assert_close(found.task, F.cross_entropy(logits, targets))
    torch.testing.assert_close(found.distill, dotkd.losses.kd(logits, teacher(inputs), temperature=2.0))
    assert found.task.shape == found.distill.shape == ()


def test_label_smoothing_is_of_the_task_loss_alone(batch):
    student, teacher = net().eval(), net(seed=2)
    plain = dotkd.Distiller(student, teacher)(*batch)
    smooth = dotkd.Distiller(student, teacher, label_smoothing=0.3)(*batch)
    log_q = student(batch[0]).log_softmax(1)
    by_hand = -(0.7 * log_q.gather(1, batch[1][:, None]).mean() + 0.3 * log_q.mean())
    torch.testing.assert_close(smooth.task, by_hand)
    torch.testing.assert_close(smooth.distill, plain.distill)


def test_options_and_the_target_reach_the_method(batch):
    student, teacher = net().eval(), net(seed=2)
    logits, known = student(batch[0]), teacher.eval()(batch[0])
    found = dotkd.Distiller(student, teacher, "dkd", temperature=3.0, options={"alpha": 2.0, "beta": 0.5})(*batch)
    expected = dotkd.losses.dkd(logits, known, batch[1], temperature=3.0, alpha=2.0, beta=0.5)
    torch.testing.assert_close(found.distill, expected)


def test_known_teacher_logits_replace_the_teachers_pass(batch):
    class Never(nn.Module):
        def forward(self, inputs):
            raise AssertionError("the teacher was asked")

    known = torch.randn(N, C)
    student = net().eval()
    found = dotkd.Distiller(student, Never())(*batch, known)
    torch.testing.assert_close(found.distill, dotkd.losses.kd(student(batch[0]), known))


def test_a_method_of_ones_own_gets_what_its_signature_names(batch):
    def positional(student_logits, teacher_logits, target):
        return (student_logits - teacher_logits).square().mean() + target.float().mean()

    def keyword(student_logits, teacher_logits, *, mask=None, target, temperature, power=1.0):
        assert mask is None
        return positional(student_logits, teacher_logits, target) * temperature**power

    student, teacher = net().eval(), net(seed=2)
    plain = dotkd.Distiller(student, teacher, positional)(*batch).distill
    expected = (student(batch[0]) - teacher(batch[0])).square().mean() + batch[1].float().mean()
    torch.testing.assert_close(plain, expected)
    found = dotkd.Distiller(student, teacher, keyword, temperature=2.0, options={"power": 3.0})(*batch).distill
    torch.testing.assert_close(found, 8.0 * expected)


@pytest.mark.parametrize("kind", WRAPS)
def test_wrapped_logits_give_the_losses_of_plain_ones(batch, kind):
    student, teacher = net().eval(), net(seed=2)
    plain = dotkd.Distiller(student, teacher)(*batch)
    wrapped = dotkd.Distiller(Wrapped(student, WRAPS[kind]), Wrapped(teacher, WRAPS[kind]))(*batch)
    assert [value.tolist() for value in wrapped] == [value.tolist() for value in plain]


@pytest.mark.parametrize("output", [{"logits": torch.zeros(2, 2)}, (), None, (None, torch.zeros(2, 2))])
def test_an_output_without_logits_is_refused(output):
    with pytest.raises(TypeError, match=r"expected a model to return logits, \(logits, \.\.\.\) or \.logits, got "):
        logits_of(output)


# --- the teacher


def test_a_teacher_in_train_mode_with_gradients_is_frozen_and_never_moves(batch):
    student, teacher = net(), net(seed=2).train().requires_grad_(True)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    distiller = dotkd.Distiller(student, teacher)
    for _ in range(3):
        teacher.train()  # as `model.train()` on a module that holds both would do
        found = distiller(*batch)
        (found.task + found.distill).backward()
        assert not any(module.training for module in teacher.modules())
    assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.grad is not None for p in student.parameters())
    assert student.training


def test_the_teachers_pass_builds_no_graph(batch):
    distiller = dotkd.Distiller(net(), net(seed=2))
    assert not distiller.teacher_logits(batch[0]).requires_grad
    torch.testing.assert_close(distiller.teacher_logits(batch[0]), distiller.teacher_logits(batch[0]), rtol=0, atol=0)


# --- what it refuses


def test_shared_parameters_are_refused_and_named():
    student, teacher = net(), net(seed=2)
    teacher[3].weight = student[3].weight
    with pytest.raises(ValueError, match=r"teacher and student share 1 parameters \(3\.weight, \.\.\.\): copy one"):
        dotkd.Distiller(student, teacher)
    with pytest.raises(ValueError, match="share 6 parameters"):
        dotkd.Distiller(student, student)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"method": "dkb"}, r"unknown method 'dkb', expected one of .*; did you mean 'dkd'\?"),
        ({"method": "dkd", "options": {"alhpa": 1.0}}, r"unknown option 'alhpa', expected .*; did you mean 'alpha'\?"),
        ({"method": "kd", "options": {"alpha": 1.0}}, "unknown option 'alpha', expected none"),
        ({"temperature": 0.0}, r"expected `temperature` > 0 and finite, got 0\.0"),
        ({"temperature": -1.0}, r"expected `temperature` > 0 and finite, got -1\.0"),
        ({"temperature": math.nan}, "expected `temperature` > 0 and finite, got nan"),
        ({"temperature": math.inf}, "expected `temperature` > 0 and finite, got inf"),
        ({"label_smoothing": 1.0}, r"expected `label_smoothing` in \[0, 1\), got 1\.0"),
        ({"label_smoothing": -0.1}, r"expected `label_smoothing` in \[0, 1\), got -0\.1"),
        # Arguments that the distiller itself passes are no options: one of the two would be ignored, or clash.
        ({"options": {"temperature": 2.0}}, "unknown option 'temperature'"),
        ({"method": "dkd", "options": {"target": 2}}, "unknown option 'target'"),
        ({"options": {"student_logits": 2}}, "unknown option 'student_logits'"),
    ],
)
def test_wrong_arguments_are_refused_at_construction(arguments, text):
    with pytest.raises(ValueError, match=text):
        dotkd.Distiller(net(), net(seed=2), **arguments)


def test_logits_of_two_widths_are_refused(batch):
    text = r"expected teacher and student to give logits of one shape, got \(12, 6\) and \(12, 4\)"
    with pytest.raises(ValueError, match=text):
        dotkd.Distiller(net(), net(classes=6))(*batch)


@pytest.mark.parametrize("value", [C, -1, 99, -100])
def test_a_target_out_of_range_is_refused(batch, value):
    inputs, targets = batch
    targets[3] = value
    with pytest.raises(ValueError, match=rf"expected targets in \[0, 4\), got {value}"):
        dotkd.Distiller(net(), net(seed=2))(inputs, targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.bool])
def test_targets_of_a_wrong_type_are_refused(batch, dtype):
    inputs, targets = batch
    with pytest.raises(TypeError, match=f"expected targets of dtype torch.int64, got {dtype}"):
        dotkd.Distiller(net(), net(seed=2))(inputs, targets.to(dtype))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_teacher_that_is_not_finite_is_refused_with_the_samples(batch, bad):
    class Broken(nn.Module):
        def forward(self, inputs):
            logits = torch.zeros(len(inputs), C)
            logits[[2, 7], 1] = bad
            return logits

    distiller = dotkd.Distiller(net(), Broken())
    with pytest.raises(ValueError, match=r"the teacher's logits are not finite for 2 samples: \[2, 7\]"):
        distiller(*batch)
    with pytest.raises(ValueError, match=r"not finite for 2 samples: \[102, 107\]"):
        distiller(*batch, index=torch.arange(100, 100 + N))


def test_without_checks_nothing_is_looked_at(batch):
    class Broken(nn.Module):
        def forward(self, inputs):
            return torch.full((len(inputs), C), math.nan)

    found = dotkd.Distiller(net(), Broken(), checks=False)(*batch)
    assert found.distill.isnan()
    assert found.task.isfinite()


def test_at_most_ten_bad_samples_are_listed():
    with pytest.raises(ValueError, match=r"for 30 samples: \[0, 1, 2, 3, 4, 5, 6, 7, 8, 9\]$"):
        refuse_non_finite(torch.full((30, 2), math.nan))
    refuse_non_finite(torch.zeros(30, 2))
