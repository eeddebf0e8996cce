"""What is particular to `dist`, `standardise`, `ls_kd` and `nkd`.

1. dist: unchanged when one side's probabilities are shifted and stretched, row by row (inter) or column by column
   (intra); 0 at such pairs and 2 at their mirror image; one sample has no intra term; what does not vary is left out.
2. standardise: mean 0, standard deviation 1 of the population, whatever shift and positive stretch; masked classes
   take no part; ls_kd is 0 for all such students; it composes with the other objectives.
3. nkd: kd's two parts with cross-entropy; two classes leave the target's term alone.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from dotkd.losses import dist, dkd, kd, ls_kd, nkd, standardise
from loss_oracles import nkd_oracle, sample

F64 = torch.float64


def from_probabilities(p: torch.Tensor) -> torch.Tensor:
    return p.log()


def mixed(p: torch.Tensor, share: torch.Tensor | float) -> torch.Tensor:
    """Probabilities pulled towards uniform, a shift and stretch of every row."""
    return share * p + (1 - share) / p.shape[-1]


# 1. dist


def test_inter_ignores_stretched_rows() -> None:
    _, t, _ = sample(6, 5)
    p = t.softmax(-1)
    share = torch.linspace(0.1, 0.9, 6, dtype=F64).unsqueeze(-1)
    assert dist(from_probabilities(mixed(p, share)), t, temperature=1.0, gamma=0.0).item() == pytest.approx(
        0, abs=1e-14
    )
    # The mirror image of every row about 1 / C, small enough to stay a distribution: r = -1, d = 2.
    mirrored = mixed(p, -0.05)
    assert dist(from_probabilities(mirrored), t, temperature=1.0, gamma=0.0).item() == pytest.approx(2, rel=1e-12)


def test_intra_ignores_stretched_columns() -> None:
    """One stretch for all rows is one for all columns; inter and intra agree that nothing is left to learn."""
    _, t, _ = sample(6, 5)
    student = from_probabilities(mixed(t.softmax(-1), 0.3))
    assert dist(student, t, temperature=1.0).item() == pytest.approx(0, abs=1e-14)
    different = from_probabilities(mixed(t.softmax(-1), torch.linspace(0.1, 0.9, 6, dtype=F64).unsqueeze(-1)))
    assert dist(different, t, temperature=1.0, beta=0.0).item() > 1e-3


def test_one_sample_has_no_intra_term() -> None:
    s, t, _ = sample(1, 5)
    s.requires_grad_()
    intra = dist(s, t, beta=0.0)
    assert intra.item() == 0.0
    assert torch.autograd.grad(intra, s)[0].count_nonzero() == 0
    assert dist(s, t).item() == dist(s, t, gamma=0.0).item() > 0.0
    assert dist(s[0], t[0]).item() == dist(s, t).item()


def test_pairs_without_a_correlation_are_left_out() -> None:
    s, t, _ = sample(4, 5)
    s[1] = 7.0  # this sample's classes do not vary
    rest = [0, 2, 3]
    assert dist(s, t, gamma=0.0).item() == pytest.approx(dist(s[rest], t[rest], gamma=0.0).item(), rel=1e-12)


def test_two_classes_agree_or_disagree() -> None:
    s = torch.tensor([[1.0, 0.0], [3.0, 0.5], [0.0, 2.0]], dtype=F64, requires_grad=True)
    t = torch.tensor([[5.0, 0.0], [0.0, 0.1], [0.0, 9.0]], dtype=F64)
    loss = dist(s, t, temperature=1.0, gamma=0.0)
    assert loss.item() == pytest.approx(2 / 3, rel=1e-12)
    assert torch.autograd.grad(loss, s)[0].abs().max().item() < 1e-12


def test_rare_classes_count_like_others() -> None:
    """A class of probability 1e-30 still correlates, in float32 too."""
    s, t, _ = sample(6, 4, scale=1.0)
    rare = torch.tensor([0.0, 0.0, 0.0, -69.0], dtype=F64)
    exact = dist(s + rare, t + rare, temperature=1.0, beta=0.0).item()
    assert dist((s + rare).float(), (t + rare).float(), temperature=1.0, beta=0.0).item() == pytest.approx(
        exact, rel=1e-3
    )
    column = np.corrcoef((s + rare).softmax(-1)[:, 3], (t + rare).softmax(-1)[:, 3])[0, 1]
    others = [np.corrcoef((s + rare).softmax(-1)[:, j], (t + rare).softmax(-1)[:, j])[0, 1] for j in range(3)]
    assert exact == pytest.approx(1 - np.mean([column, *others]), rel=1e-9)


# 2. standardise, ls_kd


def test_standardise_by_hand() -> None:
    z = torch.tensor([[1.0, 2.0, 3.0, 6.0]], dtype=F64)
    root = math.sqrt((4 + 1 + 0 + 9) / 4)
    expected = torch.tensor([[-2.0, -1.0, 0.0, 3.0]], dtype=F64) / root
    torch.testing.assert_close(standardise(z), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("stretch", "shift"), [(1e-3, 0.0), (64.0, -512.0), (2.0**-100, 0.0), (2.0**60, 0.0)])
def test_standardise_undoes_shift_and_stretch(dtype: torch.dtype, stretch: float, shift: float) -> None:
    _, t, _ = sample(5, 7)
    t = (t * 64).round() / 64
    once = standardise(t.to(dtype))
    torch.testing.assert_close(standardise((t * stretch + shift).to(dtype)), once, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(standardise(once), once, rtol=1e-5, atol=1e-6)
    assert ls_kd((t * stretch + shift).to(dtype), t.to(dtype)).item() == pytest.approx(0.0, abs=1e-8)


def test_standardise_of_equal_logits_is_zero() -> None:
    z = torch.full((2, 3), 0.1, dtype=torch.float32, requires_grad=True)
    result = standardise(z)
    assert result.count_nonzero() == 0
    assert torch.autograd.grad(result.sum() + result.square().sum(), z)[0].count_nonzero() == 0


def test_masked_classes_take_no_part() -> None:
    _, t, _ = sample(4, 5)
    wide = torch.cat((t[:, :2], torch.full((4, 1), -math.inf, dtype=F64), t[:, 2:]), dim=-1)
    result = standardise(wide)
    assert torch.isneginf(result[:, 2]).all()
    torch.testing.assert_close(result[:, [0, 1, 3, 4, 5]], standardise(t))


def test_standardise_gradcheck() -> None:
    _, t, _ = sample(3, 4)
    assert torch.autograd.gradcheck(standardise, t.requires_grad_())


def test_standardise_lifts_half_precision() -> None:
    z = torch.tensor([[1.0, 5.0, 2.0]], dtype=torch.float16)
    assert standardise(z).dtype == torch.float32
    torch.testing.assert_close(standardise(z), standardise(z.float()))


def test_composes_with_other_objectives() -> None:
    """As the docstring shows: any objective on standardised logits."""
    s, t, y = sample(6, 5, dtype=torch.float32)
    assert ls_kd(s, t, temperature=3.0).item() == kd(standardise(s), standardise(t), temperature=3.0).item()

    def ls_dkd(student, teacher, target, *, temperature=2.0, alpha=1.0, beta=8.0):
        return dkd(standardise(student), standardise(teacher), target, temperature=temperature, alpha=alpha, beta=beta)

    assert ls_dkd(s, 5 * t + 1, y).item() == pytest.approx(ls_dkd(s, t, y).item(), rel=1e-4)


@pytest.mark.parametrize(
    ("z", "error", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), TypeError, "expected floating-point `logits`, got torch.int64"),
        (torch.zeros(2, 1), ValueError, "with at least 2 classes, got (2, 1)"),
        (torch.zeros(0, 3), ValueError, "expected at least one sample, got logits of shape (0, 3)"),
    ],
)
def test_standardise_refuses(z: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        standardise(z)


# 3. nkd


def test_nkd_differs_from_kds_halves_by_entropies() -> None:
    """The second term is NCKD of dkd plus the entropy of the teacher's rest, which no student changes."""
    s, t, y = sample(6, 5)
    rest = nkd(s, t, y, temperature=2.0, gamma=1.0) - nkd(s, t, y, gamma=0.0)
    own = nkd(t, t, y, temperature=2.0, gamma=1.0) - nkd(t, t, y, gamma=0.0)
    assert (rest - own).item() == pytest.approx(dkd(s, t, y, temperature=2.0, alpha=0.0, beta=1.0).item(), rel=1e-10)


def test_nkd_of_two_classes_is_the_first_term() -> None:
    s, t, y = sample(6, 2)
    assert nkd(s, t, y, temperature=3.0, gamma=100.0).item() == pytest.approx(nkd(s, t, y, gamma=0.0).item(), rel=1e-12)


def test_nkd_leaves_the_target_out_of_the_rest_whatever_its_size() -> None:
    s, t, y = sample(6, 5)
    ahead = torch.nn.functional.one_hot(y, 5) * 1e5
    value = nkd(s + ahead, t + ahead, y)  # the first term is 0: the target is certain
    expected = nkd_oracle(s.numpy(), t.numpy(), y.numpy(), 1.0) - nkd(s, t, y, gamma=0.0).item()
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_nkd_of_a_one_hot_teacher_is_cross_entropy() -> None:
    s, _, y = sample(6, 5)
    s.requires_grad_()
    t = torch.full((6, 5), -math.inf, dtype=F64).scatter(1, y.unsqueeze(1), 0.0)
    value = nkd(s, t, y)
    assert value.item() == pytest.approx(torch.nn.functional.cross_entropy(s, y).item(), rel=1e-12)
    assert torch.autograd.grad(value, s)[0].isfinite().all()
