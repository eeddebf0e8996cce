"""SRRL: the connected embedding equals the teacher's, and the teacher's classifier says the same of both.

The loss is that of NumPy; 0 where the connector is exact; both weights are linear. The student and the connector learn,
the teacher's classifier is no part of the method. A batch of one and half precision give finite numbers.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from dotkd.methods.srrl import SRRL
from method_cases import activations, anatomy, requiring_grad

STUDENT = activations((2, 2, 2), embedding=4, seed=1)
TEACHER = activations((2, 2, 2), embedding=6, seed=2)


def classifier(dtype=torch.float64) -> nn.Linear:
    torch.manual_seed(5)
    return nn.Linear(6, 5, dtype=dtype).requires_grad_(False)


def method(**options) -> SRRL:
    torch.manual_seed(0)
    return SRRL(anatomy(STUDENT), anatomy(TEACHER, classifier()), **options).double()


@pytest.mark.parametrize(("rectify", "alpha", "beta"), [(True, 1.0, 1.0), (True, 10.0, 0.5), (False, 1.0, 5.0)])
def test_loss_is_that_of_numpy(rectify, alpha, beta):
    srrl = method(rectify=rectify, alpha=alpha, beta=beta)
    mapped = STUDENT.embedding.numpy() @ srrl.connector[0].weight.detach().numpy()[:, :, 0, 0].T
    mapped = (mapped - mapped.mean(axis=0)) / np.sqrt(mapped.var(axis=0) + 1e-5)
    connected = np.maximum(mapped, 0) if rectify else mapped
    said = connected @ classifier().weight.numpy().T + classifier().bias.numpy()
    matching = ((connected - TEACHER.embedding.numpy()) ** 2).mean()
    regression = ((said - TEACHER.logits.numpy()) ** 2).mean()
    assert srrl(STUDENT, TEACHER).item() == pytest.approx(alpha * matching + beta * regression, rel=1e-12)


def test_exact_connector_has_no_loss():
    srrl = method(rectify=False).eval()
    with torch.no_grad():
        connected = srrl.connector(STUDENT.embedding[:, :, None, None]).flatten(1)
    exact = TEACHER._replace(embedding=connected, logits=classifier()(connected))
    assert srrl(STUDENT, exact).item() == 0


def test_gradients_are_those_of_finite_differences():
    srrl = method().eval()
    student = requiring_grad(STUDENT)
    assert torch.autograd.gradcheck(lambda e: srrl(student._replace(embedding=e), TEACHER), (student.embedding,))


def test_student_and_connector_learn_and_the_classifier_is_the_teachers():
    srrl, student = method(), requiring_grad(STUDENT)
    srrl(student, TEACHER).backward()
    assert student.embedding.grad is not None
    names = [name for name, _ in srrl.named_parameters()]
    assert names == ["connector.0.weight", "connector.1.weight", "connector.1.bias"]
    assert all(parameter.grad is not None for parameter in srrl.parameters())


def test_classifier_is_asked_anew_at_every_call():
    layer = classifier()
    srrl = SRRL(anatomy(STUDENT), anatomy(TEACHER, layer), alpha=0.0).double()
    before = srrl(STUDENT, TEACHER)
    layer.weight.mul_(2)
    assert srrl(STUDENT, TEACHER) != before


def test_batch_of_one_is_finite_and_leaves_the_statistics():
    srrl, one = method(), requiring_grad(STUDENT._replace(embedding=STUDENT.embedding[:1] * 0))
    loss = srrl(one, TEACHER._replace(embedding=TEACHER.embedding[:1], logits=TEACHER.logits[:1]))
    loss.backward()
    assert loss.isfinite()
    assert one.embedding.grad.isfinite().all()
    assert torch.equal(srrl.connector[1].running_mean, torch.zeros(6).double())


def test_half_precision_is_close():
    student, teacher = (activations(embedding=size, dtype=torch.float32, seed=size) for size in (4, 6))
    srrl = SRRL(anatomy(student), anatomy(teacher, classifier(torch.float32)))
    exact = copy.deepcopy(srrl)(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = srrl(student._replace(embedding=student.embedding.bfloat16()), teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.03)


def test_compiled_is_equal():
    srrl = method()
    assert torch.equal(torch.compile(copy.deepcopy(srrl), backend="eager")(STUDENT, TEACHER), srrl(STUDENT, TEACHER))


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_negative_weight_is_refused(name):
    with pytest.raises(ValueError, match=f"expected `{name}` >= 0 and finite, got -1.0"):
        method(**{name: -1.0})


def test_teacher_without_a_classifier_is_refused():
    with pytest.raises(ValueError, match="expected a teacher with a linear classifier at its end"):
        SRRL(anatomy(STUDENT), anatomy(TEACHER))
