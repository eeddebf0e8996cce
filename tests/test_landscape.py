"""The loss along filter-normalised directions.

The contract:
- each filter of a direction has the norm of the model's own, drawn alike for models of one architecture and seed;
  biases and norm layers do not move;
- a value of the picture is the mean over all samples of the loss of a model whose weights were moved by hand;
- the model is left as it was, to the bit;
- filters that are scaled in front of a norm layer change neither the picture nor its shape.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd.evidence.landscape import filter_norms, line, plane, random_direction


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    made(torch.randn(32, 2, 5, 5) + 1)  # so that the running statistics are not those of the start
    return made.double().eval()


def samples() -> list[tuple[Tensor, Tensor]]:
    """Two batches of different size."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(10, 2, 5, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (10,), generator=generator)
    return [(inputs[:7], targets[:7]), (inputs[7:], targets[7:])]


def task(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets)


def by_hand(net: nn.Module, *steps: tuple[float, dict[str, Tensor]]) -> float:
    moved = copy.deepcopy(net)
    with torch.no_grad():
        for length, along in steps:
            for name, weight in moved.named_parameters():
                if name in along:
                    weight += length * along[name]
        inputs, targets = (torch.cat(parts) for parts in zip(*samples(), strict=True))
        return float(F.cross_entropy(moved(inputs), targets))


def test_filters_of_a_direction_have_the_norms_of_the_model():
    net = model()
    direction = random_direction(net, seed=3)
    assert set(direction) == {"0.weight", "5.weight"}
    for name, step in direction.items():
        weight = net.get_parameter(name)
        assert step.shape == weight.shape
        assert step.dtype == torch.float64
        for row, own in zip(step, weight.detach(), strict=True):
            assert float(row.norm()) == pytest.approx(float(own.norm()), rel=1e-12)
    assert filter_norms(net.get_parameter("0.weight")).shape == (4, 1, 1, 1)
    assert filter_norms(net.get_parameter("0.bias")) is None


def test_a_draw_is_the_architecture_s_and_the_seed_s():
    first, second = model(0), model(1)
    one, two = random_direction(first, seed=3), random_direction(second, seed=3)
    for name in one:
        rows, others = one[name].flatten(1), two[name].flatten(1)
        torch.testing.assert_close(F.normalize(rows), F.normalize(others))
    again = random_direction(first, seed=3)
    assert all(torch.equal(one[name], again[name]) for name in one)
    for other in (random_direction(first, seed=4), random_direction(first, seed=3, number=1)):
        cosines = [F.cosine_similarity(one[n].flatten(), other[n].flatten(), dim=0) for n in one]
        assert all(abs(float(cosine)) < 0.9 for cosine in cosines)


def test_a_line_is_a_loop_over_moved_models():
    net = model()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    direction = random_direction(net, seed=0)
    alphas = [-1.0, -0.25, 0.0, 0.5]
    scores = {"task": task, "twice": lambda logits, targets: 2 * task(logits, targets)}
    found = line(net, samples(), direction, scores, alphas=alphas)
    wanted = [by_hand(net, (alpha, direction)) for alpha in alphas]
    assert found["task"] == pytest.approx(wanted, rel=1e-12)
    assert found["twice"] == pytest.approx([2 * value for value in wanted], rel=1e-12)
    assert len(set(wanted)) == 4
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_plane_is_a_loop_over_both_directions():
    net = model()
    both = random_direction(net, seed=0), random_direction(net, seed=0, number=1)
    alphas, betas = [-0.5, 0.5], [-1.0, 0.0, 1.0]
    found = plane(net, samples(), both, {"task": task}, alphas=alphas, betas=betas)["task"]
    for row, alpha in zip(found, alphas, strict=True):
        wanted = [by_hand(net, (alpha, both[0]), (beta, both[1])) for beta in betas]
        assert row == pytest.approx(wanted, rel=1e-12)
    along = line(net, samples(), both[0], {"task": task}, alphas=alphas)["task"]
    assert [row[1] for row in found] == pytest.approx(along, rel=1e-12)


def test_the_scale_of_filters_in_front_of_a_norm_does_not_enter():
    net = model()
    scaled = copy.deepcopy(net)
    with torch.no_grad():  # the same function: batch norm divides by 10 again
        scaled[0].weight *= 10
        scaled[0].bias *= 10
        scaled[1].running_mean *= 10
        scaled[1].running_var *= 100
        scaled[1].eps *= 100
    alphas = [-1.0, 0.0, 1.0]
    pictures = [
        line(one, samples(), random_direction(one, seed=0), {"task": task}, alphas=alphas)["task"]
        for one in (net, scaled)
    ]
    assert pictures[0] == pytest.approx(pictures[1], rel=1e-9)
    raw = {name: torch.ones_like(weight) for name, weight in net.named_parameters() if weight.dim() > 1}
    unscaled = [line(one, samples(), raw, {"task": task}, alphas=alphas)["task"] for one in (net, scaled)]
    assert unscaled[0] != pytest.approx(unscaled[1], rel=1e-2)
