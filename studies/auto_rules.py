"""Rules by which Delta sets itself, and DOT under them, for many runs at once.

g_t, g_d are the gradients of the weighted task and distillation loss at theta, v_t, v_d their buffers before the step;
mu, Delta, lambda and lr are those of `dotkd.DOT`. A rule finds Delta anew in every step, from what an optimizer has at
hand without another pass. Most of them steer

    rho <- clip(rho + GAIN x signal, 0, log 10),     Delta = (1 - mu) (1 - exp(-rho)),

so that exp(rho) = (1 - mu) / (1 - mu - Delta) is how much further than plain KD a steady distillation gradient is
followed: 1 to 10 times, with mu = 0.9 a Delta in [0, 0.09]. A signal lies in [-1, 1], positive to grow:

    buffer          cos(g_d, v_d)
    hypergradient   cos(g_t + g_d, v_d - v_t): v_d - v_t is what one step's Delta adds to v_t + v_d (the hypergradient
                    of Baydin et al. 2018, arXiv 1703.04782, for Delta and normalised)
    sensitivity     -cos(g_t + g_d, z), z = d theta / d Delta carried through all steps, the curvature left out:
                    w_d <- (mu + Delta) w_d + v_d;  w_t <- (mu - Delta) w_t - v_t;  z <- z - lr (w_d + w_t)
    displacement    cos(g_t + g_d, theta_0 - theta): does it still pay to go on from where training began?
    both            the smaller of cos(g_t, theta_0 - theta) and cos(g_d, theta_0 - theta): does it pay for both losses?
    both, z         the same of -cos(g_t, z) and -cos(g_d, z)

The others give Delta itself:

    snr             (1 - mu) p, p the share of signal in the distillation gradient: with b = (1 - m) v_d and
                    r = (1 - m) / (1 + m), m = mu + Delta, p = (|b|^2 / |g_d|^2 - r) / (1 - r); means over 50 steps
    distance        exp(rho) = (1 - mu) max_i |theta_i - theta_0| / (lr_0 sqrt(sum_i |g_i|^2)): the step of DoG (Ivgi et
                    al. 2023, arXiv 2302.12022) over KD's, lr_0 the configured learning rate
    agreement       0.09 cos(g_t, g_d), mean over 50 steps
    annealed, late  0.075 (1 - t / T) and 0.075 t / T

A cell of the study is a rule, or a fixed Delta, and what it drives (`form`): `dot`; `matched`, one momentum with the
losses and the decay weighed as DOT weighs them in a steady state; `rate`, plain KD with lr times exp(rho).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from cheap_differences import MOMENTUM, at_the_logits
from stacked_students import Problem, Students
from torch import Tensor

from dotkd import schedule

REST = 1 - MOMENTUM
LONGEST = 10.0  # exp(rho) at most: Delta at most 0.09
GAIN = 0.1
MEAN = 0.02  # share of the newest value in a running mean


@dataclass(frozen=True)
class Seen:
    """What a rule sees of its runs: vectors (R, P), Delta and numbers of a run (R,). lr is this step's."""

    g_t: Tensor
    g_d: Tensor
    v_t: Tensor
    v_d: Tensor
    theta: Tensor
    delta: Tensor
    lr: float
    lr_0: float
    share: float  # of training done


Memory = dict[str, Tensor]
Rule = Callable[[Seen, Memory], Tensor]  # Delta (R,); a rule keeps in the memory what it likes


@dataclass(frozen=True)
class Cell:
    """A fixed Delta or a rule, and what it drives."""

    delta: float | Rule
    form: Literal["dot", "matched", "rate"] = "dot"


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """(R,); 0 where a vector is 0."""
    return (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1)).clamp_min(1e-30)


def steered(signal: Rule) -> Rule:
    """The rule that steers rho by a signal."""

    def rule(seen: Seen, memory: Memory) -> Tensor:
        rho = memory.get("rho", torch.zeros_like(seen.delta)) + GAIN * signal(seen, memory)
        memory["rho"] = rho.clamp(0, math.log(LONGEST))
        return REST * (1 - torch.exp(-memory["rho"]))

    return rule


def buffer(seen: Seen, memory: Memory) -> Tensor:
    return cosine(seen.g_d, seen.v_d)


def hypergradient(seen: Seen, memory: Memory) -> Tensor:
    return cosine(seen.g_t + seen.g_d, seen.v_d - seen.v_t)


def one_buffer(seen: Seen, memory: Memory) -> Tensor:
    """The hypergradient of the learning rate."""
    return cosine(seen.g_t + seen.g_d, seen.v_t + seen.v_d)


def sensitivity(seen: Seen, memory: Memory) -> Tensor:
    return -cosine(seen.g_t + seen.g_d, _z(seen, memory))


def both_z(seen: Seen, memory: Memory) -> Tensor:
    z = _z(seen, memory)
    return torch.minimum(-cosine(seen.g_t, z), -cosine(seen.g_d, z))


def _z(seen: Seen, memory: Memory) -> Tensor:
    """z at this theta: first what the step that led here made of it, with its Delta, its lr and its old buffers."""
    if "z" not in memory:
        memory.update({name: torch.zeros_like(seen.theta) for name in ("z", "w_d", "w_t")})
    else:
        delta = seen.delta.unsqueeze(1)
        memory["w_d"] = (MOMENTUM + delta) * memory["w_d"] + memory["v_d"]
        memory["w_t"] = (MOMENTUM - delta) * memory["w_t"] - memory["v_t"]
        memory["z"] = memory["z"] - memory["lr"] * (memory["w_d"] + memory["w_t"])
    memory.update(v_d=seen.v_d.clone(), v_t=seen.v_t.clone(), lr=torch.tensor(seen.lr))
    return memory["z"]


def displacement(seen: Seen, memory: Memory) -> Tensor:
    return cosine(seen.g_t + seen.g_d, _way_back(seen, memory))


def both(seen: Seen, memory: Memory) -> Tensor:
    back = _way_back(seen, memory)
    return torch.minimum(cosine(seen.g_t, back), cosine(seen.g_d, back))


def _way_back(seen: Seen, memory: Memory) -> Tensor:
    if "start" not in memory:
        memory["start"] = seen.theta.clone()
    return memory["start"] - seen.theta


def snr(seen: Seen, memory: Memory) -> Tensor:
    m = MOMENTUM + seen.delta
    r = (1 - m) / (1 + m)
    found = {"b": ((1 - m) * seen.v_d.norm(dim=1)) ** 2, "g": seen.g_d.norm(dim=1) ** 2}
    for name, value in found.items():
        memory[name] = (1 - MEAN) * memory.get(name, torch.zeros_like(value)) + MEAN * value
    return REST * ((memory["b"] / memory["g"] - r) / (1 - r)).clamp(0, 1 - 1 / LONGEST)


def distance(seen: Seen, memory: Memory) -> Tensor:
    far = _way_back(seen, memory).norm(dim=1)
    memory["far"] = torch.maximum(memory.get("far", far), far)
    squares = (seen.g_t + seen.g_d).norm(dim=1) ** 2
    memory["squares"] = memory.get("squares", torch.zeros_like(squares)) + squares
    factor = memory["far"] / memory["squares"].sqrt() / (seen.lr_0 / REST)
    return REST * (1 - 1 / factor.clamp(1, LONGEST))


def agreement(seen: Seen, memory: Memory) -> Tensor:
    mean = (1 - MEAN) * memory.get("mean", torch.zeros_like(seen.delta)) + MEAN * cosine(seen.g_t, seen.g_d)
    memory["mean"] = mean
    return 0.09 * mean.clamp_min(0)


def annealed(seen: Seen, memory: Memory) -> Tensor:
    return torch.full_like(seen.delta, 0.075 * (1 - seen.share))


def late(seen: Seen, memory: Memory) -> Tensor:
    return torch.full_like(seen.delta, 0.075 * seen.share)


def train(problem: Problem, cells: Sequence[Cell], seeds: Sequence[int], most: int = 0) -> tuple[Students, Tensor]:
    """Every cell with every seed, in one stack; to the end, or for the first `most` > 0 steps.

    Returns the students, R = cells x seeds, cell by cell, and the mean Delta of each run in each tenth, (10, R).
    """
    copies = [problem.student(seed) for _ in cells for seed in seeds]
    students, count, per_cell = Students(copies), len(copies), len(seeds)
    theta, leaves = _flat(students, count)
    g_t, g_d, v_t, v_d = (torch.zeros_like(theta) for _ in range(4))
    rows = [slice(place * per_cell, (place + 1) * per_cell) for place in range(len(cells))]
    memories: list[Memory] = [{} for _ in cells]
    delta = torch.zeros(count, dtype=theta.dtype)
    forms = [cell.form for cell in cells for _ in seeds]
    is_dot, is_matched, is_rate = (torch.tensor([f == form for f in forms]) for form in ("dot", "matched", "rate"))

    task, distill, _ = schedule.weights(problem.config)
    decay, lr_0 = problem.config.weight_decay, problem.config.lr
    trace: list[Tensor] = []
    for step, lr, batch in problem.training(seeds, most):
        inputs, targets, known = (x.repeat(len(cells), *[1] * (x.dim() - 1)) for x in batch)
        logits = students(inputs)
        a, b = at_the_logits(logits, targets, known, task, distill, problem.temperature)
        _gather(g_t, torch.autograd.grad(logits, leaves, a, retain_graph=True))
        _gather(g_d, torch.autograd.grad(logits, leaves, b))
        with torch.no_grad():
            for cell, mine, memory in zip(cells, rows, memories, strict=True):
                vectors = (x[mine] for x in (g_t, g_d, v_t, v_d, theta, delta))
                rule = cell.delta
                delta[mine] = rule(Seen(*vectors, lr, lr_0, step / problem.steps), memory) if callable(rule) else rule
            _step(theta, (g_t + decay * theta, g_d), (v_t, v_d), delta, (is_dot, is_matched, is_rate), lr)
        trace.append(delta.clone())
    return students, torch.stack([part.mean(0) for part in torch.stack(trace).tensor_split(10)])


def _step(
    theta: Tensor, g: tuple[Tensor, Tensor], v: tuple[Tensor, Tensor], delta: Tensor, forms: Iterable[Tensor], lr: float
) -> None:
    """One step of every run by its form; the decay is in g already."""
    is_dot, is_matched, is_rate = forms
    apart = (delta * is_dot).unsqueeze(1)
    less = torch.where(is_matched, REST / (REST + delta), torch.ones_like(delta)).unsqueeze(1)
    more = torch.where(is_matched, REST / (REST - delta), torch.ones_like(delta)).unsqueeze(1)
    v[0].mul_(MOMENTUM - apart).add_(less * g[0])
    v[1].mul_(MOMENTUM + apart).add_(more * g[1])
    longer = torch.where(is_rate, REST / (REST - delta), torch.ones_like(delta)).unsqueeze(1)
    theta.sub_(lr * longer * (v[0] + v[1]))


def _flat(students: Students, count: int) -> tuple[Tensor, list[Tensor]]:
    """All parameters as one tensor (R, P), and the leaves that share its memory and that the students now use."""
    names: Mapping[str, Tensor] = dict(students.params)
    theta = torch.cat([value.detach().reshape(count, -1) for value in names.values()], 1)
    leaves, begin = [], 0
    for name, value in names.items():
        end = begin + value[0].numel()
        students.params[name] = theta[:, begin:end].view(value.shape).detach().requires_grad_()
        leaves.append(students.params[name])
        begin = end
    return theta, leaves


def _gather(out: Tensor, gradients: Sequence[Tensor]) -> None:
    begin = 0
    for gradient in gradients:
        flat = gradient.reshape(len(out), -1)
        out[:, begin : begin + flat.shape[1]] = flat
        begin += flat.shape[1]
