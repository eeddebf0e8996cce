"""From a config to an optimizer, the weights of its losses, and the learning rate of every step."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn

from dotkd.config import Config
from dotkd.optim import DOT, DOTAdamW, StreamAdamW, StreamOptimizer, StreamSGD


class Plan(NamedTuple):
    """An optimizer, and the factors by which the task loss and the distillation loss enter it."""

    optimizer: StreamOptimizer
    task_weight: float
    distill_weight: float

    def streams(self, task: Tensor, distill: Tensor | None) -> dict[str, Tensor]:
        """The weighted losses by stream: one for each where the optimizer keeps them apart, else their sum."""
        if len(self.optimizer.streams) == 2 and distill is not None:
            return {"task": self.task_weight * task, "distill": self.distill_weight * distill}
        total = self.task_weight * task
        return {"total": total if distill is None else total + self.distill_weight * distill}


def plan(config: Config, params: Iterable[nn.Parameter]) -> Plan:
    """The optimizer that ``config.trainer`` names.

    ``sgd-matched`` is plain SGD on re-weighted losses. In a steady state momentum m multiplies a gradient by
    1 / (1 - m), so DOT weighs the task loss and the decay by (1 - mu) / (1 - mu + delta) and the distillation loss by
    (1 - mu) / (1 - mu - delta), compared with SGD; the control does the same without a second momentum.
    """
    mu, delta, lr, decay = config.momentum, config.delta, config.lr, config.weight_decay
    task, distill = config.task_weight, config.distill_weight
    if config.method == "none":
        task, distill = 1.0, 0.0
    if config.trainer == "sgd-matched":
        less, more = (1 - mu) / (1 - mu + delta), (1 - mu) / (1 - mu - delta)
        task, distill, decay = task * less, distill * more, decay * less
    match config.trainer:
        case "dot" | "dot-normalized":
            optimizer = DOT(
                params,
                lr=lr,
                momentum=mu,
                delta=delta,
                weight_decay=decay,
                nesterov=config.nesterov,
                normalize=config.trainer == "dot-normalized",
            )
        case "sgd" | "sgd-matched":
            optimizer = StreamSGD(
                params, momenta={"total": mu}, momentum=mu, lr=lr, weight_decay=decay, nesterov=config.nesterov
            )
        case "adamw":
            betas = (mu, config.beta2)
            optimizer = StreamAdamW(
                params, beta1s={"total": mu}, lr=lr, betas=betas, eps=config.eps, weight_decay=decay
            )
        case "dot-adamw":
            betas = (mu, config.beta2)
            optimizer = DOTAdamW(params, lr=lr, betas=betas, delta=delta, eps=config.eps, weight_decay=decay)
    return Plan(optimizer, task, distill)


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """The learning rate of optimizer step ``step`` (from 0): linear warm-up, then step, cosine or constant.

    The step schedule changes at the beginning of the epochs in ``milestones``; the cosine falls to 0 at the end.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    match config.schedule:
        case "constant":
            return config.lr
        case "step":
            return config.lr * config.gamma ** bisect.bisect_right(config.milestones, step // steps_per_epoch)
        case "cosine":
            share = (step - warmup) / max(1.0, config.epochs * steps_per_epoch - warmup)
            return config.lr * 0.5 * (1 + math.cos(math.pi * share))
