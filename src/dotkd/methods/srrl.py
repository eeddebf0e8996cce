"""Softmax regression representation learning (Yang, Martinez, Bulat & Tzimiropoulos, ICLR 2021)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dotkd.losses._divergence import check_weights
from dotkd.methods.activations import Activations, Anatomy
from dotkd.methods.batch_norm import BatchNorm
from dotkd.methods.card import Card
from dotkd.methods.pairing import lifted


class SRRL(nn.Module):
    """The student's embedding, connected to the teacher's space, shall equal the teacher's and be classified as it is.

    With the embeddings h_S (N, D_S) and h_T (N, D_T), the teacher's logits z_T (N, K), its frozen classifier W_T, and
    the connector c(h) = ReLU(BN(W h)), of which W and BN are trained,

        loss = alpha FM + beta SR,   FM = mean((c(h_S) - h_T)^2),   SR = mean((W_T c(h_S) - z_T)^2)

    where FM is the feature matching and SR the softmax regression in its final form, the squared distance of logits.
    Means run over samples and entries.

    Deviations: the authors' code connects the last feature map of the student and pools it after the ReLU; here, as in
    the abstract, which speaks of the feature of the penultimate layer, the pooled embedding is connected, and any model
    that ends in a linear layer will do. Both weights are 1 in that code, which is for ImageNet; for CIFAR-100 the
    authors searched each pair of models and name (alpha, beta) = (1, 1), (1, 5) and (10, 1) as the ones to try
    (jingyang2017/KD_SRRL, issue 3). The equations of the paper's text could not be had to hold this against.

    A batch of one leaves the statistics of the connector alone and normalises by those it has.

    Args:
        alpha: weight of the feature matching, >= 0.
        beta: weight of the softmax regression, >= 0.
        rectify: end the connector with a ReLU, as published. Switch it off for a teacher whose embedding has negative
            entries, a transformer's say, which a ReLU cannot match.
    """

    card = Card(
        title="Softmax regression representation learning",
        paper="Yang, Martinez, Bulat & Tzimiropoulos 2021, ICLR, openreview ZzwDy_wiWv",
        equation="alpha mean((c(h_S) - h_T)^2) + beta mean((W_T c(h_S) - z_T)^2), c(h) = ReLU(BN(W h))",
        needs=("embedding",),
    )

    def __init__(
        self, student: Anatomy, teacher: Anatomy, *, alpha: float = 1.0, beta: float = 1.0, rectify: bool = True
    ) -> None:
        super().__init__()
        check_weights(alpha=alpha, beta=beta)
        if teacher.classify is None:
            raise ValueError("expected a teacher with a linear classifier at its end, which this method trains through")
        self.alpha, self.beta = alpha, beta
        self._teacher = teacher  # within its anatomy, for a classifier that is a module must not become a part of this
        self.connector = nn.Sequential(
            nn.Conv2d(student.embedding, teacher.embedding, 1, bias=False), BatchNorm(teacher.embedding)
        )
        if rectify:
            self.connector.append(nn.ReLU())
        convolution = self.connector[0]
        assert isinstance(convolution, nn.Conv2d)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        """Return the loss, shape ()."""
        connected = self.connector(lifted(student.embedding)[:, :, None, None]).flatten(1)
        assert self._teacher.classify is not None
        matching = F.mse_loss(lifted(connected), lifted(teacher.embedding))
        regression = F.mse_loss(lifted(self._teacher.classify(connected)), lifted(teacher.logits))
        return self.alpha * matching + self.beta * regression
