"""DOT for AdamW: a first moment per loss, one second moment of the summed gradient.

With streams s in {task, distill}, beta_task = beta1 - Delta, beta_distill = beta1 + Delta, one step t is

    m_s   <- beta_s m_s + (1 - beta_s) g_s                    for each stream s
    v     <- beta2 v + (1 - beta2) (g_task + g_distill)^2
    theta <- theta (1 - lr lambda) - lr sum_s m_s / (1 - beta_s^t) / (sqrt(v / (1 - beta2^t)) + eps)

The paper (arXiv 2307.08436) defines DOT for SGD only; with Delta = 0 this is AdamW (Loshchilov & Hutter,
arXiv 1711.05101) on the sum of the losses. Why these semantics:

* One second moment. It is the scale of the parameter, not of a loss. With one second moment per stream each loss is
  divided by its own size: the weights that the user gave to the losses cancel out, and the step is up to twice as long.
* Averages, not sums. AdamW's first moment carries the factor (1 - beta_s), so Delta changes how long a loss is
  remembered and not how much it weighs. DOT's buffers for SGD change both; carrying that over is the same as raising
  the weight of the distillation loss, which the user can do by hand.
* Bias correction per stream, by the very product of the betas that the stream used: a parameter which one loss alone
  reaches in a step uses beta1 in that step.

Measured (``benchmarks/adamw_semantics.py``: an MLP learns MNIST-1D from a ResNet, 8 seeds, test accuracy in percent
with its 95 % interval, each variant at the best of five learning rates from 0.001 to 0.05):

    AdamW                        64.45 +- 1.17    at 0.02
    second moment per stream     63.96 +- 0.79    at 0.01
    DOTAdamW                     61.95 +- 0.53    at 0.01
    sums instead of averages     61.76 +- 0.93    at 0.01

At equal learning rates the second line is ahead of AdamW up to 0.003 (+2.5 points, p = 0.001) and behind at 0.05 (-3.9,
p = 0.003), as longer steps would be. DOTAdamW was behind AdamW at each of them, by 1.3 to 2.9 points (p <= 0.021): on
this task a separate first moment buys AdamW nothing. Larger students and longer runs are untested.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dotkd.optim.rules import check_delta, check_number, check_rate
from dotkd.optim.shards import local
from dotkd.optim.streams import StreamOptimizer

_Cell = tuple[torch.device, torch.dtype, tuple[str, ...]]


class StreamAdamW(StreamOptimizer):
    """AdamW with any number of named streams, each with its own beta1; :class:`DOTAdamW` is the case of two.

    Args:
        beta1s: decay rate of each stream's first moment, each in [0, 1).
        betas: beta1 of a parameter that one stream alone reaches, and beta2, each in [0, 1).
        eps: added to the root of the second moment; > 0.
        weight_decay: lambda, decoupled: theta shrinks by the factor 1 - lr lambda.
    """

    def __init__(
        self,
        params: Any,
        *,
        beta1s: Mapping[str, float],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        maximize: bool = False,
    ) -> None:
        if not beta1s:
            raise ValueError("expected at least one stream in `beta1s`, got none")
        defaults = {"lr": lr, "betas": betas, "beta1s": dict(beta1s), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "maximize": maximize}, tuple(beta1s))

    def _beta1s(self, group: Mapping[str, Any]) -> dict[str, float]:
        return group["beta1s"]

    def _check_group(self, group: Mapping[str, Any]) -> None:
        check_rate(group)
        _check_betas(group)
        for name, value in self._beta1s(group).items():
            check_number(f"beta1 of stream {name!r}", value, 1)
        if tuple(self._beta1s(group)) != self.streams:
            raise ValueError(f"expected `beta1s` for {', '.join(self.streams)}, got {', '.join(self._beta1s(group))}")
        check_number("`eps`", group["eps"])
        if group["eps"] == 0:
            raise ValueError("expected `eps` > 0, got 0")

    def _update(self, group: dict[str, Any], found: Mapping[torch.device, Tensor]) -> None:
        cells: dict[_Cell, list[Tensor]] = defaultdict(list)
        for p in group["params"]:
            if grads := self._gradients.of.get(p):
                cells[p.device, p.dtype, tuple(grads)].append(p)
        for (device, _, names), params in cells.items():
            self._update_cell(group, names, params, found[device])

    def _update_cell(self, group: dict[str, Any], names: tuple[str, ...], params: list[Tensor], found: Tensor) -> None:
        """Update parameters of one device and dtype that the same streams reach.

        Every factor is a tensor that becomes neutral where the step is to be skipped (``found`` is 1), so that nothing
        has to be read on the host.
        """
        keep = 1 - found.to(torch.promote_types(params[0].dtype, torch.float32))
        skip = found.bool()
        beta1, beta2 = group["betas"]
        total: list[Tensor] = []
        update: list[Tensor] = []
        for name in names:
            grads = [local(self._gradients.of[p][name]) for p in params]
            for grad in grads:
                grad.masked_fill_(skip, 0.0)  # nan times zero is nan, so these cannot be multiplied away
            total = list(torch._foreach_add(total, grads)) if total else grads
            beta = beta1 if len(names) == 1 and len(self.streams) > 1 else self._beta1s(group)[name]
            moment, weight = self._average(params, f"moment_{name}", grads, beta, keep)
            mean = torch._foreach_div(moment, weight)
            update = list(torch._foreach_add(update, mean) if update else mean)
        square, weight = self._average(params, "square", torch._foreach_mul(total, total), beta2, keep)
        scale = torch._foreach_sqrt(torch._foreach_div(square, weight))
        torch._foreach_add_(scale, group["eps"])
        update = list(torch._foreach_div(update, scale))
        lr = group["lr"].to(keep.device) if isinstance(group["lr"], Tensor) else group["lr"]
        own = [local(p) for p in params]
        torch._foreach_mul_(own, 1 - keep * lr * group["weight_decay"])
        torch._foreach_mul_(update, keep * lr)
        (torch._foreach_add_ if group["maximize"] else torch._foreach_sub_)(own, update)

    def _average(
        self, params: list[Tensor], key: str, values: Any, beta: float, keep: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Move the average ``key`` towards ``values``; return it with its weight 1 - beta^t, both as lists.

        The weight is the same average taken of the constant 1: exact for any sequence of betas and skipped steps.
        """
        averages: list[Tensor] = []
        weights: list[Tensor] = []
        for p in params:
            state = self.state[p]
            if key not in state:
                state[key] = torch.zeros_like(p)
                wide = torch.promote_types(p.dtype, torch.float32)
                state[f"{key}_weight"] = torch.zeros((), dtype=wide, device=p.device)
            averages.append(local(state[key]))
            weights.append(state[f"{key}_weight"])
        torch._foreach_mul_(averages, 1 - keep * (1 - beta))
        torch._foreach_add_(averages, torch._foreach_mul(values, 1 - beta))
        torch._foreach_mul_(weights, 1 - keep * (1 - beta))
        # Without `alpha` torch takes a tensor of shape () for a number, and waits for the device to read it.
        torch._foreach_add_(weights, keep * (1 - beta), alpha=1)
        # A parameter whose very first step is skipped has weight 0 and average 0.
        return averages, list(torch._foreach_clamp_min(weights, torch.finfo(weights[0].dtype).tiny))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, keeping the weights of the averages in float32 or wider whatever the parameters are."""
        known = {f"moment_{name}" for name in self.streams} | {"square"}
        known |= {f"{name}_weight" for name in known}
        held = {key for entry in state_dict["state"].values() for key in entry}
        if not held <= known:
            raise ValueError(f"expected state {', '.join(sorted(known))}, got {', '.join(sorted(held))}")
        super().load_state_dict(state_dict)
        # torch casts what it loads to the dtype of the parameter.
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        for index, p in zip(saved, (p for group in self.param_groups for p in group["params"]), strict=True):
            for key, value in state_dict["state"].get(index, {}).items():
                if key.endswith("_weight"):
                    self.state[p][key] = value.to(p.device, copy=True)


def _check_betas(group: Mapping[str, Any]) -> None:
    betas = group["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"expected a pair of numbers for `betas`, got {betas!r}")
    for index in (0, 1):
        check_number(f"`betas[{index}]`", betas[index], 1)


class DOTAdamW(StreamAdamW):
    """AdamW with streams ``task`` and ``distill``, whose first moments decay with ``betas[0]`` -/+ ``delta``.

    Args:
        lr: learning rate, a float or a tensor of shape (); finite, >= 0.
        betas: beta1 and beta2, each in [0, 1).
        delta: Delta, in [0, min(beta1, 1 - beta1)]; beta1 + delta = 1 is refused.

    The other arguments are those of :class:`StreamAdamW`. Raises ValueError for any value outside its rule.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        delta: float = 0.075,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        maximize: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "delta": delta, "eps": eps, "weight_decay": weight_decay}
        StreamOptimizer.__init__(self, params, {**defaults, "maximize": maximize}, ("task", "distill"))

    def _beta1s(self, group: Mapping[str, Any]) -> dict[str, float]:
        return {"task": group["betas"][0] - group["delta"], "distill": group["betas"][0] + group["delta"]}

    def _check_group(self, group: Mapping[str, Any]) -> None:
        _check_betas(group)
        check_delta("betas[0]", group["betas"][0], group["delta"])
        super()._check_group(group)
