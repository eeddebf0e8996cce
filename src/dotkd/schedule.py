"""From a config to an optimizer, the weights of its losses, and the learning rate of every step."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from dotkd.config import Config
from dotkd.methods.objective import Objective
from dotkd.optim import DOT, DOTAdamW, StreamAdamW, StreamOptimizer, StreamSGD


class Plan(NamedTuple):
    """An optimizer, and the factors by which the losses enter it.

    The distillation losses come in by ``distill_weight``, of which the first ``warmup_epochs`` epochs take a share that
    grows from epoch to epoch.
    """

    optimizer: StreamOptimizer
    task_weight: float
    distill_weight: float
    warmup_epochs: float = 0.0

    def share(self, epoch: int) -> float:
        """The share of ``distill_weight`` that epoch ``epoch`` (from 0) takes."""
        return min((epoch + 1) / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0

    def weigh(self, losses: Mapping[str, Tensor], epoch: int = 0, *, share: Tensor | None = None) -> dict[str, Tensor]:
        """The weighted losses by stream of the optimizer, in epoch ``epoch`` (from 0), or with that ``share``, ().

        An optimizer with a stream for each loss gets them apart, one of two the distillation losses as one, one of one
        stream the sum.
        """
        factor = self.distill_weight * (self.share(epoch) if share is None else share)
        weighted = {name: (self.task_weight if name == "task" else factor) * loss for name, loss in losses.items()}
        streams = self.optimizer.streams
        if tuple(weighted) == streams:
            return weighted
        parts = list(weighted.values())
        if streams == ("task", "distill") and len(parts) > 1:
            return {"task": parts[0], "distill": sum(parts[2:], parts[1])}
        (only,) = streams
        return {only: sum(parts[1:], parts[0])}


def plan(config: Config, params: Iterable[nn.Parameter]) -> Plan:
    """The optimizer that ``config.trainer`` names, with the weights of the config, else those of the method's card.

    ``sgd-matched`` is plain SGD on re-weighted losses. In a steady state momentum m multiplies a gradient by
    1 / (1 - m), so DOT weighs the task loss and the decay by (1 - mu) / (1 - mu + delta) and the distillation loss by
    (1 - mu) / (1 - mu - delta), compared with SGD; the control does the same without a second momentum.

    ``deepkd`` has a stream for the task loss, the target class and the other classes: see `dotkd.losses.deepkd`.
    """
    mu, delta, lr, decay = config.momentum, config.delta, config.lr, config.weight_decay
    task, distill, warmup = weights(config)
    if config.trainer == "sgd-matched":
        less, more = (1 - mu) / (1 - mu + delta), (1 - mu) / (1 - mu - delta)
        task, distill, decay = task * less, distill * more, decay * less
    sgd: dict[str, Any] = {"lr": lr, "weight_decay": decay, "nesterov": config.nesterov}
    sgd["gradients_in_buffers"] = config.low_memory
    adamw: dict[str, Any] = {"lr": lr, "weight_decay": decay, "betas": (mu, config.beta2), "eps": config.eps}
    match config.trainer:
        case "dot" | "dot-normalized":
            optimizer = DOT(params, momentum=mu, delta=delta, normalize=config.trainer == "dot-normalized", **sgd)
        case "sgd" | "sgd-matched":
            optimizer = StreamSGD(params, momenta={"total": mu}, momentum=mu, **sgd)
        case "deepkd":
            momenta = {"task": mu + delta, "target": mu - delta, "nontarget": mu + delta}
            optimizer = StreamSGD(params, momenta=momenta, momentum=mu, decay_stream="task", **sgd)
        case "adamw":
            optimizer = StreamAdamW(params, beta1s={"total": mu}, **adamw)
        case "dot-adamw":
            optimizer = DOTAdamW(params, delta=delta, **adamw)
    return Plan(optimizer, task, distill, warmup)


def weights(config: Config) -> tuple[float, float, float]:
    """(weight of the task loss, weight of the distillation loss, epochs in which that rises).

    A method of the user's own without a card has weights of 1.
    """
    if config.method == "none":
        return 1.0, 0.0, 0.0
    card = Objective(config.method, options=config.method_options).card
    published = (card.task_weight, card.distill_weight, card.warmup_epochs) if card else (1.0, 1.0, 0.0)
    given = (config.task_weight, config.distill_weight, config.distill_warmup_epochs)
    task, distill, warmup = (p if g is None else g for g, p in zip(given, published, strict=True))
    return task, distill, warmup


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
