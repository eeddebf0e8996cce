"""A teacher's cache for sequences. The contract:

- Logits of every position come back as written, to the rounding of float16, for sequences of any length and in any
  order; positions without a record are told by sequence, and the mask is that of the lengths.
- Losses on (N, L, C) with that mask are those of the teacher's own logits; with sampled classes the gradient of KD at
  temperature 1 is unbiased over views.
- What does not fit is refused.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dotkd.cache.records import Records, SampledRecords, WholeRecords
from dotkd.cache.sequences import SequenceStore
from dotkd.cache.store import open_or_create
from dotkd.losses import adakd, kd

LENGTHS, CLASSES = (3, 1, 7, 2, 5), 12


def made(folder: Path, records: Records, *, views: int = 2) -> SequenceStore:
    store = open_or_create(folder, records=records, samples=sum(LENGTHS), views=views, identity={"teacher": "t"})
    return SequenceStore(store, LENGTHS)


def teacher_logits(index: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Those of some sequences, (B, L, C), NaN behind their ends; and the mask."""
    every = 3 * torch.randn(len(LENGTHS), max(LENGTHS), CLASSES, generator=torch.Generator().manual_seed(seed))
    longest = max(LENGTHS[i] for i in index)
    mask = torch.arange(longest) < torch.tensor([LENGTHS[i] for i in index]).unsqueeze(1)
    return every[index][:, :longest].masked_fill(~mask.unsqueeze(2), torch.nan), mask


def test_positions_come_back_as_written(tmp_path: Path) -> None:
    store = made(tmp_path / "cache", WholeRecords(CLASSES))
    for index, view in (([2, 0], [1, 0]), ([1], [1]), ([4, 3], [0, 0])):
        logits, _ = teacher_logits(index)
        store.write(torch.tensor(index), torch.tensor(view), logits)
    asked, views = [0, 3, 2, 4, 1], [0, 0, 1, 1, 1]
    found = store.read(torch.tensor(asked), torch.tensor(views))
    logits, mask = teacher_logits(asked)
    assert torch.equal(found.mask, mask)
    assert found.whole.tolist() == [True, True, True, False, True]
    known = mask & found.whole.unsqueeze(1)
    assert torch.equal(found.logits[known], logits[known].half().float())
    assert not found.logits[~known].any()


def test_losses_are_those_of_the_teachers_own_logits(tmp_path: Path) -> None:
    store = made(tmp_path / "cache", WholeRecords(CLASSES))
    index, view = torch.tensor([2, 4, 0]), torch.zeros(3, dtype=torch.int64)
    logits, mask = teacher_logits(index.tolist())
    store.write(index, view, logits)
    found = store.read(index, view)
    student = torch.randn(*logits.shape, generator=torch.Generator().manual_seed(1))
    for loss in (
        lambda teacher: adakd(student, teacher, mask=mask, ratio=0.5),
        lambda teacher: kd(student[mask], teacher[mask], temperature=2.0),
    ):
        assert float(loss(found.logits)) == pytest.approx(float(loss(logits)), rel=2e-3)


def test_with_sampled_classes_the_gradient_is_unbiased(tmp_path: Path) -> None:
    views = 400
    store = made(tmp_path / "cache", SampledRecords(CLASSES, 3, 1.0), views=views)
    logits, mask = teacher_logits([2])
    student = torch.randn(*logits.shape, generator=torch.Generator().manual_seed(1))

    def gradient(teacher: Tensor) -> Tensor:
        given = student.clone().requires_grad_()
        kd(given[mask], teacher[mask], temperature=1.0).backward()
        assert given.grad is not None
        return given.grad

    rows: list[Tensor] = []
    index = torch.tensor([2])
    for number in range(views):
        view = torch.tensor([number])
        store.write(index, view, logits)
        rows.append(gradient(store.read(index, view).logits))
    every = torch.stack(rows)
    deviation = float(every.var(0).sum().div(views).sqrt())
    assert float((every.mean(0) - gradient(logits)).norm()) < 4 * deviation + 2**-11
    assert float((every[0] - gradient(logits)).norm()) > 4 * deviation  # one alone is far off


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    store = made(tmp_path / "cache", WholeRecords(CLASSES))
    for lengths, text in (
        ((3, 0, 15), "each at least 1"),
        ((3, 4), "expected sequences of 18 positions in all, .* got 7"),
    ):
        with pytest.raises(ValueError, match=text):
            SequenceStore(store.store, lengths)
    with pytest.raises(ValueError, match=r"expected logits of shape \(2, 7\) \+ \(C,\), got \(2, 6, 12\)"):
        store.write(torch.tensor([0, 2]), torch.tensor([0, 0]), torch.zeros(2, 6, CLASSES))
    with pytest.raises(ValueError, match="not finite"):
        store.write(torch.tensor([0]), torch.tensor([0]), torch.full((1, 3, CLASSES), torch.nan))
