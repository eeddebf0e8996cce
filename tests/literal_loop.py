"""The training loop once more, literally: torch's own optimizers on the gradients of the two losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd import Config, data
from reference import dot_adamw_step

Update = Callable[[float, list[Tensor], list[Tensor]], None]


def literal_run(
    config: Config, student: nn.Module, teacher: nn.Module, rate: Callable[[int], float]
) -> Iterator[dict[str, Tensor]]:
    """Trains `student` by torch's own optimizers on the two gradients; yields its state after each step.

    rate: the learning rate of step 0, 1, ...
    """
    dataset, params = data.load(config.data, validation=config.validation), list(student.parameters())
    mu, delta = config.momentum, config.delta
    task_weight = 0.1 if config.task_weight is None else config.task_weight  # as published for KD
    distill_weight = 0.9 if config.distill_weight is None else config.distill_weight
    if config.method == "none":
        task_weight, distill_weight = 1.0, 0.0
    if config.trainer == "sgd-matched":
        task_weight, distill_weight = (
            task_weight * (1 - mu) / (1 - mu + delta),
            distill_weight * (1 - mu) / (1 - mu - delta),
        )
    update, step = _literal_update(config, params), 0
    student.train()
    for epoch in range(config.epochs):
        for batch in data.batches(
            dataset, "train", batch_size=config.batch_size, epoch=epoch, seed=config.seed, shuffle=True, drop_last=True
        ):
            logits, known = student(batch.inputs), teacher(batch.inputs).detach()
            task = F.cross_entropy(logits.float(), batch.targets, label_smoothing=config.label_smoothing)
            t = config.temperature or 4.0
            soft = F.softmax(known.double() / t, 1)
            distill = t * t * F.kl_div(F.log_softmax(logits.double() / t, 1), soft, reduction="batchmean")
            by_task = torch.autograd.grad(task_weight * task, params, retain_graph=True)
            by_distill = torch.autograd.grad(distill_weight * distill, params)
            norm = torch.stack([(a + b).norm() for a, b in zip(by_task, by_distill, strict=True)]).norm()
            factor = min(1.0, config.clip_norm / (float(norm) + 1e-6)) if config.clip_norm else 1.0
            update(rate(step), [factor * g for g in by_task], [factor * g for g in by_distill])
            step += 1
            yield {name: value.detach().clone() for name, value in student.state_dict().items()}


def _literal_update(config: Config, params: list[nn.Parameter]) -> Update:
    mu, delta, decay = config.momentum, config.delta, config.weight_decay
    share = {m: (1 - m) / (1 - mu) if config.trainer == "dot-normalized" else 1.0 for m in (mu - delta, mu + delta)}
    state: list[dict] = [{} for _ in params]

    def sgd(momentum: float, weight_decay: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            params, lr=1.0, momentum=momentum, weight_decay=weight_decay, nesterov=config.nesterov, foreach=False
        )

    def run(optimizer: torch.optim.Optimizer, lr: float, grads: list[Tensor]) -> None:
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad.clone()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()

    def summed(optimizer: torch.optim.Optimizer) -> Update:
        return lambda lr, task, distill: run(optimizer, lr, [g + h for g, h in zip(task, distill, strict=True)])

    match config.trainer:
        case "sgd":
            return summed(sgd(mu, decay))
        case "sgd-matched":
            return summed(sgd(mu, decay * (1 - mu) / (1 - mu + delta)))
        case "adamw":
            kwargs = {"betas": (mu, config.beta2), "eps": config.eps, "weight_decay": decay, "foreach": False}
            return summed(torch.optim.AdamW(params, **kwargs))
        case "dot" | "dot-normalized":
            first, second = sgd(mu - delta, decay), sgd(mu + delta, 0.0)

            def two(lr: float, task: list[Tensor], distill: list[Tensor]) -> None:
                run(first, lr * share[mu - delta], task)
                run(second, lr * share[mu + delta], distill)

            return two

    @torch.no_grad()
    def dot_adamw(lr: float, task: list[Tensor], distill: list[Tensor]) -> None:
        rest = {"betas": (mu, config.beta2), "delta": delta, "eps": config.eps, "weight_decay": decay}
        for p, g, h, own in zip(params, task, distill, state, strict=True):
            p.copy_(dot_adamw_step(p, g, h, own, lr=lr, **rest))

    return dot_adamw
