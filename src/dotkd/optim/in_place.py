"""The buffers are the gradients: momentum for any number of streams, and no memory for gradients at all.

Momentum adds a gradient to its buffer and has no further use for it. So let the backward pass itself do the adding.
With momentum m, decay lambda (in the decay stream alone), learning rate lr and parameters theta, a step is

    v_s   <- m_s v_s + lambda_s theta         before the first backward pass of the step, for each stream s
    v_s   <- v_s + g_s                        the pass: ``p.grad`` *is* v_s as long as it lasts, and autograd adds to it
    theta <- theta - lr sum_s v_s

which is DOT's own step in another order of the same additions. Per parameter it holds one number for each stream, where
the ordinary mode holds two and their sum: with two streams 2 instead of 5. What that costs:

* Outside of a backward pass ``p.grad`` is None. There is nothing to clip or to unscale, and nothing to look at: torch's
  own ``clip_grad_norm_`` would clip nothing and say nothing. Dampening and Nesterov's form need the gradient by itself.
* The momentum that a parameter uses depends on which streams reach it, and is needed before they do: it is read off the
  graphs of the losses. Micro-batches that change it within a step are refused.
* A gradient cannot be taken out of a buffer. Where a loss is not finite this is known before the backward pass, and the
  step is skipped without a trace. Where finite losses have a gradient that is not finite, where a pass fails midway
  (out of memory), where a later micro-batch spoils the step or ``zero_grad()`` gives it up, no parameter moves, and the
  buffers that the step had entered start again from zero, as at the start of training.
* ``momentum`` and ``weight_decay`` count as they are in the first ``backward()`` of a step, ``lr`` as in ``step()``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from dotkd.optim.gradients import StreamGradients
from dotkd.optim.layout import is_dense, laid_out_as
from dotkd.optim.passes import backward_pass
from dotkd.optim.reach import leaves_of
from dotkd.optim.shards import mesh_of
from dotkd.optim.streams import StreamOptimizer

_Rule = tuple[float, float, torch.device, torch.dtype]  # lambda, m, and where
_Columns = tuple[list[Tensor], list[Tensor]]  # parameters, buffers


class InPlaceStreams(StreamOptimizer):
    """Streams whose gradients may be added to the buffers ``momentum_NAME`` as they arise.

    A subclass sets ``_in_buffers`` before it calls the constructor of :class:`StreamOptimizer`. In its ``_update`` it
    finds the finished buffers where the gradients would be.
    """

    _in_buffers: bool = False
    _entered: Tensor | None = None  # (): 1 where a gradient has entered a buffer since the last step

    @abstractmethod
    def _momenta(self, group: Mapping[str, Any]) -> Mapping[str, float]:
        """The momentum of each stream."""

    def stream_grad(self, param: Tensor, stream: str) -> Tensor | None:
        """As in :class:`StreamOptimizer`; RuntimeError where the gradients are in the buffers."""
        if self._in_buffers:
            self._refuse("stream_grad() has none to return")
        return super().stream_grad(param, stream)

    def clip_grad_norm_(self, max_norm: float | Tensor) -> Tensor:
        """As in :class:`StreamOptimizer`; RuntimeError where the gradients are in the buffers."""
        if self._in_buffers:
            self._refuse("clip_grad_norm_() has none to clip")
        return super().clip_grad_norm_(max_norm)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in :class:`StreamOptimizer`; between ``backward()`` and ``step()`` it costs the buffers their past too."""
        if self._in_buffers:
            self._start_again()
        super().zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As in :class:`StreamOptimizer`. Where the gradients are in the buffers it also ends their accumulation."""
        if not self._in_buffers:
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if getattr(self, "found_inf", None) is not None:
            self._refuse("a GradScaler has none to unscale")
        self._refuse_foreign()
        if not self._gradients.of:
            raise RuntimeError(f"step() before backward(): the streams {', '.join(self._streams)} hold no gradient")
        for group in self.param_groups:
            self._check_group(group)
        found = self._find_non_finite(None, None)
        for group in self.param_groups:
            self._update(group, found)
        assert self._entered is not None
        for (device, _), buffers in self._gradients.tensors(with_sum=False).items():
            spoilt = (found[device] * self._entered.to(device)).bool()
            for buffer in buffers:
                buffer.masked_fill_(spoilt, 0.0)  # nan times zero is nan, so these cannot be multiplied away
        self._forget()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """As in torch; RuntimeError where the buffers hold a step that is not finished."""
        if self._in_buffers and self._gradients.of:
            self._refuse("state_dict() between backward() and step() would save half a step")
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in :class:`StreamOptimizer`; a step that has begun is forgotten with its buffers."""
        super().load_state_dict(state_dict)
        if self._in_buffers:
            self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_in_buffers": self._in_buffers, "_entered": self._entered}

    # --- inside -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _fill(self, losses: Mapping[str, Tensor], scale: Tensor | None) -> None:
        if not self._in_buffers:
            return super()._fill(losses, scale)
        self._look_for_ranks()
        if mesh_of(self._params()) is not None:
            self._refuse("shards have none to average")
        self._refuse_foreign()
        params = [p for p in self._params() if p.requires_grad]
        own = set(params)
        reached = {name: leaves_of(loss) & own for name, loss in losses.items()}
        for name, leaves in reached.items():
            if not leaves:
                raise RuntimeError(f"the loss of stream {name!r} reaches no parameter of this optimizer")
        plan = self._planned(reached)
        bad = torch.stack([~loss.detach().isfinite() for loss in losses.values()]).any().float()
        bad = bad if self._bad_losses is None else torch.maximum(bad, self._bad_losses)
        flags = {device: bad.to(device) for device in {p.device for p in params}}
        hooks: list[Any] = []
        try:
            # From here on buffers change, but not after a loss that is not finite: then they are multiplied by one, and
            # the gradients that enter are zero.
            self._bad_losses = bad
            self._decay(self._to_decay(plan), flags)
            entered = 1 - bad
            self._entered = entered if self._entered is None else torch.maximum(entered, self._entered)
            gates = {device: _Gate(flag.bool()) for device, flag in flags.items()}
            hooks += [p.register_hook(gates[p.device]) for p in params]
            for name, loss in losses.items():
                for p in params:
                    p.grad = self._gradients.of[p][name] if p in reached[name] else None
                backward_pass(loss, scale, last=name == self._streams[-1])
                for p in params:
                    if p.grad is not (self._gradients.of[p][name] if p in reached[name] else None):
                        raise RuntimeError(
                            f"stream {name!r} gave a parameter of shape {tuple(p.shape)} a gradient past its buffer: "
                            "with gradients_in_buffers no hook may replace p.grad, and checkpointing needs "
                            "use_reentrant=False"
                        )
        except BaseException:
            self._start_again()
            raise
        finally:
            for hook in hooks:
                hook.remove()
            for p in params:
                p.grad = None

    def _planned(self, reached: Mapping[str, set[Tensor]]) -> list[tuple[dict[str, Any], Tensor, list[str]]]:
        """Group, parameter, and the streams that reach it for the first time in this step; changes nothing."""
        plan: list[tuple[dict[str, Any], Tensor, list[str]]] = []
        for group in self.param_groups:
            self._check_group(group)
            for p in group["params"]:
                before = list(self._gradients.of.get(p, ()))
                new = [name for name in self._streams if p in reached[name] and name not in before]
                if before and self._used(group, before) != self._used(group, before + new):
                    raise RuntimeError(
                        f"a parameter of shape {tuple(p.shape)} was reached by {', '.join(before)} and is now reached "
                        f"by {', '.join(new)} too: with gradients_in_buffers the micro-batches of a step must agree on "
                        "that, for it settles the momentum"
                    )
                if new and not is_dense(p):
                    raise ValueError(
                        f"expected parameters without gaps with gradients_in_buffers, got shape {tuple(p.shape)} with "
                        f"strides {p.stride()}"
                    )
                plan.append((group, p, new))
        return plan

    def _to_decay(self, plan: list[tuple[dict[str, Any], Tensor, list[str]]]) -> dict[_Rule, _Columns]:
        """Take over a plan: the parameters and buffers that this step has yet to decay, by rule."""
        table: dict[_Rule, _Columns] = defaultdict(lambda: ([], []))
        for group, p, new in plan:
            buffers = self._gradients.of.setdefault(p, {}) if new else {}
            for name in new:
                buffer = self.state[p].get(f"momentum_{name}")
                if buffer is None or buffer.stride() != p.stride():
                    buffer = torch.zeros_like(p) if buffer is None else laid_out_as(p, buffer)
                    self.state[p][f"momentum_{name}"] = buffer
                buffers[name] = buffer
            for name in new:
                alone, decaying = self._used(group, list(buffers))
                momentum = group["momentum"] if alone else self._momenta(group)[name]
                columns = table[group["weight_decay"] if name == decaying else 0.0, momentum, p.device, p.dtype]
                columns[0].append(p)
                columns[1].append(buffers[name])
        return table

    def _used(self, group: Mapping[str, Any], names: Sequence[str]) -> tuple[bool, str]:
        """For a parameter that these streams reach: whether one is alone, and which takes the decay."""
        decaying = group["decay_stream"] if group["decay_stream"] in names else names[0]
        return len(names) == 1 and len(self._streams) > 1, decaying

    def _decay(self, table: Mapping[_Rule, _Columns], flags: Mapping[torch.device, Tensor]) -> None:
        """v <- m v + lambda theta; nothing where the flag of the device is 1."""
        for (decay, momentum, device, dtype), (params, buffers) in table.items():
            bad = flags[device].to(torch.promote_types(dtype, torch.float32))
            torch._foreach_mul_(buffers, bad + (1 - bad) * momentum)
            if decay:
                # The kernel of plain SGD is the one that obeys a flag on the device: v - lambda (-theta).
                torch._fused_sgd_(
                    buffers,
                    params,
                    [],
                    weight_decay=0.0,
                    momentum=0.0,
                    lr=decay,
                    dampening=0.0,
                    nesterov=False,
                    maximize=True,
                    is_first_step=False,
                    grad_scale=None,
                    found_inf=flags[device],
                )

    def _start_again(self) -> None:
        """Give up the step that has begun, if there is one: its buffers lose their past."""
        with torch.no_grad():
            for buffers in self._gradients.tensors(with_sum=False).values():
                torch._foreach_zero_(buffers)
        self._forget()

    def _forget(self) -> None:
        self._gradients.clear()
        self._bad_losses = self._entered = None

    def _refuse_foreign(self) -> None:
        """Raise RuntimeError for a ``p.grad`` from elsewhere: to a store that is empty any gradient is foreign."""
        StreamGradients().follow(self._params())

    def _refuse(self, what: str) -> NoReturn:
        raise RuntimeError(f"with gradients_in_buffers no gradients are kept: {what}")


class _Gate:
    """A hook for parameters: lets a gradient pass, or zeros instead of it where ``shut``, bool of shape ()."""

    def __init__(self, shut: Tensor) -> None:
        self._shut = shut

    def __call__(self, grad: Tensor) -> Tensor:
        if grad.is_sparse:
            raise TypeError("got a sparse gradient, expected dense: use Embedding(sparse=False)")
        return grad.masked_fill(self._shut, 0.0)
