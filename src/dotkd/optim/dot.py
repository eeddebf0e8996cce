"""DOT on one page: stochastic gradient descent in which every loss has a momentum of its own.

With task loss gradient g_task, distillation loss gradient g_distill, parameters theta, learning rate lr, momentum mu
(``momentum``), Delta (``delta``) and weight decay lambda (``weight_decay``), one step is

    v_task    <- (mu - Delta) v_task    + g_task + lambda theta
    v_distill <- (mu + Delta) v_distill + g_distill
    theta     <- theta - lr (v_task + v_distill)

(Zhao et al., DOT: A Distillation-Oriented Trainer, arXiv 2307.08436, section 4.) A buffer starts as its first gradient,
as in torch.optim.SGD. With Delta = 0 this is SGD with momentum on the sum of both losses.

In a steady state momentum m multiplies a gradient by 1 / (1 - m): Delta also re-weights the two losses.
``normalize=True`` multiplies each stream's contribution by (1 - m) / (1 - mu), which takes that effect out and leaves
the difference in memory alone. It is the control for the question whether momentum or weight is what helps.

Deviations from the published implementation, each deliberate:

* A parameter that one loss alone reaches in a step uses momentum mu and weight decay, from its first step on (the
  published code leaves the decay out of the first step of a parameter that only the distillation loss reaches).
  (torch.compile hands out zeros where an uncompiled graph hands out nothing: such a parameter inside a compiled model
  counts as reached by every loss that leaves that graph.)
* mu + Delta >= 1 is refused; there it runs with a momentum of 1 or more, and diverges.
* The buffer of a stream that does not reach a parameter in a step waits, neither decayed nor applied, as torch leaves a
  parameter without a gradient alone.
* Groups, accumulation, clipping, loss scaling and missing gradients are treated alike for all streams.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dotkd.optim.streams import StreamOptimizer


class _Rule(NamedTuple):
    """What the parameters of one fused update have in common."""

    decays: bool
    momentum: float
    starts: bool
    device: torch.device
    dtype: torch.dtype


class StreamSGD(StreamOptimizer):
    """SGD with any number of named streams, each with its own momentum; :class:`DOT` is the case of two.

    Args:
        momenta: momentum of each stream, each in [0, 1); their order is the order of the backward passes.
        momentum: what a parameter uses in a step in which one stream alone reaches it, in [0, 1).
        decay_stream: the stream whose buffer takes the weight decay; by default the first. A parameter that it does
            not reach decays in the first stream that does.
        dampening: each gradient enters its buffer times (1 - dampening), except the first, as in torch.
        nesterov: each stream looks ahead along its own buffer; needs ``dampening`` 0.
        normalize: multiply each stream's contribution by (1 - m) / (1 - momentum).
    """

    def __init__(
        self,
        params: Any,
        *,
        momenta: Mapping[str, float],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        decay_stream: str | None = None,
        weight_decay: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        normalize: bool = False,
    ) -> None:
        if not momenta:
            raise ValueError("expected at least one stream in `momenta`, got none")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "momenta": dict(momenta),
            "decay_stream": next(iter(momenta)) if decay_stream is None else decay_stream,
            "weight_decay": weight_decay,
            "dampening": dampening,
            "nesterov": nesterov,
            "maximize": maximize,
            "normalize": normalize,
        }
        super().__init__(params, defaults, tuple(momenta))

    def _momenta(self, group: Mapping[str, Any]) -> dict[str, float]:
        return group["momenta"]

    def _check_group(self, group: Mapping[str, Any]) -> None:
        check_rate(group)
        check_number("`momentum`", group["momentum"], 1)
        for name, value in self._momenta(group).items():
            check_number(f"the momentum of stream {name!r}", value, 1)
        if tuple(self._momenta(group)) != self.streams:
            raise ValueError(f"expected `momenta` for {', '.join(self.streams)}, got {', '.join(self._momenta(group))}")
        self._check_names([group["decay_stream"]])
        check_number("`dampening`", group["dampening"])
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(
                f"nesterov needs momentum > 0 and dampening = 0, got {group['momentum']} and {group['dampening']}"
            )

    def _update(self, group: dict[str, Any], found: Mapping[torch.device, Tensor]) -> None:
        momenta = self._momenta(group)
        table: dict[_Rule, tuple[list[Tensor], list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], [], []))
        scattered: list[tuple[Tensor, Tensor]] = []
        for p in group["params"]:
            grads = self._gradients.of.get(p)
            if not grads:
                continue
            decaying = group["decay_stream"] if group["decay_stream"] in grads else next(iter(grads))
            alone = len(grads) == 1 and len(self.streams) > 1
            # Without damping a buffer of zeros starts by itself; with it, a start that is skipped must start again.
            damped = group["dampening"] != 0
            if damped and any(f"momentum_{name}" not in self.state[p] for name in grads) and bool(found[p.device]):
                continue
            view = p if _is_dense(p) else p.contiguous()
            for name, grad in grads.items():
                momentum = group["momentum"] if alone else momenta[name]
                starts = damped and f"momentum_{name}" not in self.state[p]
                rule = _Rule(name == decaying, momentum, starts, p.device, p.dtype)
                row = (view, _laid_out_as(view, grad), self._buffer(p, name, view) if momentum else None)
                for column, tensor in zip(table[rule], row, strict=True):
                    if tensor is not None:
                        column.append(tensor)
            if view is not p:
                scattered.append((p, view))
        # The decay reads theta, so it must come before any stream has moved theta.
        for rule, (params, grads, buffers) in sorted(table.items(), key=lambda row: not row[0].decays):
            lr = group["lr"].to(rule.device) if isinstance(group["lr"], Tensor) else group["lr"]
            share = (1 - rule.momentum) / (1 - group["momentum"]) if group["normalize"] else 1.0
            # torch's fused kernel is one pass over memory, and obeys `found_inf` on the device.
            torch._fused_sgd_(
                params,
                grads,
                buffers,
                weight_decay=group["weight_decay"] if rule.decays else 0.0,
                momentum=rule.momentum,
                # Momentum is linear in the gradient: scaling what comes out of a buffer scales what went in.
                lr=lr * share,
                dampening=group["dampening"],
                nesterov=group["nesterov"],
                maximize=group["maximize"],
                is_first_step=rule.starts,
                grad_scale=None,
                found_inf=found[rule.device],
            )
        for p, view in scattered:
            p.copy_(view)

    def _buffer(self, p: Tensor, stream: str, view: Tensor) -> Tensor:
        """The stream's buffer for ``p``, in the memory layout of ``view``."""
        state, key = self.state[p], f"momentum_{stream}"
        state[key] = _laid_out_as(view, state[key]) if key in state else torch.zeros_like(view)
        return state[key]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Also takes the state of torch.optim.SGD and, for two streams, of the published DOT implementation.

        SGD's one buffer becomes that of the decay stream, the others start afresh: with equal momenta the sum, and so
        the run, continues unchanged.
        """
        known = {f"momentum_{name}" for name in self.streams}
        held = {key for entry in state_dict["state"].values() for key, value in entry.items() if value is not None}
        official = any("momentum_kd" in group for group in state_dict["param_groups"])
        if held <= known and not official and all("normalize" in group for group in state_dict["param_groups"]):
            return super().load_state_dict(state_dict)
        foreign = any("momentum" not in group for group in state_dict["param_groups"])
        if foreign or not held <= {"momentum_buffer", *(["momentum_kd_buffer"] if official else [])}:
            raise ValueError(f"expected state {', '.join(sorted(known))}, got {', '.join(sorted(held)) or 'none'}")
        if len(state_dict["param_groups"]) != len(self.param_groups):
            raise ValueError(f"expected {len(self.param_groups)} groups, got {len(state_dict['param_groups'])}")
        groups = [
            {**ours, **self._translated(theirs, ours), "params": theirs["params"]}
            for theirs, ours in zip(state_dict["param_groups"], self.param_groups, strict=True)
        ]
        decay = self.param_groups[0]["decay_stream"]
        other = [name for name in self.streams if name != decay]
        names = {"momentum_buffer": decay, "momentum_kd_buffer": other[0] if other else decay}
        state = {
            index: {f"momentum_{names[key]}": value for key, value in entry.items() if value is not None}
            for index, entry in state_dict["state"].items()
        }
        super().load_state_dict({**state_dict, "state": state, "param_groups": groups})

    def _translated(self, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
        if "momentum_kd" in theirs:
            raise ValueError("the state of the published DOT implementation loads into DOT, not into StreamSGD")
        return {key: value for key, value in theirs.items() if key in ours}


class DOT(StreamSGD):
    """The published optimizer: streams ``task`` and ``distill`` with momentum ``momentum`` -/+ ``delta``.

    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = DOT(model.parameters(), lr=0.1, momentum=0.9, delta=0.075)
    >>> out = model(torch.ones(4, 2))
    >>> optimizer.backward(task=0.1 * out.square().mean(), distill=0.9 * (out - 1).square().mean())
    >>> optimizer.step()
    >>> optimizer.zero_grad()

    Args:
        lr: learning rate, a float or a tensor of shape (); > 0 moves, 0 is allowed.
        momentum: mu, in [0, 1).
        delta: Delta, in [0, min(mu, 1 - mu)]; mu + delta = 1 is refused. The paper uses 0.075, on ImageNet 0.09.
        weight_decay: lambda, added to the task stream's gradient (not decoupled).

    The other arguments are those of :class:`StreamSGD`. Raises ValueError for any value outside its rule.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        delta: float = 0.075,
        weight_decay: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        normalize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "delta": delta,
            "decay_stream": "task",
            "weight_decay": weight_decay,
            "dampening": dampening,
            "nesterov": nesterov,
            "maximize": maximize,
            "normalize": normalize,
        }
        StreamOptimizer.__init__(self, params, defaults, ("task", "distill"))

    def _momenta(self, group: Mapping[str, Any]) -> dict[str, float]:
        return {"task": group["momentum"] - group["delta"], "distill": group["momentum"] + group["delta"]}

    def _check_group(self, group: Mapping[str, Any]) -> None:
        check_delta("momentum", group["momentum"], group["delta"])
        super()._check_group(group)

    def _translated(self, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
        if "momentum_kd" not in theirs:
            return super()._translated(theirs, ours)
        task, distill = theirs["momentum"], theirs["momentum_kd"]
        rest = {key: theirs[key] for key in theirs if key in ours and key != "momentum"}
        return {**rest, "momentum": (task + distill) / 2, "delta": (distill - task) / 2}


def _is_dense(p: Tensor) -> bool:
    """Whether the elements fill one piece of memory. The fused kernel walks memory and not indices."""
    return p.is_contiguous() or torch.empty_like(p).stride() == p.stride()


def _laid_out_as(view: Tensor, tensor: Tensor) -> Tensor:
    return tensor if tensor.stride() == view.stride() else torch.empty_like(view).copy_(tensor)


def check_rate(group: Mapping[str, Any]) -> None:
    """``lr`` and ``weight_decay`` are finite and not negative; a tensor ``lr`` is believed, reading it could wait."""
    lr = group["lr"]
    if not isinstance(lr, Tensor):
        check_number("`lr`", lr)
    elif lr.numel() != 1:
        raise ValueError(f"expected a tensor `lr` with one element, got shape {tuple(lr.shape)}")
    check_number("`weight_decay`", group["weight_decay"])


def check_number(name: str, value: Any, below: float = math.inf) -> None:
    """Raise TypeError unless ``value`` is a number, ValueError unless it lies in [0, ``below``)."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"expected a number for {name}, got {value!r}")
    if not 0 <= value < below:
        rule = ">= 0 and finite" if below == math.inf else f"in [0, {below:g})"
        raise ValueError(f"expected {name} {rule}, got {value:g}")


def check_delta(name: str, momentum: Any, delta: Any) -> None:
    """The rule 0 <= mu - Delta and mu + Delta < 1; ``name`` is what the optimizer calls mu."""
    check_number(f"`{name}`", momentum, 1)
    if not isinstance(delta, (int, float)) or isinstance(delta, bool):
        raise TypeError(f"expected a number for `delta`, got {delta!r}")
    if not (0 <= delta <= momentum and momentum + delta < 1):
        bound = f"{1 - momentum:g})" if 1 - momentum <= momentum else f"{momentum:g}]"
        raise ValueError(f"expected `delta` in [0, {bound} for {name} = {momentum:g}, got {delta:g}")
