"""What a step of SGD with streams takes from the parameters, divided by the learning rate, in the open.

With momentum m_s, share c_s, buffer v_s and gradient g_s of stream s, and decay lambda in the decay stream alone,

    u = sum_s c_s (m_s v_s + g_s + lambda_s theta)                          so that    theta <- theta - lr u

With ``nesterov`` c_s (g_s + lambda_s theta) enters (1 + m_s) times, c_s v_s m_s^2 times; with ``dampening`` a gradient
that meets a buffer enters (1 - dampening) times; with ``maximize`` g_s changes its sign. ``StreamSGD`` alone has no use
for u, its kernel moves the parameters at once; the ranks of a distributed run average it (``data_parallel.py``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dotkd.optim.layout import is_dense, laid_out_as

_Term = tuple[str, str, float, Tensor]  # stream, kind, factor, and what it multiplies


def add_directions(
    optimizer: torch.optim.Optimizer,
    momenta: Sequence[Mapping[str, float]],
    grads: Mapping[Tensor, Mapping[str, Tensor]],
    out: Mapping[Tensor, Tensor],
) -> None:
    """Add u to ``out``, for the parameters in it.

    Args:
        momenta: for each group of the optimizer, the momentum of each stream.
        grads: for each parameter, the gradient of each stream that reaches it.
    """
    # A sum of products: collected by factor, so that each kind is one call.
    table: dict[tuple[str, str, float], tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
    for group, of_streams in zip(optimizer.param_groups, momenta, strict=True):
        for p in (p for p in group["params"] if p in out):
            for name, kind, factor, tensor in _terms(group, of_streams, optimizer.state[p], p, grads[p]):
                table[name, kind, factor][0].append(out[p])
                table[name, kind, factor][1].append(tensor)
    for (_, _, factor), (targets, sources) in table.items():
        torch._foreach_add_(targets, sources, alpha=factor)


def _terms(
    group: Mapping[str, Any],
    momenta: Mapping[str, float],
    state: Mapping[str, Tensor],
    p: Tensor,
    grads: Mapping[str, Tensor],
) -> Iterator[_Term]:
    decaying = group["decay_stream"] if group["decay_stream"] in grads else next(iter(grads), None)
    alone = len(grads) == 1 and len(momenta) > 1
    for name, grad in grads.items():
        momentum = group["momentum"] if alone else momenta[name]
        share = (1 - momentum) / (1 - group["momentum"]) if group["normalize"] else 1.0
        buffer = state.get(f"momentum_{name}") if momentum else None
        # As in torch, the first gradient is not dampened, and without momentum none is.
        enters = share * (1 - group["dampening"] if buffer is not None else 1.0)
        stays = share * momentum
        if group["nesterov"]:
            enters, stays = share * (1 + momentum), stays * momentum
        yield name, "gradient", -enters if group["maximize"] else enters, grad
        if name == decaying and group["weight_decay"]:
            yield name, "decay", enters * group["weight_decay"], p
        if buffer is not None:
            yield name, "momentum", stays, buffer


def follow_directions(lr: float | Tensor, params: Sequence[Tensor], found: Mapping[torch.device, Tensor]) -> None:
    """theta <- theta - lr u, with u in ``p.grad``; nothing where ``found[device]`` is 1."""
    table: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
    for p in params:
        if p.grad is not None:
            dense = p if is_dense(p) else p.contiguous()
            direction = p.grad if p.grad.stride() == dense.stride() else laid_out_as(dense, p.grad)
            table[p.device, p.dtype].append((p, dense, direction))
    for (device, _), rows in table.items():
        torch._fused_sgd_(
            [dense for _, dense, _ in rows],
            [direction for _, _, direction in rows],
            [],
            weight_decay=0.0,
            momentum=0.0,
            lr=lr.to(device) if isinstance(lr, Tensor) else lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
            grad_scale=None,
            found_inf=found[device],
        )
        for p, dense, _ in rows:
            if dense is not p:
                p.copy_(dense)
