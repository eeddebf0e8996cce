"""Contrastive representation distillation (Tian, Krishnan & Isola 2020, arXiv 1910.10699)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd import distributed
from dotkd.methods.activations import Activations, Anatomy
from dotkd.methods.card import Card
from dotkd.methods.pairing import lifted

Positives = Literal["exact", "relax"]

# Up to this many times more rows in a memory than are looked up for a sample, products with the whole memory are
# cheaper than looking up: they run at the speed of arithmetic, look-ups at that of memory.
_WHOLE = 32
# Numbers held at a time, by parts of the batch. What is looked up had better stay near the processor.
_PRODUCTS, _LOOKED_UP = 1 << 25, 1 << 22


class CRD(nn.Module):
    """Noise-contrastive estimation that tells the teacher's embedding of the same sample from those of other classes.

    s_i and t_i are linear projections of the embeddings of sample i, of length `dim` and norm 1. Each side has a memory
    of one vector for each of the M training samples. With K other samples drawn as negatives,

        h(a, b)  = x / (x + K / M),   x = exp(<a, b> / tau) / Z
        c(a, B)  = -log h(a, b_pos) - sum over negatives of log(1 - h(a, b_neg)),  b rows of the memory B
        loss     = mean over samples of c(s_i, memory of T) + c(t_i, memory of S)

    section 3.1. Z, one a memory, is M times the mean of exp(<a, b> / tau) over the first batch in training
    mode, and fixed from then on. After the loss of a batch, in training mode, the memories' rows of its samples become

        b <- momentum b + (1 - momentum) a, divided by its norm

    unless that is not finite or 0. In eval mode neither changes. In several processes every one keeps both memories
    whole and equal: the vectors of all are exchanged, and Z is that of the joined first batch.

    The negatives are drawn uniformly, with replacement, from the samples of other classes, afresh for each batch, from
    torch's global generator. The positive is the sample itself ("exact") or any of its class, itself included
    ("relax"); the published results are those of "exact".

    Deviations: the paper's h has no Z; the authors' code, and so the published weight, has. That code adds 1e-7 to x +
    K / M, which is left out: c is computed by logarithms. On CIFAR it draws without replacement where there are enough
    negatives; here K is at most the number of samples of other classes (of the largest class).

    The loss needs K rows of a memory for each sample, but never holds them all: `scores` and `weighted_rows` are equal
    to looking them up. Its gradient is computed with it, as the memory changes before the backward pass; there is no
    second derivative.

    Args:
        targets: (M,) int64 class of each training sample, of two classes at least.
        negatives: K >= 1.
        dim: length of the projections, >= 1.
        tau: > 0, dimensionless.
        momentum: in [0, 1).
        positives: "exact" or "relax".

    Raises:
        TypeError: `targets` that are not int64.
        ValueError: another value outside its rule.
    """

    card = Card(
        title="Contrastive representation distillation",
        paper="Tian, Krishnan & Isola 2020, arXiv 1910.10699, section 3.1",
        equation="c(s, memory of T) + c(t, memory of S), c = -log h(a, b_pos) - sum_neg log(1 - h(a, b_neg)), "
        "h = x / (x + K / M), x = exp(<a, b> / tau) / Z",
        distill_weight=0.8,
        needs=("embedding",),
    )

    label: Tensor
    by_class: Tensor
    first: Tensor
    size: Tensor

    def __init__(
        self,
        student: Anatomy,
        teacher: Anatomy,
        *,
        targets: Tensor,
        negatives: int = 16384,
        dim: int = 128,
        tau: float = 0.07,
        momentum: float = 0.5,
        positives: Positives = "exact",
    ) -> None:
        super().__init__()
        if targets.dtype != torch.int64:
            raise TypeError(f"expected `targets` of int64, got {targets.dtype}")
        if targets.dim() != 1 or len(targets) == 0 or int(targets.min()) < 0:
            raise ValueError(f"expected `targets` (M,) of classes >= 0, M >= 1, got {targets}")
        for name, value in (("negatives", negatives), ("dim", dim)):
            if value < 1:
                raise ValueError(f"expected `{name}` >= 1, got {value}")
        if not 0 < tau < math.inf:
            raise ValueError(f"expected `tau` > 0 and finite, got {tau}")
        if not 0 <= momentum < 1:
            raise ValueError(f"expected `momentum` in [0, 1), got {momentum}")
        if positives not in get_args(Positives):
            raise ValueError(f"expected `positives` to be one of {', '.join(get_args(Positives))}, got {positives!r}")
        size = targets.bincount()
        others = len(targets) - int(size.max())
        if others == 0:
            raise ValueError(f"expected `targets` of two classes at least, got only class {int(targets[0])}")
        self.negatives = min(negatives, others)
        self.positives: Positives = positives
        # What follows from `targets` is no state.
        self.register_buffer("label", targets.clone(), persistent=False)
        self.register_buffer("by_class", targets.argsort(stable=True), persistent=False)
        self.register_buffer("size", size, persistent=False)
        self.register_buffer("first", size.cumsum(0) - size, persistent=False)
        self.student_projector = nn.Linear(student.embedding, dim)
        self.teacher_projector = nn.Linear(teacher.embedding, dim)
        self.student_memory = Memory(len(targets), dim, tau, momentum)
        self.teacher_memory = Memory(len(targets), dim, tau, momentum)

    def forward(self, student: Activations, teacher: Activations, *, index: Tensor) -> Tensor:
        """Return the loss, shape (); `index` (N,) int64 are the batch's positions in `targets`."""
        rows = torch.cat((self._positive(index), self._negative(index)), dim=1)
        # A score of 1 is 1 / tau in an exponent: no place for half precision.
        with torch.autocast(index.device.type, enabled=False):
            s = F.normalize(self.student_projector(lifted(student.embedding)))
            t = F.normalize(self.teacher_projector(lifted(teacher.embedding)))
            loss = self.teacher_memory(s, rows) + self.student_memory(t, rows)
            if self.training:
                everywhere = distributed.concatenated(index)
                self.student_memory.take(distributed.concatenated(s.detach()), everywhere)
                self.teacher_memory.take(distributed.concatenated(t.detach()), everywhere)
        return loss

    def _positive(self, index: Tensor) -> Tensor:
        if self.positives == "exact":
            return index[:, None]
        label = self.label[index]
        return self.by_class[self.first[label] + _below(self.size[label], 1).squeeze(1)][:, None]

    def _negative(self, index: Tensor) -> Tensor:
        """(N, K) samples of other classes: places in the order of classes, those of one's own class skipped."""
        label = self.label[index]
        place = _below(len(self.label) - self.size[label], self.negatives)
        first, size = self.first[label][:, None], self.size[label][:, None]
        return self.by_class[torch.where(place >= first, place + size, place)]


class Memory(nn.Module):
    """One vector for each training sample, and c(a, B) with it; see `CRD`."""

    rows: Tensor
    log_z: Tensor
    has_z: Tensor

    def __init__(self, count: int, dim: int, tau: float, momentum: float) -> None:
        super().__init__()
        self.tau = tau
        self.momentum = momentum
        # Uniform, with a mean squared norm of 1.
        self.register_buffer("rows", torch.empty(count, dim).uniform_(-1, 1) * math.sqrt(3 / dim))
        self.register_buffer("log_z", torch.zeros(()))
        self.register_buffer("has_z", torch.zeros((), dtype=torch.bool))

    def forward(self, anchors: Tensor, chosen: Tensor) -> Tensor:
        """Return mean over samples of c, shape (), for (N, dim) anchors and (N, 1 + K) rows, the positive first."""
        with torch.no_grad():
            exponents = scores(anchors, self.rows, chosen) / self.tau
            offset = self._log_z(exponents) + math.log((chosen.shape[1] - 1) / len(self.rows))
            log_odds = exponents - offset
            value = (F.softplus(-log_odds[:, 0]) + F.softplus(log_odds[:, 1:]).sum(dim=1)).mean()
            slope = log_odds.sigmoid()
            slope[:, 0] -= 1
            gradient = weighted_rows(slope / (len(anchors) * self.tau), self.rows, chosen)
        # 0 with that gradient: what autograd would save for the backward pass is overwritten before it.
        return value + ((anchors - anchors.detach()) * gradient).sum()

    def _log_z(self, exponents: Tensor) -> Tensor:
        found = exponents.flatten().logsumexp(0) + math.log(len(self.rows) / exponents.numel())
        if self.training:
            found = _log_mean_over_processes(found)
        log_z = torch.where(self.has_z, self.log_z, found)
        if self.training:
            sound = log_z.isfinite()
            self.log_z.copy_(torch.where(sound, log_z, self.log_z))
            self.has_z.logical_or_(sound)
        return log_z

    @torch.no_grad()
    def take(self, vectors: Tensor, index: Tensor) -> None:
        """Move the rows of `index` (N,) towards (N, dim) `vectors`."""
        old = self.rows[index]
        new = F.normalize(self.momentum * old + (1 - self.momentum) * vectors)
        sound = new.isfinite().all(dim=1, keepdim=True) & (new != 0).any(dim=1, keepdim=True)
        self.rows.index_copy_(0, index, torch.where(sound, new, old))


def _log_mean_over_processes(value: Tensor) -> Tensor:
    """log of the mean of exp(value), shape () each, over the parts of a batch; alone, the value itself."""
    if distributed.size() == 1:
        return value
    return distributed.concatenated(value[None]).logsumexp(0) - math.log(distributed.size())


def scores(anchors: Tensor, memory: Tensor, chosen: Tensor) -> Tensor:
    """<anchors_n, memory[chosen_nk]>, (N, k), for (N, D) anchors, an (M, D) memory and (N, k) rows of it."""
    if _whole_is_cheaper(memory, chosen):
        parts = [(a @ memory.mT).gather(1, c) for a, c in _parts(anchors, chosen, _PRODUCTS // len(memory))]
    else:
        step = _LOOKED_UP // (chosen.shape[1] * memory.shape[1])
        parts = [(F.embedding(c, memory) @ a[:, :, None]).squeeze(2) for a, c in _parts(anchors, chosen, step)]
    return torch.cat(parts)


def weighted_rows(weights: Tensor, memory: Tensor, chosen: Tensor) -> Tensor:
    """Sum over k of weights_nk memory[chosen_nk], (N, D)."""
    if not _whole_is_cheaper(memory, chosen):
        return F.embedding_bag(chosen, memory, per_sample_weights=weights, mode="sum")
    parts: list[Tensor] = []
    for w, c in _parts(weights, chosen, _PRODUCTS // len(memory)):
        # Flat, because that form is the deterministic one on every device.
        places = c + len(memory) * torch.arange(len(c), device=c.device)[:, None]
        spread = w.new_zeros(len(c) * len(memory)).scatter_add_(0, places.flatten(), w.flatten())
        parts.append(spread.view(len(c), -1) @ memory)
    return torch.cat(parts)


def _whole_is_cheaper(memory: Tensor, chosen: Tensor) -> bool:
    return len(memory) <= _WHOLE * chosen.shape[1]


def _parts(values: Tensor, chosen: Tensor, step: int) -> Iterator[tuple[Tensor, Tensor]]:
    step = max(1, step)
    return zip(values.split(step), chosen.split(step), strict=True)


def _below(bounds: Tensor, count: int) -> Tensor:
    """(N, count) integers drawn uniformly from [0, bounds_n); the remainder's bias is below bounds_n / 2^62."""
    return torch.randint(1 << 62, (len(bounds), count), device=bounds.device) % bounds[:, None]
