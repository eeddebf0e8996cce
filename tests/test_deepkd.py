"""The contract of `dotkd.losses.deepkd` and of the three streams that it is made for.

1. Parts: each equals its formula, written out in `loss_oracles`, under any mask; with all classes their sum is kd, or
   dkd where beta is given.
2. Mask: the k largest of the teacher's other classes, for both sides; the rest of the logits has no influence on the
   part, and gets no gradient from it.
3. Schedule: 5 % at the start, the plateau in the middle third, all at the end; never falling, never below two.
4. Streams: StreamSGD with three momenta equals three torch.optim.SGD on the same parameters, decay in the task's.
5. Wrong input is refused in words.
"""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dotkd.losses import deepkd, dkd, kd
from dotkd.losses.deepkd import kept_classes
from dotkd.optim import StreamSGD
from loss_oracles import deepkd_oracle, sample

# 1. Parts


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("weights", [{}, {"alpha": 0.5, "beta": 2.0}])
@pytest.mark.parametrize("classes", [2, 3, 5, 40])
def test_parts_equal_the_formula(classes: int, progress: float, weights: dict[str, float]) -> None:
    s, t, y = sample(6, classes)
    parts = deepkd(s, t, y, progress=progress, temperature=2.0, **weights)
    expected = deepkd_oracle(s.numpy(), t.numpy(), y.numpy(), 2.0, k=kept_classes(classes, progress), **weights)
    assert parts.keys() == expected.keys()
    for name, part in parts.items():
        assert part.item() == pytest.approx(expected[name], rel=1e-9, abs=1e-12), name


def test_parts_with_all_classes_add_up_to_kd() -> None:
    s, t, y = sample(7, 5)
    s.requires_grad_()
    parts = deepkd(s, t, y, progress=1.0, temperature=3.0)
    total = parts["target"] + parts["nontarget"]
    whole = kd(s, t, temperature=3.0)
    assert total.item() == pytest.approx(whole.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(total, s), torch.autograd.grad(whole, s))


def test_parts_with_all_classes_add_up_to_dkd() -> None:
    s, t, y = sample(7, 5)
    parts = deepkd(s, t, y, progress=1.0, temperature=3.0, alpha=0.5, beta=8.0)
    for name, weights in (("target", {"alpha": 0.5, "beta": 0.0}), ("nontarget", {"alpha": 0.0, "beta": 8.0})):
        assert torch.equal(parts[name], dkd(s, t, y, temperature=3.0, **weights))


def test_target_part_does_not_see_the_mask() -> None:
    s, t, y = sample(7, 40)
    assert torch.equal(deepkd(s, t, y, progress=0.0)["target"], deepkd(s, t, y, progress=1.0)["target"])


# 2. Mask


def test_masked_classes_have_no_influence_on_the_part() -> None:
    t = torch.tensor([[9.0, 5.0, 4.0, 3.0, 2.0, 1.0]], dtype=torch.float64)
    s = torch.tensor([[0.0, 1.0, -1.0, 3.0, 0.5, 2.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([2])
    # Five others and a plateau of 0.6: classes 0, 1 and 3 stay; the target does not take a place.
    part = deepkd(s, t, target, progress=0.5, plateau=0.6, beta=1.0, temperature=1.0)["nontarget"]
    kept = [0, 1, 3]
    assert part.item() == pytest.approx(kd(s[:, kept], t[:, kept], temperature=1.0).item(), rel=1e-12)
    (grad,) = torch.autograd.grad(part, s)
    assert (grad[:, [2, 4, 5]] == 0).all()
    assert (grad[:, kept] != 0).all()
    moved = torch.tensor([[0.0, 0.0, 0.0, 0.0, 70.0, -math.inf]], dtype=torch.float64)
    again = deepkd(s + moved, t, target, progress=0.5, plateau=0.6, beta=1.0, temperature=1.0)["nontarget"]
    assert again.item() == part.item()


def test_fewer_unmasked_classes_than_places() -> None:
    s, t, y = sample(6, 5)
    t[:, 2:] = s[:, 2:] = -math.inf
    y = y.clamp(max=1)
    parts = deepkd(s, t, y, progress=0.5, plateau=0.75)  # three places, one class beside the target
    assert parts["nontarget"].item() == 0.0
    assert parts["target"].item() == pytest.approx(kd(s[:, :2], t[:, :2]).item(), rel=1e-12)


def test_two_classes_leave_the_target_part_alone() -> None:
    s, t, y = sample(6, 2)
    parts = deepkd(s, t, y, progress=0.0)
    assert parts["nontarget"].item() == 0.0
    assert parts["target"].item() == pytest.approx(kd(s, t).item(), rel=1e-12)


# 3. Schedule


def test_schedule_of_a_hundred_classes() -> None:
    assert [kept_classes(101, p) for p in (0.0, 1 / 3, 0.5, 2 / 3, 1.0)] == [5, 50, 50, 50, 100]
    assert kept_classes(101, 1 / 6) == round(100 * (0.05 + 0.45 / 2))
    assert kept_classes(101, 5 / 6) == 75


@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1000])
@pytest.mark.parametrize(("easy", "hard"), [(1 / 3, 2 / 3), (0.0, 1.0), (0.0, 0.0), (1.0, 1.0)])
def test_schedule_grows_to_all(classes: int, easy: float, hard: float) -> None:
    counts = [kept_classes(classes, step / 200, easy=easy, hard=hard) for step in range(201)]
    assert counts == sorted(counts)
    assert counts[0] >= min(2, classes - 1)
    assert counts[-1] == classes - 1


# 4. Streams


def test_three_streams_equal_three_sgds() -> None:
    """Equation 7, with the losses' gradients at the same parameters; the decay is the task's."""
    delta, mu, lr, decay = 0.075, 0.9, 0.05, 5e-4
    momenta = {"task": mu + delta, "target": mu - delta, "nontarget": mu + delta}
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 6)).double()
    literal = copy.deepcopy(model)
    streams = StreamSGD(
        model.parameters(), momenta=momenta, momentum=mu, decay_stream="task", lr=lr, weight_decay=decay
    )
    replicas = {name: copy.deepcopy(literal) for name in momenta}
    sgds = {
        name: torch.optim.SGD(
            replica.parameters(), lr=lr, momentum=momenta[name], weight_decay=decay if name == "task" else 0.0
        )
        for name, replica in replicas.items()
    }

    def losses(net: torch.nn.Module, step: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
        teacher = torch.randn(5, 6, generator=generator, dtype=torch.float64)
        y = torch.randint(6, (5,), generator=generator)
        logits = net(x)
        return {"task": F.cross_entropy(logits, y), **deepkd(logits, teacher, y, progress=step / 20)}

    for step in range(20):
        streams.backward(**losses(model, step))
        streams.step()
        streams.zero_grad()
        before = [p.detach().clone() for p in literal.parameters()]
        moves = [torch.zeros_like(p) for p in before]
        for name, replica in replicas.items():
            replica.load_state_dict(literal.state_dict())
            sgds[name].zero_grad()
            losses(replica, step)[name].backward()
            sgds[name].step()
            moves = [
                move + (p.detach() - old) for move, p, old in zip(moves, replica.parameters(), before, strict=True)
            ]
        with torch.no_grad():
            for p, move in zip(literal.parameters(), moves, strict=True):
                p += move
        for ours, theirs in zip(model.parameters(), literal.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


# 5. Wrong input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"progress": 1.5}, "expected `progress` in [0, 1], got 1.5"),
        ({"progress": math.nan}, "expected `progress` in [0, 1], got nan"),
        ({"first": 0.6}, "expected 0 <= `first` <= `plateau` <= 1, got 0.6 and 0.5"),
        ({"plateau": 1.5}, "expected 0 <= `first` <= `plateau` <= 1, got 0.05 and 1.5"),
        ({"easy": 0.9}, f"expected 0 <= `easy` <= `hard` <= 1, got 0.9 and {2 / 3}"),
        ({"alpha": -1.0}, "expected `alpha` >= 0 and finite, got -1.0"),
        ({"beta": math.inf}, "expected `beta` >= 0 and finite, got inf"),
        ({"target": torch.tensor([0, 3])}, "expected `target` in [0, 3), the number of classes, got 3"),
    ],
)
def test_refuses_wrong_options(options: dict[str, Any], message: str) -> None:
    zeros = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=re.escape(message)):
        deepkd(zeros, zeros, **{"target": torch.tensor([0, 1]), "progress": 0.5, **options})
