"""Class-oriented relational self distillation (Yu et al. 2023, arXiv 2305.00918)."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd import distributed
from dotkd.losses._divergence import check_weights, kl_divergence, log_probabilities
from dotkd.methods.activations import Activations, Anatomy
from dotkd.methods.card import Card
from dotkd.methods.pairing import lifted
from dotkd.methods.relation import LogitRelation, RelationNetwork


class CORSD(nn.Module):
    """How a student sees pairs of samples at its deepest point teaches how it sees them at shallower ones.

    There is no teacher: the second argument of a call is not looked at. Every sample a of a batch is an anchor; drawn
    for it are p, another sample of its class, and n, one of another class. A relation network at each point j sees two
    maps of that point and gives r_j in (0, 1), small for what belongs together, and logits z_j of an auxiliary
    classifier. With y_a, y_n the classes, [.] one-hot, L the deepest point, sg without gradient, T the temperature:

        triplet      = alpha sum_j max(r_j(a, p) - r_j(a, n) + margin, 0)
        auxiliary    = sum_j same CE(z_j(a, p), y_a) + other CE(z_j(a, n), ([y_a] + [y_n]) / 2)
        relation     = beta sum_{j<L} (r_j(a, p) - sg r_L(a, p))^2 + (r_j(a, n) - sg r_L(a, n))^2
        auxiliary_kd = sum_{j<L} T^2 (same_kd KL(sg z_L(a, p) || z_j(a, p)) + other_kd KL(sg z_L(a, n) || z_j(a, n)))
        logits       = gamma (rho(q_a, m_{y_a}) - rho(q_a, m_c)),   c a class drawn from the others

    each a mean over the anchors that have the partner needed, with KL between softmax(z / T). In the last, q is the
    softmax of the student's logits, m_k its moving average over samples of class k, and rho a small relation network.
    The first two, made of labels, belong to the task stream, the others to the distillation stream.

    What is known: the abstract, and the authors' code (muzhou-yu/CORSD), which has these terms and all the weights
    below, but does not run as published. The text of the paper could not be had, so nothing here is held against its
    equations. Deviations from the code:
    * It draws p and n from the whole training set and feeds three times the batch; here they come from the batch. An
      anchor without a partner counts in no term that needs it: at 64 samples of 100 classes about half have a p.
    * It hands raw logits to a KL divergence that expects log-probabilities, and averages over classes too.
    * It lets the gradient of the distilling terms into the deepest point as well; the abstract names a direction.
    * It softens the soft labels of (a, n) once more by a softmax at T, which makes them nearly uniform.
    * It sums its average predictions without end, over one-sample batch normalisation, which cannot run, and joins both
      vectors through one hidden unit, which cannot compare them. Here: a moving average with `decay`, the mean over the
      batch, as many hidden units as classes.

    Batches of one have no pairs: all terms are 0. In several processes the pairs are drawn within each one's part of a
    batch, while the averages m are those of the whole batch.

    Args:
        margin: of the triplet loss; r lies in (0, 1), so that 1 keeps every triplet active.
        alpha, beta, gamma, same, other, same_kd, other_kd: weights as above, >= 0.
        temperature: T > 0.
        decay: of the moving averages m, for each batch in which the class occurs, in [0, 1).

    Attributes:
        class_means: (K, K) float32, m_k in row k; at first the one-hot vectors.
    """

    card = Card(
        title="Class-oriented relational self distillation",
        paper="Yu, Tan, Wu, Dong, Zhang & Ma 2023, arXiv 2305.00918",
        equation="alpha sum_j max(r_j(a,p) - r_j(a,n) + margin, 0) + sum_j same CE(z_j(a,p)) + other CE(z_j(a,n)) + "
        "sum_{j<L} beta (r_j - r_L)^2 + kd T^2 KL(z_L || z_j) + gamma (rho(q_a, m_y) - rho(q_a, m_c))",
        temperature=3.0,
        needs=("features",),
        streams=MappingProxyType(
            {
                "triplet": "task",
                "auxiliary": "task",
                "relation": "distill",
                "auxiliary_kd": "distill",
                "logits": "distill",
            }
        ),
    )
    teacherless = True
    class_means: Tensor

    def __init__(
        self,
        student: Anatomy,
        teacher: Anatomy,
        *,
        margin: float = 1.0,
        alpha: float = 0.01,
        beta: float = 0.01,
        gamma: float = 0.01,
        same: float = 0.04,
        other: float = 0.01,
        same_kd: float = 0.16,
        other_kd: float = 0.04,
        temperature: float = 3.0,
        decay: float = 0.99,
    ) -> None:
        super().__init__()
        if len(student.features) < 2:
            raise ValueError(
                f"expected at least 2 feature maps of the student, which CORSD compares, got {len(student.features)}"
            )
        if student.logits < 2:
            raise ValueError(f"expected at least 2 classes, got {student.logits}")
        check_weights(alpha=alpha, beta=beta, gamma=gamma, margin=margin)
        check_weights(same=same, other=other, same_kd=same_kd, other_kd=other_kd)
        if not 0 < temperature < math.inf:
            raise ValueError(f"expected `temperature` > 0 and finite, got {temperature}")
        if not 0 <= decay < 1:
            raise ValueError(f"expected `decay` in [0, 1), got {decay}")
        self.margin, self.alpha, self.beta, self.gamma = margin, alpha, beta, gamma
        self.same, self.other, self.same_kd, self.other_kd = same, other, same_kd, other_kd
        self.temperature, self.decay = temperature, decay
        shapes = student.features
        self.relations = nn.ModuleList(RelationNetwork(shapes[j:], student.logits) for j in range(len(shapes)))
        self.logit_relation = LogitRelation(student.logits)
        self.register_buffer("class_means", torch.eye(student.logits))

    def forward(self, student: Activations, teacher: Activations, *, target: Tensor) -> dict[str, Tensor]:
        """Return the five losses, shape () each; `target` (N,) int64."""
        if target.shape[0] == 1:
            zero = student.features[-1].float().sum() * 0.0
            return dict.fromkeys(self.card.streams, zero)
        partners = _draw_partners(target)
        both = partners.has_same * partners.has_other
        classes = torch.arange(self.class_means.shape[0], device=target.device)
        own = (target[:, None] == classes).float()
        soft = (own + own[partners.other]) / 2
        views = [
            (network(maps, maps[partners.same]), network(maps, maps[partners.other]))
            for network, maps in zip(self.relations, student.features, strict=True)
        ]
        (deep_p, deep_zp), (deep_n, deep_zn) = (tuple(part.detach() for part in view) for view in views[-1])
        triplet = auxiliary = relation = auxiliary_kd = own.sum() * 0.0
        for (p, _), (n, _) in views:
            triplet = triplet + _mean((p - n + self.margin).relu(), both)
        for (_, zp), (_, zn) in views:
            auxiliary = auxiliary + self.same * _mean(_cross_entropy(zp, own), partners.has_same)
            auxiliary = auxiliary + self.other * _mean(_cross_entropy(zn, soft), partners.has_other)
        for (p, zp), (n, zn) in views[:-1]:
            relation = relation + _mean((p - deep_p).square(), partners.has_same)
            relation = relation + _mean((n - deep_n).square(), partners.has_other)
            auxiliary_kd = auxiliary_kd + self.same_kd * _mean(self._divergence(zp, deep_zp), partners.has_same)
            auxiliary_kd = auxiliary_kd + self.other_kd * _mean(self._divergence(zn, deep_zn), partners.has_other)
        return {
            "triplet": self.alpha * triplet,
            "auxiliary": auxiliary,
            "relation": self.beta * relation,
            "auxiliary_kd": auxiliary_kd,
            "logits": self.gamma * self._logit_loss(student.logits, target, own),
        }

    def _divergence(self, student: Tensor, deepest: Tensor) -> Tensor:
        """T^2 KL of each pair, (N, K) -> (N,)."""
        log_p = log_probabilities(deepest, self.temperature)
        return kl_divergence(log_p, log_probabilities(student, self.temperature)) * self.temperature**2

    def _logit_loss(self, logits: Tensor, target: Tensor, own: Tensor) -> Tensor:
        q = lifted(logits).softmax(dim=1)
        if self.training:
            self._average(q.detach(), own)
        classes = self.class_means.shape[0]
        other = (target + torch.randint(1, classes, target.shape, device=target.device)) % classes
        means = self.class_means.to(q.dtype)
        return (self.logit_relation(q, means[target]) - self.logit_relation(q, means[other])).mean()

    @torch.no_grad()
    def _average(self, q: Tensor, own: Tensor) -> None:
        # Matrix products, not scatters: their order, and so the result, is the same every time.
        finite = q.isfinite().all(dim=1, keepdim=True)
        with torch.autocast(q.device.type, enabled=False):
            members = (own * finite).to(self.class_means.dtype)
            sums = members.T @ torch.where(finite, q, 0.0).to(self.class_means.dtype)
        sums, counts = distributed.summed(sums), distributed.summed(members.sum(dim=0))[:, None]
        moved = self.class_means.lerp(sums / counts.clamp(min=1.0), 1 - self.decay)
        self.class_means.copy_(torch.where(counts > 0, moved, self.class_means))


class _Partners(NamedTuple):
    """For each anchor the index of a sample of its class and of one of another; the anchor itself where none exists."""

    same: Tensor
    other: Tensor
    has_same: Tensor  # 1.0 or 0.0
    has_other: Tensor


def _draw_partners(target: Tensor) -> _Partners:
    places = torch.arange(target.shape[0], device=target.device)
    alike = target[:, None] == target
    lots = torch.rand(alike.shape, device=target.device)

    def draw(allowed: Tensor) -> tuple[Tensor, Tensor]:
        exists = allowed.any(dim=1)
        drawn = torch.where(allowed, lots, -1.0).argmax(dim=1)
        return torch.where(exists, drawn, places), exists.float()

    same, has_same = draw(alike & (places[:, None] != places))
    other, has_other = draw(~alike)
    return _Partners(same, other, has_same, has_other)


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """The mean of `values` (N,) where `counts` (N,) is 1; 0 where it is so nowhere."""
    return (values * counts).sum() / counts.sum().clamp(min=1.0)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Of each pair, (N, K) and probabilities (N, K) -> (N,)."""
    return F.cross_entropy(logits, target.to(logits.dtype), reduction="none")
