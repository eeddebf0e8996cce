"""The contract of the signal-to-noise ratio of the streams (`dotkd.optim.diagnostics`).

- snr is what the literal weights of a buffer give, and is unbiased: with known mean and covariance it is their ratio.
- 0 where the estimate is negative; None without noise, without momentum and in the first step.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dotkd
from dotkd.optim.diagnostics import measure
from optim_cases import fill, make_params, random_grads


def joined(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


RULES = {
    "DOT": (dotkd.DOT, {}, {"task": 0.825, "distill": 0.975}, 1.0, 1.0),
    "dampening": (dotkd.DOT, {"dampening": 0.4}, {"task": 0.825, "distill": 0.975}, 1.0, 0.6),
    "normalize": (dotkd.DOT, {"normalize": True, "nesterov": True}, {"task": 0.825, "distill": 0.975}, 1.0, 1.0),
    "decay": (dotkd.DOT, {"weight_decay": 0.3, "lr": 0.0}, {"task": 0.825, "distill": 0.975}, 1.0, 1.0),
    "AdamW": (dotkd.DOTAdamW, {"weight_decay": 0.1}, {"task": 0.825, "distill": 0.975}, None, None),
}


@pytest.mark.parametrize("steps", [2, 3, 7])
@pytest.mark.parametrize("rule", RULES)
def test_snr_is_what_the_weights_of_a_buffer_give(rule, steps):
    build, options, momenta, first, later = RULES[rule]
    params, generator = make_params([(40, 5), (100,)], seed=1), torch.Generator().manual_seed(0)
    optimizer = build(params, **{"lr": 0.01, **options})
    history = {name: [] for name in momenta}
    for step in range(steps):
        grads = {name: [2 + g for g in some] for name, some in random_grads(params, momenta, generator).items()}
        for name, some in grads.items():
            history[name].append(joined(some))
        fill(optimizer, params, grads)
        optimizer.step()
        measured = measure(optimizer)
        if step < steps - 1:
            optimizer.zero_grad()
    for name, m in momenta.items():
        weights = [(later if i else first) * m ** (steps - 1 - i) if first else m**-i for i in range(steps)]
        weights = [w / sum(weights) for w in weights]
        b = sum(w * g for w, g in zip(weights, history[name], strict=True))
        r, now = sum(w * w for w in weights), history[name][-1]
        signal = (b @ b - r * now @ now) / (1 - r)
        noise = (now @ now - b @ b) / (1 - r)
        assert signal > 0
        assert noise > 0
        assert measured.read(steps)["snr"][name] == pytest.approx((signal / noise).item(), rel=1e-3)


@pytest.mark.parametrize("rule", RULES)
def test_snr_of_gradients_with_known_mean_and_covariance_is_their_ratio(rule):
    build, options, _, _, _ = RULES[rule]
    size, generator = 20_000, torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.randn(size, generator=generator))
    optimizer = build([p], **{"lr": 1e-4, **options})
    spread = torch.linspace(0.1, 2, size)
    means = {"task": 0.8 * torch.randn(size, generator=generator), "distill": torch.full((size,), 0.4)}
    estimates = {name: [] for name in means}
    for step in range(1, 161):
        grads = {name: [mean + spread * torch.randn(size, generator=generator)] for name, mean in means.items()}
        fill(optimizer, [p], grads)
        optimizer.step()
        if step in (40, 80, 120, 160):
            for name, value in measure(optimizer).read(step if step < 160 else None)["snr"].items():
                estimates[name].append(value)
        optimizer.zero_grad()
    for name, mean in means.items():
        truth = (mean.square().sum() / spread.square().sum()).item()
        assert sum(estimates[name]) / 4 == pytest.approx(truth, rel=0.03)


def after(sequence, **options):
    (p,) = params = make_params([(50,)])
    optimizer = dotkd.DOT(params, lr=0.01, **options)
    for factors in sequence:
        optimizer.zero_grad()
        fill(optimizer, params, {name: [factor * torch.ones_like(p)] for name, factor in factors.items()})
        optimizer.step()
    return measure(optimizer).read(len(sequence))


def test_where_there_is_no_signal_or_no_noise():
    signs = [{"task": (-1.0) ** step, "distill": 1.0} for step in range(30)]
    assert after(signs)["snr"] == {"task": 0.0, "distill": None}
    assert after([{"task": 1.0 + step, "distill": 2.0} for step in range(1)])["snr"] == {"task": None, "distill": None}
    found = after(signs, momentum=0.3, delta=0.3)
    assert found["snr"] == {"task": None, "distill": None}
    assert found["buffer_norm"]["task"] == pytest.approx(found["grad_norm"]["task"])
