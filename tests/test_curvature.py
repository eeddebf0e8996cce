"""The Hessian's largest eigenvalues and its trace.

The contract:
- they are those of the whole matrix, differentiated twice, of the mean over all samples however these are batched; the
  trace within its standard error, which is that of its draws;
- normalised, those of S H S, which scaled filters in front of a norm layer do not change, and whose trace is the mean
  curvature along filter-normalised directions;
- the same seed gives the same bits, and torch's own generator is not touched;
- no warning escapes; a model in training mode, and a missing package, are told.
"""

from __future__ import annotations

import copy
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call

from dotkd.evidence import curvature as module
from dotkd.evidence.curvature import curvature
from dotkd.evidence.landscape import random_direction


def model(width: int = 5) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 3))
    made(torch.randn(64, 5) + 1)
    return made.double().eval()


def samples() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (30,), generator=generator)
    return [(inputs[:20], targets[:20]), (inputs[20:], targets[20:])]


def task(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets)


def whole(net: nn.Module, *, normalised: bool = False) -> Tensor:
    """H or S H S, written out."""
    named = dict(net.named_parameters())
    names = [name for name, weight in named.items() if not normalised or weight.dim() > 1]
    sizes = [named[name].numel() for name in names]
    scale = torch.cat([spread(named[name]) if normalised else torch.ones(named[name].numel()) for name in names])
    inputs, targets = (torch.cat(parts) for parts in zip(*samples(), strict=True))

    def loss(flat: Tensor) -> Tensor:
        parts = zip(names, flat.split(sizes), strict=True)
        return task(functional_call(net, {n: part.view_as(named[n]) for n, part in parts}, (inputs,)), targets)

    found = hessian(loss, torch.cat([named[name].detach().flatten() for name in names]))
    assert isinstance(found, Tensor)
    return scale[:, None] * found * scale


def spread(weight: Tensor) -> Tensor:
    """The norm of a weight's row over the root of the row's length, filter by filter."""
    return torch.cat([row.norm().expand(row.numel()) / math.sqrt(row.numel()) for row in weight.detach()])


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("width", [5, 10])  # 58 parameters, 40 of them with filters; 113, 80
def test_equal_to_the_whole_matrix(normalised, width):
    net = model(width)
    matrix = whole(net, normalised=normalised)
    found = curvature(net, samples(), task, normalised=normalised, top=3)
    wanted = torch.linalg.eigvalsh(matrix).flip(0)
    assert found.eigenvalues == pytest.approx(wanted[:3].tolist(), rel=2e-3)
    mean, error, draws = found.trace
    if width == 5:
        assert (error, draws) == (0.0, 0)
        assert mean == pytest.approx(float(matrix.trace()), rel=1e-9)
    else:
        assert draws == 16
        assert abs(mean - float(matrix.trace())) < 3 * error
        # Of entries +1 and -1 the variance is twice the sum of the squares off the diagonal of what is left over.
        vectors = torch.linalg.eigh(matrix).eigenvectors[:, -3:]
        left = torch.eye(len(matrix)) - vectors @ vectors.T
        rest = left @ matrix @ left
        variance = 2 * float((rest - rest.diag().diag()).square().sum())
        assert error == pytest.approx(math.sqrt(variance / draws), rel=0.6)


def test_scaled_filters_change_the_hessian_but_not_the_normalised_one():
    net = model()
    scaled = copy.deepcopy(net)
    with torch.no_grad():  # the same function
        scaled[0].weight *= 10
        scaled[0].bias *= 10
        scaled[1].running_mean *= 10
        scaled[1].running_var *= 100
        scaled[1].eps *= 100
    one, two = (curvature(each, samples(), task, normalised=True) for each in (net, scaled))
    assert one.eigenvalues == pytest.approx(two.eigenvalues, rel=1e-6)
    assert one.trace.mean == pytest.approx(two.trace.mean, rel=1e-9)
    plain = [curvature(each, samples(), task).eigenvalues[0] for each in (net, scaled)]
    assert abs(plain[0] / plain[1] - 1) > 0.01


def test_normalised_trace_is_the_mean_curvature_of_the_pictures():
    net = model()
    matrix = whole(net, normalised=True)
    names = [name for name, weight in net.named_parameters() if weight.dim() > 1]
    scale = torch.cat([spread(net.get_parameter(name)) for name in names])
    plain = matrix / (scale[:, None] * scale)
    drawn = []
    for seed in range(400):
        direction = random_direction(net, seed=seed)
        along = torch.cat([direction[name].flatten() for name in names])
        drawn.append(float(along @ plain @ along))
    values = torch.tensor(drawn)
    error = float(values.std()) / math.sqrt(len(drawn))
    trace = curvature(net, samples(), task, normalised=True).trace.mean
    assert float(values.mean()) == pytest.approx(trace, abs=3 * error)
    assert error < 0.1 * trace


def test_a_seed_gives_the_same_bits_and_leaves_torch_s_generator_alone():
    net = model(10)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two = (curvature(net, samples()[:1], task, normalised=True, top=1, seed=7) for _ in range(2))
    assert one == two
    assert torch.equal(torch.get_rng_state(), before)


def test_a_flat_loss_has_zero_curvature():
    net = model(10)
    found = curvature(net, samples(), lambda logits, targets: F.relu(logits - 1e6).sum(), top=2)
    assert found.eigenvalues == [0.0, 0.0]
    assert found.trace[:2] == (0.0, 0.0)


def test_what_is_refused(monkeypatch):
    net = model()
    with pytest.raises(ValueError, match="expected `top` >= 1, got 0"):
        curvature(net, samples(), task, top=0)
    with pytest.raises(ValueError, match="expected a model in eval mode"):
        curvature(copy.deepcopy(net).train(), samples(), task)
    with pytest.raises(ValueError, match="expected a model with a parameter of two dimensions or more, got none"):
        curvature(nn.BatchNorm1d(5).double().eval(), samples(), task, normalised=True)
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    with pytest.raises(ModuleNotFoundError, match=r"install the extra `analysis`: pip install 'dotkd\[analysis\]'"):
        module.curvature(net, samples(), task)
