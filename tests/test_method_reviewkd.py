"""ReviewKD: deeper features are fused into shallower ones, each fusion learns one level of the teacher.

The loss is that of a slow transcription in NumPy, for maps that differ in channels, size and number; the context loss
is 0 at equality and, for maps smaller than every grid, a plain mean square. With `preactivated` the student's maps are
those before their activation. The student, every fusion and its attention
get gradients. Odd shapes, a batch of one, zeros and half precision give finite numbers; compiling changes nothing.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dotkd.methods.reviewkd import ReviewKD, hierarchical_context_loss
from method_cases import activations, anatomy, requiring_grad

STUDENT = activations((3, 8, 8), (4, 4, 4), embedding=5, seed=1)
TEACHER = activations((2, 9, 9), (5, 6, 8), (6, 2, 2), embedding=7, seed=2)


def method(width: int = 512, student=STUDENT, teacher=TEACHER) -> ReviewKD:
    torch.manual_seed(0)
    return ReviewKD(anatomy(student), anatomy(teacher), width=width).double()


def averaged(maps: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Cell (i, j) is the mean from floor(i H / rows) to ceil((i + 1) H / rows), likewise across."""
    height, width = maps.shape[2:]
    out = np.empty((*maps.shape[:2], rows, columns))
    for i in range(rows):
        for j in range(columns):
            top, bottom = i * height // rows, math.ceil((i + 1) * height / rows)
            left, right = j * width // columns, math.ceil((j + 1) * width / columns)
            out[:, :, i, j] = maps[:, :, top:bottom, left:right].mean(axis=(2, 3))
    return out


def slow_context_loss(student: np.ndarray, teacher: np.ndarray) -> float:
    total, weights = ((student - teacher) ** 2).mean(), [1.0]
    for cells in (4, 2, 1):
        rows, columns = min(cells, student.shape[2]), min(cells, student.shape[3])
        if (rows, columns) != student.shape[2:]:
            weights.append(weights[-1] / 2)
            difference = averaged(student, rows, columns) - averaged(teacher, rows, columns)
            total += weights[-1] * (difference**2).mean()
    return total / sum(weights)


def nearest(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    rows = [i * maps.shape[2] // height for i in range(height)]
    columns = [j * maps.shape[3] // width for j in range(width)]
    return maps[:, :, rows][:, :, :, columns]


def normalised(maps: np.ndarray) -> np.ndarray:
    mean, variance = maps.mean(axis=(0, 2, 3), keepdims=True), maps.var(axis=(0, 2, 3), keepdims=True)
    return (maps - mean) / np.sqrt(variance + 1e-5)


def test_loss_is_that_of_the_transcription():
    review = method(width=3)
    student = [f.numpy() for f in (STUDENT.embedding[:, :, None, None], STUDENT.features[1], STUDENT.features[0])]
    before = TEACHER.preactivations
    teacher = [f.numpy() for f in (TEACHER.embedding[:, :, None, None], before[2], before[1])]
    carried, expected = None, 0.0
    for fusion, own, aim in zip(review.fusions, student, teacher, strict=True):
        enter, leave = (part[0].weight.detach().numpy() for part in (fusion.enter, fusion.leave))
        fused = normalised(np.einsum("oc,nchw->nohw", enter[:, :, 0, 0], own))
        if carried is not None:
            carried = nearest(carried, *own.shape[2:])
            weight, bias = fusion.attend.weight.detach().numpy()[:, :, 0, 0], fusion.attend.bias.detach().numpy()
            both = np.concatenate([fused, carried], axis=1)
            attention = 1 / (1 + np.exp(-np.einsum("oc,nchw->nohw", weight, both) - bias[:, None, None]))
            fused = fused * attention[:, :1] + carried * attention[:, 1:]
        carried = nearest(fused, *aim.shape[2:])
        out = F.conv2d(torch.from_numpy(carried), torch.from_numpy(leave), padding=1).numpy()
        expected += slow_context_loss(normalised(out), aim)
    assert review(STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 16), (4, 4), (3, 9), (2, 1)])
def test_context_loss_is_that_of_the_transcription(size):
    student, teacher = (torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(s)).double() for s in (0, 1))
    expected = slow_context_loss(student.numpy(), teacher.numpy())
    assert hierarchical_context_loss(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    assert hierarchical_context_loss(student, student).item() == 0


def test_context_loss_of_one_pixel_is_the_mean_square():
    student, teacher = torch.tensor([3.0, 1.0]).view(1, 2, 1, 1), torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    assert hierarchical_context_loss(student, teacher).item() == 2.5


def test_context_loss_by_hand():
    # One pixel of 4 off by 4: mean squares 4 on the pixels and, of the whole map's mean, 1, weighted 1 and 1/2.
    student = torch.tensor([[4.0, 0.0], [0.0, 0.0]]).view(1, 1, 2, 2)
    assert hierarchical_context_loss(student, torch.zeros(1, 1, 2, 2)).item() == pytest.approx((4 + 0.5) / 1.5)


def test_gradients_are_those_of_finite_differences():
    review = method(width=2).eval()
    student = requiring_grad(activations((2, 4, 4), (3, 2, 2), batch=2, embedding=4))
    teacher = activations((2, 4, 3), (2, 2, 2), batch=2, embedding=3, seed=3)
    review = method(2, student, teacher).eval()

    def loss(first, second, embedding):
        return review(student._replace(features=(first, second), embedding=embedding), teacher)

    assert torch.autograd.gradcheck(loss, (*student.features, student.embedding))


def test_student_and_all_fusions_learn():
    student, review = requiring_grad(STUDENT), method()
    review(student, TEACHER).backward()
    for name, parameter in review.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert all(f.grad is not None for f in student.features)
    assert student.embedding.grad is not None


def test_preactivated_takes_the_students_maps_before_their_activation():
    plain = method(width=3)
    early = ReviewKD(anatomy(STUDENT), anatomy(TEACHER), width=3, preactivated=True).double()
    early.load_state_dict(plain.state_dict())
    swapped = STUDENT._replace(features=STUDENT.preactivations)
    assert early(STUDENT, TEACHER).item() == plain(swapped, TEACHER).item()
    assert early(STUDENT, TEACHER).item() != pytest.approx(plain(STUDENT, TEACHER).item(), rel=1e-3)


def test_preactivated_is_sized_by_what_it_takes():
    given = STUDENT._replace(features=tuple(f[:, :2] for f in STUDENT.features))  # an activation that drops channels
    early = ReviewKD(anatomy(given), anatomy(TEACHER), preactivated=True).double()
    assert [fusion.enter[0].in_channels for fusion in early.fusions] == [5, 4, 3]
    assert early(given, TEACHER).isfinite()


def test_width_is_at_most_that_of_the_embedding():
    assert method().fusions[0].enter[0].out_channels == 5
    assert method(width=2).fusions[1].leave[0].in_channels == 2


@pytest.mark.parametrize("batch", [1, 3])
def test_degenerate_inputs_give_finite_values_and_gradients(batch):
    student, teacher = (activations((2, 1, 1), (3, 1, 1), batch=batch, seed=s) for s in (0, 1))
    zero = requiring_grad(student._replace(features=tuple(f * 0 for f in student.features)))
    review = method(512, student, teacher)
    loss = review(zero, teacher)
    loss.backward()
    assert loss.isfinite()
    assert all(f.grad.isfinite().all() for f in zero.features)


def test_batch_of_one_leaves_the_one_pixel_statistics():
    one = activations((2, 4, 4), batch=1)
    review = method(512, one, one)
    review(one, one)
    assert torch.equal(review.fusions[0].enter[1].running_mean, torch.zeros(6).double())
    assert not torch.equal(review.fusions[1].enter[1].running_mean, torch.zeros(6).double())


def test_half_precision_is_close():
    student, teacher = (activations((3, 8, 8), (4, 4, 4), dtype=torch.float32, seed=s) for s in (0, 1))
    review = method(512, student, teacher).float()
    exact = copy.deepcopy(review)(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = student._replace(features=tuple(f.bfloat16() for f in student.features))
        loss = review(half, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_compiled_is_equal():
    review = method()
    assert torch.equal(
        torch.compile(copy.deepcopy(review), backend="eager")(STUDENT, TEACHER), review(STUDENT, TEACHER)
    )


def test_no_width_is_refused():
    with pytest.raises(ValueError, match="expected `width` >= 1, got 0"):
        method(width=0)
