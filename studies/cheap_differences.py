"""DOT in sum and difference, with the difference of the two gradients made up from less than a backward pass.

With s = v_task + v_distill, d = v_distill - v_task, and mu, Delta, lambda as in `dotkd.DOT`, DOT is

    s <- mu s + Delta d + g_sum  + lambda theta          g_sum  = g_distill + g_task = J^T (b + a)
    d <- mu d + Delta s + g_diff - lambda theta          g_diff = g_distill - g_task = J^T (b - a)
    theta <- theta - lr s                                (both right sides with the old s and d)

Both losses reach the network through the logits (N, C) alone: J is their Jacobian, a and b are the gradients of the
weighted losses at the logits, which cost next to nothing. g_diff enters by Delta only, and is made up as

    g_diff ~ c g_sum + R,    R an estimate of J^T r,    r = (b - a) - c (b + a),

with c = 0, or (`project`) the number that makes |r| least. R is refreshed every k steps and kept, decayed or continued
on a line in between; or taken from a part of the batch, without bias; or left out.

`sketch` takes both from one pass, g = J^T (b + a + e r) with e = +-kappa, its sign changing from step to step: g stands
for g_sum, c g + g / e for g_diff. What each has too much, e J^T r and g_sum / e, changes sign with e, and a momentum
averages it away. Where g_sum differs from batch to batch something is left of the latter: noise, which enters by Delta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dotkd import losses

MOMENTUM = 0.9


@dataclass(frozen=True)
class Variant:
    """How g_diff is made up.

    momentum, delta, matched: the optimizer; with Delta = 0 there is no g_diff. every: steps between refreshes of R,
    None: no R. between: what becomes of R until then. part: share of the batch that R is taken from. project: c as
    above. last: c and R from the last stage and the head, which need a short backward pass; R = 0 before them. exact:
    from which to which share of training every = 1. sketch: kappa.
    """

    momentum: float = MOMENTUM
    delta: float = 0.075
    matched: bool = False
    every: int | None = 1
    between: Literal["keep", "decay", "extrapolate"] = "keep"
    part: float = 1.0
    project: bool = False
    last: bool = False
    exact: tuple[float, float] = (0.0, 0.0)
    sketch: float = 0.0


VARIANTS: dict[str, Variant] = {
    "kd": Variant(delta=0.0, every=None),
    "matched": Variant(delta=0.0, every=None, matched=True),
    "dot": Variant(),
    "momentum 0.975": Variant(momentum=0.975, delta=0.0, every=None),
    **{f"keep {k}": Variant(every=k) for k in (2, 4, 8)},
    "decay 4": Variant(every=4, between="decay"),
    "extrapolate 4": Variant(every=4, between="extrapolate"),
    "half": Variant(part=0.5),
    "quarter": Variant(part=0.25),
    "project": Variant(every=None, project=True),
    "project keep 4": Variant(every=4, project=True),
    "project quarter": Variant(part=0.25, project=True),
    "last stage": Variant(every=None, last=True),
    "early half": Variant(every=None, project=True, exact=(0.0, 0.5)),
    "late half": Variant(every=None, project=True, exact=(0.5, 1.0)),
    "sketch": Variant(every=None, project=True, sketch=1.0),
}


class Streams:
    """theta, s and d of one variant, and its R. Every tensor has the seeds first, or none where there is one."""

    def __init__(self, variant: Variant, named: dict[str, Tensor], last: str) -> None:
        self.variant, self.theta = variant, list(named.values())
        self.late = [index for index, name in enumerate(named) if name.startswith((last, "head"))]
        self.s, self.d = ([torch.zeros_like(p) for p in self.theta] for _ in range(2))
        self.rest: list[list[Tensor]] = []  # R of the last refreshes, the newest last
        self.age = 0

    def gradients(self, logits: Tensor, of_part: Tensor, a: Tensor, b: Tensor, step: int, share: float) -> Any:
        """(g_sum, g_diff), lists. of_part: the logits of the first samples, for `part`; share: of training done."""
        v = self.variant
        total, c = a + b, torch.zeros(len(a), 1, 1, dtype=a.dtype)
        if v.project:
            c = ((b - a) * total).sum((1, 2), keepdim=True) / (total * total).sum((1, 2), keepdim=True)
        rest = (b - a) - c * total
        if v.sketch:
            sign = v.sketch if step % 2 else -v.sketch
            g_sum = torch.autograd.grad(logits, self.theta, total + sign * rest)
            return g_sum, [_per_seed(c + 1 / sign, g) * g for g in g_sum]
        refresh = v.exact[0] <= share < v.exact[1] or (v.every is not None and step % v.every == 0)
        again = refresh or v.last
        g_sum = torch.autograd.grad(logits, self.theta, total, retain_graph=again)
        if v.last:
            late = torch.autograd.grad(logits, [self.theta[i] for i in self.late], rest)
            own = [g_sum[i] for i in self.late]
            c = _inner(late, own, len(a)) / _inner(own, own, len(a))
            g_diff = [_per_seed(c, g) * g for g in g_sum]
            for i, g in zip(self.late, late, strict=True):
                g_diff[i] = g
            return g_sum, g_diff
        self.age += 1
        if refresh:
            rows = of_part.shape[1]
            cotangent = rest[:, :rows] * (rest.shape[1] / rows)
            self.rest, self.age = [*self.rest[-1:], list(torch.autograd.grad(of_part, self.theta, cotangent))], 0
        elif v.every is None:
            self.rest = []
        g_diff = [_per_seed(c, g) * g for g in g_sum] if v.project else [torch.zeros_like(g) for g in g_sum]
        for index, g in enumerate(g_diff):
            for factor, old in zip(self._factors(), reversed(self.rest), strict=False):
                g.add_(old[index], alpha=factor)
        return g_sum, g_diff

    def _factors(self) -> tuple[float, float]:
        """What the last R and the one before it count now."""
        if self.variant.between == "decay":
            return 0.5**self.age, 0.0
        if self.variant.between == "extrapolate" and len(self.rest) > 1 and self.variant.every:
            return 1 + self.age / self.variant.every, -self.age / self.variant.every
        return 1.0, 0.0

    @torch.no_grad()
    def update(self, g_sum: Sequence[Tensor], g_diff: Sequence[Tensor], *, lr: float, decay: float) -> None:
        v = self.variant
        for theta, s, d, total, difference in zip(self.theta, self.s, self.d, g_sum, g_diff, strict=True):
            before = s.clone()
            s.mul_(v.momentum).add_(d, alpha=v.delta).add_(total).add_(theta, alpha=decay)
            if v.delta:
                d.mul_(v.momentum).add_(before, alpha=v.delta).add_(difference).sub_(theta, alpha=decay)
            theta.sub_(s, alpha=lr)


def _inner(x: Sequence[Tensor], y: Sequence[Tensor], seeds: int) -> Tensor:
    """(S,): the inner products of two lists of gradients."""
    return torch.stack([(g * h).reshape(seeds, -1).sum(1) for g, h in zip(x, y, strict=True)]).sum(0)


def _per_seed(c: Tensor, like: Tensor) -> Tensor:
    return c.reshape(-1, *[1] * (like.dim() - 1))


def at_the_logits(
    logits: Tensor, targets: Tensor, known: Tensor, task: float, distill: float, temperature: float
) -> tuple[Tensor, Tensor]:
    """a and b, (S, N, C): of each seed's weighted losses, which are means over its N samples."""
    leaf = logits.detach().requires_grad_()
    flat = leaf.flatten(0, 1)
    entropy = F.cross_entropy(flat, targets.flatten())
    divergence = losses.kd(flat, known.flatten(0, 1), temperature=temperature)
    (a,) = torch.autograd.grad(task * len(leaf) * entropy, leaf, retain_graph=True)
    (b,) = torch.autograd.grad(distill * len(leaf) * divergence, leaf)
    return a, b
