"""Stochastic gradient descent with any number of named streams, each with a momentum of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dotkd.optim.directions import add_directions, follow_directions
from dotkd.optim.in_place import InPlaceStreams
from dotkd.optim.layout import is_dense, laid_out_as
from dotkd.optim.rules import check_in_place, check_number, check_rate
from dotkd.optim.shards import local


class _Rule(NamedTuple):
    """What the parameters of one fused update have in common."""

    decays: bool
    momentum: float
    starts: bool
    device: torch.device
    dtype: torch.dtype


_Columns = tuple[list[Tensor], list[Tensor], list[Tensor]]  # parameters, gradients, buffers


class StreamSGD(InPlaceStreams):
    """SGD with any number of named streams, each with its own momentum; :class:`DOT` is the case of two.

    Args:
        momenta: momentum of each stream, each in [0, 1); their order is the order of the backward passes.
        momentum: what a parameter uses in a step in which one stream alone reaches it, in [0, 1).
        decay_stream: the stream whose buffer takes the weight decay; by default the first. A parameter that it does
            not reach decays in the first stream that does.
        dampening: each gradient enters its buffer times (1 - dampening), except the first, as in torch.
        nesterov: each stream looks ahead along its own buffer; needs ``dampening`` 0.
        normalize: multiply each stream's contribution by (1 - m) / (1 - momentum).
        gradients_in_buffers: let the backward passes add the gradients to the buffers, which saves the memory of all
            gradients; see :mod:`dotkd.optim.in_place` for what it costs. Needs ``dampening`` 0, no ``nesterov``, no
            ``maximize``.
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
        gradients_in_buffers: bool = False,
    ) -> None:
        if not momenta:
            raise ValueError("expected at least one stream in `momenta`, got none")
        self._in_buffers = gradients_in_buffers
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
        if self._in_buffers:
            check_in_place(group)

    def _update(self, group: dict[str, Any], found: Mapping[torch.device, Tensor]) -> None:
        table, scattered = self._sorted_by_rule(group, found)
        averaged = self._gradients.state == "direction"  # then these gradients are for this rank's buffers alone
        apart = not self._in_buffers  # else the "gradients" are the buffers, with all but the last equation done
        # The decay reads theta, so it must come before any stream has moved theta.
        for key, (params, grads, buffers) in sorted(table.items(), key=lambda row: not row[0][0]):
            rule = _Rule(*key)
            lr = group["lr"].to(rule.device) if isinstance(group["lr"], Tensor) else group["lr"]
            share = (1 - rule.momentum) / (1 - group["momentum"]) if group["normalize"] else 1.0
            # torch's fused kernel is one pass over memory, and obeys `found_inf` on the device.
            torch._fused_sgd_(
                params,
                grads,
                buffers if apart else [],
                weight_decay=group["weight_decay"] if rule.decays and apart else 0.0,
                momentum=rule.momentum if apart else 0.0,
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
            follow_directions(group["lr"], [p for p in group["params"] if p in self._gradients.of], found)

    def _add_directions(self, grads: Mapping[Tensor, Mapping[str, Tensor]], out: Mapping[Tensor, Tensor]) -> None:
        momenta = [self._momenta(group) for group in self.param_groups]
        add_directions(self, momenta, grads, out)

    def _sorted_by_rule(
        self, group: Mapping[str, Any], found: Mapping[torch.device, Tensor]
    ) -> tuple[dict[tuple[Any, ...], _Columns], list[tuple[Tensor, Tensor]]]:
        """What each fused update works on, by the fields of its rule; and parameters with gaps, with dense copies.

        Of parameters that are spread over ranks, this rank's shards.

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
            own = local(p)
            dense = own if is_dense(own) else own.contiguous()
            stride = dense.stride()
            for name, grad in grads.items():
                momentum = group["momentum"] if alone else momenta[name]
                grad, buffer = local(grad), local(state.get(keys[name]))
                columns = table[name == decaying, momentum, damped and buffer is None, device, dtype]
                columns[0].append(dense)
                columns[1].append(grad if grad.stride() == stride else laid_out_as(dense, grad))
                if momentum:
                    if buffer is None or buffer.stride() != stride:
                        state[keys[name]] = torch.zeros_like(dense if own is p else p)
                        start = local(state[keys[name]])
                        buffer = start if buffer is None else start.copy_(buffer)
                    columns[2].append(buffer)
            if dense is not own:
                scattered.append((own, dense))
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
