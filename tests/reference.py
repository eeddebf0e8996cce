"""Slow, literal transcriptions that the fast paths must equal: one parameter at a time, plain arithmetic.

Nothing here imports dotkd. A gradient of None means: this loss does not reach the parameter in this step. Then
that stream's buffer waits unchanged, and a stream that alone reaches the parameter uses the plain momentum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Gradients = Mapping[str, "Tensor | None"]


def stream_sgd_step(
    theta: Tensor,
    gradients: Gradients,
    buffers: dict[str, Tensor],
    *,
    lr: float,
    momentum: float,
    momenta: Mapping[str, float],
    decay_stream: str,
    weight_decay: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    normalize: bool = False,
) -> Tensor:
    """SGD with one momentum per stream: returns the new parameter, updates `buffers` (stream name -> v).

    Weight decay enters once: in `decay_stream`, or in the first stream present where that one is not.
    """
    present = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    new_theta = theta.clone()
    for name, gradient in present.items():
        alone = len(present) == 1
        m = momentum if alone else momenta[name]
        g = -gradient if maximize else gradient
        if name == (decay_stream if decay_stream in present else next(iter(present))):
            g = g + weight_decay * theta
        v = m * buffers[name] + (1 - dampening) * g if name in buffers else g.clone()
        buffers[name] = v
        move = g + m * v if nesterov else v
        if normalize:
            move = move * (1 - m) / (1 - momentum)
        new_theta = new_theta - lr * move
    return new_theta


def dot_step(
    theta: Tensor,
    g_task: Tensor | None,
    g_kd: Tensor | None,
    v: dict[str, Tensor],
    *,
    lr: float,
    momentum: float,
    delta: float,
    weight_decay: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    normalize: bool = False,
) -> Tensor:
    """The three equations of DOT (arXiv 2307.08436), written out once more and on their own.

    v_task <- (mu - D) v_task + g_task + lambda theta
    v_kd   <- (mu + D) v_kd   + g_kd
    theta  <- theta - lr (v_task + v_kd)
    """
    if g_task is None and g_kd is None:
        return theta.clone()
    sign = -1.0 if maximize else 1.0
    mu_task, mu_kd = momentum - delta, momentum + delta
    if g_task is None or g_kd is None:
        mu_task = mu_kd = momentum
    moves = torch.zeros_like(theta)
    if g_task is not None:
        d = sign * g_task + weight_decay * theta
        v["task"] = mu_task * v["task"] + (1 - dampening) * d if "task" in v else d
        move = d + mu_task * v["task"] if nesterov else v["task"]
        moves = moves + (move * (1 - mu_task) / (1 - momentum) if normalize else move)
    if g_kd is not None:
        d = sign * g_kd + (weight_decay * theta if g_task is None else 0.0)
        v["distill"] = mu_kd * v["distill"] + (1 - dampening) * d if "distill" in v else d
        move = d + mu_kd * v["distill"] if nesterov else v["distill"]
        moves = moves + (move * (1 - mu_kd) / (1 - momentum) if normalize else move)
    return theta - lr * moves


def dot_adamw_step(
    theta: Tensor,
    g_task: Tensor | None,
    g_kd: Tensor | None,
    state: dict[str, Tensor | float],
    *,
    lr: float,
    betas: tuple[float, float],
    delta: float,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    maximize: bool = False,
) -> Tensor:
    """DOTAdamW: a first moment per stream, one second moment of the summed gradient, decoupled decay.

    `state` holds m_<stream>, product_<stream> (of the betas that stream has used), v and product_v.
    """
    if g_task is None and g_kd is None:
        return theta.clone()
    beta1, beta2 = betas
    sign = -1.0 if maximize else 1.0
    alone = g_task is None or g_kd is None
    total = torch.zeros_like(theta)
    first = torch.zeros_like(theta)
    for name, gradient, beta in (("task", g_task, beta1 - delta), ("distill", g_kd, beta1 + delta)):
        if gradient is None:
            continue
        b = beta1 if alone else beta
        g = sign * gradient
        total = total + g
        m = b * state.get(f"m_{name}", torch.zeros_like(theta)) + (1 - b) * g
        product = b * state.get(f"product_{name}", 1.0)
        state[f"m_{name}"], state[f"product_{name}"] = m, product
        first = first + m / (1 - product)
    second = beta2 * state.get("v", torch.zeros_like(theta)) + (1 - beta2) * total * total
    product_v = beta2 * state.get("product_v", 1.0)
    state["v"], state["product_v"] = second, product_v
    return theta * (1 - lr * weight_decay) - lr * first / ((second / (1 - product_v)).sqrt() + eps)


def clip_factor(gradients: Sequence[Gradients], max_norm: float) -> tuple[float, float]:
    """The norm of the summed gradients, and the one factor for every stream: max_norm / (norm + 1e-6), at most 1."""
    squares = 0.0
    for by_stream in gradients:
        present = [gradient for gradient in by_stream.values() if gradient is not None]
        if present:
            squares += float(sum(present[1:], present[0]).double().square().sum())
    norm = math.sqrt(squares)
    return norm, min(1.0, max_norm / (norm + 1e-6))
