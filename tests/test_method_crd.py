"""The contract of `dotkd.methods.crd`.

1. Value: the formula written out row by row with NumPy, over several batches, so that Z stays that of the first one
   and the memories move as they should. In eval mode nothing moves.
2. `scores` and `weighted_rows` equal looking the rows up, whichever way they take.
3. Negatives are of other classes, all of them and equally often; the positive is the sample, or one of its class.
   There are no more negatives than samples of other classes.
4. Gradient: gradcheck in float64, the projections of both sides receive one, the memories none.
5. What is not finite, and a projection of 0, leave no trace in the memories nor in Z.
6. Autocast, torch.compile, state_dict.
7. Errors.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dotkd.methods import crd
from dotkd.methods.activations import Activations
from dotkd.methods.crd import CRD, Memory, scores, weighted_rows
from method_cases import activations, anatomy, requiring_grad

Array = NDArray[np.float64]
TARGETS = torch.tensor([2, 0, 1, 1, 0, 2, 1, 1, 4, 4])
INDEX = torch.tensor([3, 9, 0, 4])
STUDENT, TEACHER = activations(embedding=6), activations(embedding=3, seed=1)


def build(dtype: torch.dtype = torch.float64, **options: object) -> CRD:
    torch.manual_seed(0)
    chosen = {"targets": TARGETS, "negatives": 5, "dim": 4, **options}
    return CRD(anatomy(STUDENT), anatomy(TEACHER), **chosen).to(dtype)  # pyright: ignore[reportArgumentType]


def called(method: CRD, student: Activations = STUDENT, teacher: Activations = TEACHER, seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    return method(student, teacher, index=INDEX)


def projected(linear: torch.nn.Linear, embedding: Tensor) -> Array:
    out = embedding.numpy() @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def literal(anchors: Array, memory: Array, chosen: Array, z: float | None, tau: float) -> tuple[float, float]:
    """c and Z, as they are defined."""
    x = np.exp(np.array([[anchors[n] @ memory[row] for row in chosen[n]] for n in range(len(anchors))]) / tau)
    z = float(x.mean()) * len(memory) if z is None else z
    h = x / z / (x / z + (chosen.shape[1] - 1) / len(memory))
    return float(np.mean(-np.log(h[:, 0]) - np.log(1 - h[:, 1:]).sum(axis=1))), z


# 1. Value


@pytest.mark.parametrize("positives", ["exact", "relax"])
def test_value_over_several_batches(positives: str) -> None:
    method = build(positives=positives)
    memories = [m.rows.clone().numpy() for m in (method.student_memory, method.teacher_memory)]
    z: list[float | None] = [None, None]
    for step in range(3):
        index = torch.tensor([[3, 9, 0, 4], [1, 3, 5, 7], [8, 9, 4, 2]][step])
        student, teacher = activations(embedding=6, seed=step), activations(embedding=3, seed=step + 10)
        torch.manual_seed(step)
        chosen = torch.cat((method._positive(index), method._negative(index)), dim=1).numpy()
        torch.manual_seed(step)
        loss = method(student, teacher, index=index)
        s = projected(method.student_projector, student.embedding)
        t = projected(method.teacher_projector, teacher.embedding)
        c_s, z[1] = literal(s, memories[1], chosen, z[1], 0.07)
        c_t, z[0] = literal(t, memories[0], chosen, z[0], 0.07)
        assert loss.item() == pytest.approx(c_s + c_t, rel=1e-9)
        for memory, vectors in zip(memories, (s, t), strict=True):
            moved = 0.5 * memory[index] + 0.5 * vectors
            memory[index] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
        np.testing.assert_allclose(method.student_memory.rows, memories[0], rtol=1e-9)
        np.testing.assert_allclose(method.teacher_memory.rows, memories[1], rtol=1e-9)
    assert math.exp(method.student_memory.log_z.item()) == pytest.approx(z[0])


def test_eval_mode_changes_nothing() -> None:
    method = build()
    called(method)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.eval()
    called(method, activations(embedding=6, seed=5))
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_eval_mode_before_training_uses_the_z_of_its_batch_and_keeps_none() -> None:
    method = build().eval()
    loss = called(method)
    assert not method.student_memory.has_z
    assert torch.equal(called(method.train()), loss)
    assert method.student_memory.has_z


# 2. The rows are not looked up


@pytest.mark.parametrize("whole", [0, 1000], ids=["looked-up", "whole"])
@pytest.mark.parametrize("at_once", [1, 100, 1 << 20])
def test_equal_to_looking_up(monkeypatch: pytest.MonkeyPatch, whole: int, at_once: int) -> None:
    monkeypatch.setattr(crd, "_WHOLE", whole)
    monkeypatch.setattr(crd, "_PRODUCTS", at_once)
    monkeypatch.setattr(crd, "_LOOKED_UP", at_once)
    generator = torch.Generator().manual_seed(0)
    memory, anchors, weights = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((20, 4), (7, 4), (7, 30))
    )
    chosen = torch.randint(20, (7, 30), generator=generator)
    torch.testing.assert_close(scores(anchors, memory, chosen), torch.einsum("nkd,nd->nk", memory[chosen], anchors))
    expected = torch.einsum("nkd,nk->nd", memory[chosen], weights)
    torch.testing.assert_close(weighted_rows(weights, memory, chosen), expected)


def test_both_ways_are_taken() -> None:
    assert crd._whole_is_cheaper(torch.empty(50000, 1), torch.empty(1, 16385))
    assert not crd._whole_is_cheaper(torch.empty(50000, 1), torch.empty(1, 16))


# 3. Who is drawn


def test_negatives_are_all_samples_of_other_classes_equally_often() -> None:
    method = build()
    torch.manual_seed(0)
    draws = 4000
    drawn = torch.cat([method._negative(torch.arange(10)) for _ in range(draws)], dim=1)
    for sample, negatives in enumerate(drawn):
        others = TARGETS[sample] != TARGETS
        counts = torch.bincount(negatives, minlength=10)
        expected = draws * 5 / int(others.sum())
        assert (counts[~others] == 0).all()
        assert ((counts[others] - expected).abs() < 5 * expected**0.5).all()  # five standard deviations


def test_positives() -> None:
    exact, relaxed = build(), build(positives="relax")
    index = torch.arange(10).repeat(200)
    assert torch.equal(exact._positive(index), index[:, None])
    torch.manual_seed(0)
    drawn = relaxed._positive(index)[:, 0].view(200, 10)
    for sample in range(10):
        assert set(drawn[:, sample].tolist()) == set((TARGETS[sample] == TARGETS).nonzero()[:, 0].tolist())


@pytest.mark.parametrize(("asked", "got"), [(5, 5), (6, 6), (7, 6), (16384, 6)])
def test_no_more_negatives_than_samples_of_other_classes(asked: int, got: int) -> None:
    assert build(negatives=asked).negatives == got  # of ten samples, the largest class has four


# 4. Gradient


@pytest.mark.parametrize("training", [True, False])
def test_gradient(training: bool) -> None:
    method = build(tau=0.5)
    called(method)
    before = [(buffer, buffer.clone()) for buffer in method.buffers()]
    method.train(training)

    def loss(s: Tensor, t: Tensor) -> Tensor:
        for buffer, value in before:
            buffer.copy_(value)
        return called(method, STUDENT._replace(embedding=s), TEACHER._replace(embedding=t))

    shown = (STUDENT.embedding.clone().requires_grad_(), TEACHER.embedding.clone().requires_grad_())
    assert torch.autograd.gradcheck(loss, shown)


def test_what_receives_a_gradient() -> None:
    method = build()
    called(method).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert not any(buffer.requires_grad for buffer in method.buffers())


# 5. State stays finite


def test_what_is_not_finite_leaves_no_trace() -> None:
    method = build()
    rows = method.student_memory.rows.clone()
    broken = STUDENT.embedding.clone()
    broken[1, 0] = math.inf
    called(method, STUDENT._replace(embedding=broken))
    assert not method.teacher_memory.has_z
    assert torch.equal(method.student_memory.rows[INDEX[1]], rows[INDEX[1]])
    assert not torch.equal(method.student_memory.rows[INDEX[0]], rows[INDEX[0]])
    assert all(value.isfinite().all() for value in method.state_dict().values())
    assert called(method).isfinite()
    assert method.teacher_memory.has_z


def test_a_row_is_not_replaced_by_zero() -> None:
    memory = Memory(3, 2, 0.07, 0.5)
    rows = memory.rows.clone()
    memory.take(-rows[:1], torch.tensor([0]))
    assert torch.equal(memory.rows, rows)


def test_zeros_and_one_sample() -> None:
    method = build()
    nothing = requiring_grad(STUDENT._replace(embedding=torch.zeros(1, 6, dtype=torch.float64)))
    teacher = TEACHER._replace(embedding=TEACHER.embedding[:1])
    loss = method(nothing, teacher, index=INDEX[:1])
    loss.backward()
    assert loss.isfinite()
    assert nothing.embedding.grad.isfinite().all()  # pyright: ignore[reportOptionalMemberAccess]


def test_scores_beyond_the_range_of_exp() -> None:
    loss = called(build(torch.float32, tau=1e-3), *map(_single, (STUDENT, TEACHER)))
    assert loss.isfinite()


def _single(given: Activations) -> Activations:
    return given._replace(embedding=given.embedding.float())


# 6. Surroundings


def test_under_autocast_it_is_computed_in_float32() -> None:
    halves = [given._replace(embedding=given.embedding.bfloat16()) for given in (STUDENT, TEACHER)]
    expected = called(build(torch.float32), *map(_single, halves))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(called(build(torch.float32), *halves), expected)


def test_compiled() -> None:
    eager, method = build(), build()
    compiled = torch.compile(method, backend="eager", fullgraph=True)
    for step in range(2):
        shown, same = requiring_grad(STUDENT), requiring_grad(STUDENT)
        torch.manual_seed(step)
        loss = compiled(shown, TEACHER, index=INDEX)
        expected = called(eager, same, seed=step)
        torch.testing.assert_close(loss, expected)
        loss.backward()
        expected.backward()
        torch.testing.assert_close(shown.embedding.grad, same.embedding.grad)
    assert all(torch.equal(value, eager.state_dict()[name]) for name, value in method.state_dict().items())


def test_state_returns() -> None:
    method, other = build(), build()
    called(method)
    other.student_memory.rows.zero_()
    other.load_state_dict(method.state_dict())
    again = activations(embedding=6, seed=3)
    assert torch.equal(called(other, again), called(method, again))
    assert not any(name.startswith(("label", "by_class", "first", "size")) for name in method.state_dict())


# 7. Errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"targets": torch.ones(3)}, TypeError, "expected `targets` of int64, got torch.float32"),
        ({"targets": torch.tensor([0, -1])}, ValueError, r"expected `targets` \(M,\) of classes >= 0, M >= 1, got "),
        ({"targets": torch.tensor([[0, 1]])}, ValueError, r"expected `targets` \(M,\) of classes"),
        ({"targets": torch.tensor([], dtype=torch.int64)}, ValueError, r"expected `targets` \(M,\) of classes"),
        ({"targets": torch.tensor([3, 3])}, ValueError, "expected `targets` of two classes at least, got only class 3"),
        ({"negatives": 0}, ValueError, "expected `negatives` >= 1, got 0"),
        ({"dim": 0}, ValueError, "expected `dim` >= 1, got 0"),
        ({"tau": 0.0}, ValueError, "expected `tau` > 0 and finite, got 0.0"),
        ({"tau": math.inf}, ValueError, "expected `tau` > 0 and finite, got inf"),
        ({"momentum": 1.0}, ValueError, r"expected `momentum` in \[0, 1\), got 1.0"),
        ({"positives": "all"}, ValueError, "expected `positives` to be one of exact, relax, got 'all'"),
    ],
)
def test_errors(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(**options)  # pyright: ignore[reportArgumentType]
