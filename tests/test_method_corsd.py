"""CORSD: pairs of a batch, as the deepest point sees them, teach the shallower points.

All five losses are those of loops over pairs in NumPy. The distilling terms do not touch the deepest point; every
network learns; the class means move as an average by hand, in training alone, and take in nothing that is not finite.
Anchors without a partner count for nothing, and a batch of one has no loss. No real teacher is looked at.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from dotkd.methods import card_of
from dotkd.methods.corsd import CORSD, _draw_partners
from method_cases import activations, anatomy, requiring_grad

SHAPES = ((2, 4, 4), (3, 2, 2), (4, 1, 1))
STUDENT = activations(*SHAPES, batch=6, classes=3, seed=1)
TARGET = torch.tensor([0, 1, 0, 2, 1, 0])  # the only sample of class 2 has no partner of its class
NAMES = {"triplet", "auxiliary", "relation", "auxiliary_kd", "logits"}


def method(student=STUDENT, **options) -> CORSD:
    torch.manual_seed(0)
    corsd = CORSD(anatomy(student), anatomy(student), **options).double()
    corsd.class_means = corsd.class_means.float()
    return corsd


def losses(corsd, student=STUDENT, target=TARGET, seed=3):
    torch.manual_seed(seed)
    return corsd(student, student, target=target)


def test_partners_are_of_the_class_and_of_another():
    torch.manual_seed(0)
    seen_same, seen_other = set(), set()
    for _ in range(50):
        target = torch.randint(0, 4, (7,))
        partners = _draw_partners(target)
        for anchor in range(7):
            same, other = partners.same[anchor].item(), partners.other[anchor].item()
            alike = [k for k in range(7) if target[k] == target[anchor] and k != anchor]
            unlike = [k for k in range(7) if target[k] != target[anchor]]
            assert partners.has_same[anchor] == bool(alike)
            assert partners.has_other[anchor] == bool(unlike)
            assert same in (alike or [anchor])
            assert other in (unlike or [anchor])
            seen_same.add(same - anchor)
            seen_other.add(other - anchor)
    assert seen_same | {0} == seen_other | {0} == set(range(-6, 7))  # drawn from all places


def cross_entropy(target: np.ndarray, logits: np.ndarray) -> float:
    return -float((target * log_softmax(logits)).sum())


def test_losses_are_those_of_loops_over_pairs():
    weights = {"alpha": 0.3, "beta": 0.7, "gamma": 0.9, "same": 1.1, "other": 1.3, "same_kd": 1.7, "other_kd": 1.9}
    corsd = method(margin=0.4, temperature=2.0, **weights).eval()
    got = losses(corsd)
    torch.manual_seed(3)
    partners = _draw_partners(TARGET)
    drawn = (TARGET + torch.randint(1, 3, TARGET.shape)) % 3

    def see(j: int, first: int, second: int) -> tuple[float, np.ndarray]:
        with torch.no_grad():
            r, z = corsd.relations[j](STUDENT.features[j][first : first + 1], STUDENT.features[j][second : second + 1])
        return r.item(), z[0].numpy()

    one_hot = np.eye(3)
    with_same, with_other = [0, 1, 2, 4, 5], range(6)
    expected = dict.fromkeys(NAMES, 0.0)
    for a in with_other:
        p, n, y = partners.same[a].item(), partners.other[a].item(), TARGET[a].item()
        deep_p, deep_n = see(2, a, p), see(2, a, n)
        for j in range(3):
            at_p, at_n = see(j, a, p), see(j, a, n)
            terms = [(at_n, deep_n, (one_hot[y] + one_hot[TARGET[n]]) / 2, "other", 6)]
            if a in with_same:
                terms.append((at_p, deep_p, one_hot[y], "same", 5))
                expected["triplet"] += 0.3 * max(at_p[0] - at_n[0] + 0.4, 0) / 5
            for (r, z), (deep_r, deep_z), label, kind, count in terms:
                expected["auxiliary"] += weights[kind] * cross_entropy(label, z) / count
                if j < 2:
                    expected["relation"] += 0.7 * (r - deep_r) ** 2 / count
                    soft = softmax(deep_z / 2)
                    divergence = (soft * (log_softmax(deep_z / 2) - log_softmax(z / 2))).sum()
                    expected["auxiliary_kd"] += weights[f"{kind}_kd"] * 4 * divergence / count
        q = torch.from_numpy(softmax(STUDENT.logits[a : a + 1].numpy(), axis=1))
        means = torch.eye(3).double()
        with torch.no_grad():
            own, other = (corsd.logit_relation(q, means[k][None]).item() for k in (y, drawn[a].item()))
        expected["logits"] += 0.9 * (own - other) / 6
    assert {name: loss.item() for name, loss in got.items()} == pytest.approx(expected, rel=1e-9)
    assert expected["logits"] != 0


def test_streams_name_every_loss():
    assert set(card_of("corsd").streams) == NAMES == set(losses(method()))
    assert card_of("corsd").streams["auxiliary"] == "task"
    assert card_of("corsd").streams["relation"] == card_of("corsd").streams["auxiliary_kd"] == "distill"


@pytest.mark.parametrize("name", ["relation", "auxiliary_kd"])
def test_deepest_point_teaches_and_does_not_learn(name):
    student, corsd = requiring_grad(STUDENT), method()
    losses(corsd, student)[name].backward()
    assert student.features[2].grad is None
    assert all(parameter.grad is None for parameter in corsd.relations[2].parameters())
    for shallow in (0, 1):
        assert student.features[shallow].grad.abs().sum() > 0


def test_all_networks_and_the_student_learn():
    student, corsd = requiring_grad(STUDENT), method()
    sum(losses(corsd, student).values()).backward()
    assert all(parameter.grad is not None for parameter in corsd.parameters())
    assert all(tensor.grad.abs().sum() > 0 for tensor in (*student.features, student.logits))


def test_gradients_are_those_of_finite_differences():
    corsd, student = method(margin=0.5).eval(), requiring_grad(STUDENT)

    def total(logits, *features):
        return sum(losses(corsd, student._replace(logits=logits, features=features)).values())

    assert torch.autograd.gradcheck(total, (student.logits, *(f.detach() for f in student.features)))
    # Differences of the deepest map move the targets too, which autograd does not: without the terms that have them.
    alone = method(beta=0.0, same_kd=0.0, other_kd=0.0).eval()
    assert torch.autograd.gradcheck(
        lambda *f: sum(losses(alone, student._replace(features=f)).values()), student.features, fast_mode=True
    )


def test_class_means_are_moving_averages():
    corsd = method(decay=0.75)
    losses(corsd)
    q = softmax(STUDENT.logits.numpy(), axis=1)
    for k, members in ((0, [0, 2, 5]), (1, [1, 4]), (2, [3])):
        expected = 0.75 * np.eye(3)[k] + 0.25 * q[members].mean(axis=0)
        np.testing.assert_allclose(corsd.class_means[k].numpy(), expected, rtol=1e-6)
    before = corsd.class_means.clone()
    losses(corsd.eval())
    assert torch.equal(corsd.class_means, before)


def test_class_means_take_in_nothing_that_is_not_finite_and_rest_without_samples():
    corsd = method()
    logits = STUDENT.logits.clone()
    logits[3] = float("nan")
    losses(corsd, STUDENT._replace(logits=logits))
    assert corsd.class_means.isfinite().all()
    assert torch.equal(corsd.class_means[2], torch.tensor([0.0, 0.0, 1.0]))
    assert not torch.equal(corsd.class_means[0], torch.tensor([1.0, 0.0, 0.0]))


def test_state_goes_on_elsewhere():
    corsd = method()
    losses(corsd)
    other = CORSD(anatomy(STUDENT), anatomy(STUDENT)).double()
    other.load_state_dict(corsd.state_dict())
    assert losses(corsd.eval()) == losses(other.eval())
    assert not torch.equal(other.class_means, torch.eye(3).to(other.class_means.dtype))


@pytest.mark.parametrize("target", [[0, 0, 0, 0], [0, 1, 2, 3]])
def test_batches_without_partners_are_finite(target):
    student = activations(*SHAPES, batch=4, classes=4)
    zero = requiring_grad(student._replace(features=tuple(f * 0 for f in student.features)))
    got = losses(method(student), zero, torch.tensor(target))
    assert got["triplet"] == 0
    sum(got.values()).backward()
    assert all(loss.isfinite() for loss in got.values())
    assert all(f.grad.isfinite().all() for f in zero.features)


def test_batch_of_one_has_no_loss():
    student = requiring_grad(activations(*SHAPES, batch=1, classes=3))
    got = losses(method(student), student, torch.tensor([1]))
    assert {name: loss.item() for name, loss in got.items()} == dict.fromkeys(NAMES, 0)
    sum(got.values()).backward()


def test_there_is_no_teacher():
    corsd = method()
    assert CORSD.teacherless
    torch.manual_seed(3)
    got = copy.deepcopy(corsd)(STUDENT, activations((1, 1, 1)), target=TARGET)
    assert got == losses(corsd)


def test_half_precision_is_close():
    student = activations(*SHAPES, batch=6, classes=3, dtype=torch.float32)
    corsd = method(student).float()
    exact = losses(copy.deepcopy(corsd), student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = losses(corsd, student._replace(features=tuple(f.bfloat16() for f in student.features)))
    for name, loss in got.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.1, abs=1e-3)


def test_compiled_is_equal():
    corsd = method()
    compiled = torch.compile(copy.deepcopy(corsd), backend="eager")
    assert losses(compiled) == losses(corsd)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "expected `alpha` >= 0 and finite, got -1.0"),
        ({"same_kd": float("inf")}, "expected `same_kd` >= 0 and finite, got inf"),
        ({"margin": -0.5}, "expected `margin` >= 0 and finite, got -0.5"),
        ({"temperature": 0.0}, "expected `temperature` > 0 and finite, got 0.0"),
        ({"decay": 1.0}, r"expected `decay` in \[0, 1\), got 1.0"),
    ],
)
def test_options_outside_their_rule_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        method(**options)


def test_one_point_or_one_class_is_refused():
    with pytest.raises(
        ValueError, match="expected at least 2 feature maps of the student, which CORSD compares, got 1"
    ):
        method(activations((2, 4, 4)))
    with pytest.raises(ValueError, match="expected at least 2 classes, got 1"):
        method(activations(*SHAPES, classes=1))
