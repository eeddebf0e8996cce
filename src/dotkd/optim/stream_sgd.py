"""Stochastic gradient descent with any number of named streams, each with a momentum of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dotkd.optim.rules import check_number, check_rate
from dotkd.optim.streams import StreamOptimizer


class _Rule(NamedTuple):
    """What the parameters of one fused update have in common."""

    decays: bool
    momentum: float
    starts: bool
    device: torch.device
    dtype: torch.dtype


_Columns = tuple[list[Tensor], list[Tensor], list[Tensor]]  # parameters, gradients, buffers


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

    linear = True

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
        table, scattered = self._sorted_by_rule(group, found)
        averaged = self._gradients.state == "direction"  # then these gradients are for this rank's buffers alone
        # The decay reads theta, so it must come before any stream has moved theta.
        for key, (params, grads, buffers) in sorted(table.items(), key=lambda row: not row[0][0]):
            rule = _Rule(*key)
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
                lr=0.0 if averaged else lr * share,
                dampening=group["dampening"],
                nesterov=group["nesterov"],
                maximize=group["maximize"],
                is_first_step=rule.starts,
                grad_scale=None,
                found_inf=found[rule.device],
            )
        for p, dense in scattered:
            p.copy_(dense)
        if averaged:
            self._follow_directions(group, found)

    def _follow_directions(self, group: dict[str, Any], found: Mapping[torch.device, Tensor]) -> None:
        """Take lr times the averaged directions, which ``p.grad`` holds, from the parameters."""
        table: dict[tuple[torch.device, torch.dtype], _Columns] = defaultdict(lambda: ([], [], []))
        for p in group["params"]:
            if p.grad is not None and p in self._gradients.of:
                dense = p if _is_dense(p) else p.contiguous()
                columns = table[p.device, p.dtype]
                columns[0].append(dense)
                columns[1].append(p.grad if p.grad.stride() == dense.stride() else _laid_out_as(dense, p.grad))
                columns[2].append(p)
        for (device, _), (dense, directions, params) in table.items():
            lr = group["lr"].to(device) if isinstance(group["lr"], Tensor) else group["lr"]
            torch._fused_sgd_(
                dense,
                directions,
                [],
                weight_decay=0.0,
                momentum=0.0,
                lr=lr,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
                grad_scale=None,
                found_inf=found[device],
            )
            for p, moved in zip(params, dense, strict=True):
                if moved is not p:
                    p.copy_(moved)

    def _add_directions(self, grads: Mapping[Tensor, Mapping[str, Tensor]], out: Mapping[Tensor, Tensor]) -> None:
        # A sum of products: collected by their factor, so that each kind is one call.
        terms: dict[tuple[str, str, float], tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        for group in self.param_groups:
            for p in (p for p in group["params"] if p in out):
                for name, kind, factor, tensor in self._terms(group, p, grads[p]):
                    targets, sources = terms[name, kind, factor]
                    targets.append(out[p])
                    sources.append(tensor)
        for (_, _, factor), (targets, sources) in terms.items():
            torch._foreach_add_(targets, sources, alpha=factor)

    def _terms(
        self, group: Mapping[str, Any], p: Tensor, grads: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, str, float, Tensor]]:
        """What ``_update`` takes from ``p``, divided by lr, as a sum of (stream, kind, factor, tensor)."""
        momenta = self._momenta(group)
        decaying = group["decay_stream"] if group["decay_stream"] in grads else next(iter(grads), None)
        for name, grad in grads.items():
            momentum = group["momentum"] if len(grads) == 1 and len(self.streams) > 1 else momenta[name]
            share = (1 - momentum) / (1 - group["momentum"]) if group["normalize"] else 1.0
            buffer = self.state[p].get(f"momentum_{name}")
            damped = momentum and not (group["dampening"] and buffer is None)
            enters = share * (1 - group["dampening"] if damped else 1.0)
            stays = share * momentum
            if group["nesterov"]:  # the gradient, and momentum times the buffer that holds it already
                enters, stays = share * (1 + momentum), stays * momentum
            yield name, "gradient", -enters if group["maximize"] else enters, grad
            if name == decaying and group["weight_decay"]:
                yield name, "decay", enters * group["weight_decay"], p
            if buffer is not None and momentum:
                yield name, "momentum", stays, buffer

    def _sorted_by_rule(
        self, group: Mapping[str, Any], found: Mapping[torch.device, Tensor]
    ) -> tuple[dict[tuple[Any, ...], _Columns], list[tuple[Tensor, Tensor]]]:
        """What each fused update works on, by the fields of its rule; and parameters with gaps, with dense copies.

        The kernel walks memory and not indices, so parameter, gradient and buffer must lie alike. A network has
        hundreds of small parameters, and this loop costs more than the kernels do: it asks each tensor once.
        """
        momenta = self._momenta(group)
        keys = {name: f"momentum_{name}" for name in self.streams}
        table: dict[tuple[Any, ...], _Columns] = defaultdict(lambda: ([], [], []))
        scattered: list[tuple[Tensor, Tensor]] = []
        damped = group["dampening"] != 0
        for p in group["params"]:
            grads = self._gradients.of.get(p)
            if not grads:
                continue
            state, device, dtype = self.state[p], p.device, p.dtype
            # Undamped, a buffer of zeros starts by itself; damped, a start that is skipped must start again.
            if damped and any(keys[name] not in state for name in grads) and bool(found[device]):
                continue
            decaying = group["decay_stream"] if group["decay_stream"] in grads else next(iter(grads))
            alone = len(grads) == 1 and len(self.streams) > 1
            dense = p if _is_dense(p) else p.contiguous()
            stride = dense.stride()
            for name, grad in grads.items():
                momentum = group["momentum"] if alone else momenta[name]
                buffer = state.get(keys[name])
                columns = table[name == decaying, momentum, damped and buffer is None, device, dtype]
                columns[0].append(dense)
                columns[1].append(grad if grad.stride() == stride else _laid_out_as(dense, grad))
                if momentum:
                    if buffer is None or buffer.stride() != stride:
                        buffer = torch.zeros_like(dense) if buffer is None else _laid_out_as(dense, buffer)
                        state[keys[name]] = buffer
                    columns[2].append(buffer)
            if dense is not p:
                scattered.append((p, dense))
        return table, scattered

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


def _is_dense(p: Tensor) -> bool:
    """Whether the elements fill one piece of memory."""
    return p.is_contiguous() or torch.empty_like(p).stride() == p.stride()


def _laid_out_as(dense: Tensor, tensor: Tensor) -> Tensor:
    return torch.empty_like(dense).copy_(tensor)
