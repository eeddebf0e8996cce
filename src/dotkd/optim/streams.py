"""Named gradient streams: several losses, one model, and each loss's gradient kept apart.

An ordinary optimizer sees the gradient of the sum. A :class:`StreamOptimizer` sees one gradient per named loss (a
*stream*), so that a subclass can give every stream its own momentum. The rules that all subclasses share live here:

* ``backward(task=..., distill=...)`` runs one backward pass per stream and adds to what is there, so micro-batches
  accumulate. ``join(...)`` is the same thing as one scalar whose ordinary ``.backward()`` does it.
* ``p.grad`` holds the *sum* of the streams, the gradient that any other tool expects to find. If such a tool rescales
  it as a whole (``clip_grad_norm_``, ``GradScaler.unscale_``), every stream follows by the same factor. Any other
  change of ``p.grad`` is refused, because no stream would know of it.
* A step in which any stream is not finite is skipped: no parameter and no buffer changes. The decision is taken on the
  device, so nothing waits for it.
* Under DistributedDataParallel all streams are averaged over the ranks (``data_parallel.py`` says how).
"""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
import torch._functorch.config as functorch_config
from torch import Tensor

from dotkd.optim.gradients import Fresh, StreamGradients
from dotkd.optim.many_devices import ManyDevices
from dotkd.optim.passes import Join, backward_pass
from dotkd.optim.shards import mesh_of, reduce_over, spread_as, whole


class StreamOptimizer(ManyDevices):
    """Base of the optimizers that keep one gradient per named loss. Subclasses implement ``_update``."""

    # GradScaler then hands over its scale and its overflow flag instead of reading the flag on the host.
    _step_supports_amp_scaling = True

    def __init__(self, params: Any, defaults: dict[str, Any], streams: Sequence[str]) -> None:
        # A compiled model frees ("donates") buffers in its first backward that the second one still needs.
        functorch_config.donated_buffer = False
        self._streams = tuple(streams)
        self._gradients = StreamGradients()
        self._bad_losses: Tensor | None = None  # (): how many losses were not finite since zero_grad()
        self._skips: Tensor | None = None  # (2,): steps skipped in all, and in a row
        super().__init__(params, defaults)

    @property
    def streams(self) -> tuple[str, ...]:
        """The names of the streams, in the order in which their backward passes run."""
        return self._streams

    @property
    def skipped_steps(self) -> int:
        """Steps skipped because a gradient was not finite. Reading it waits for the device."""
        return 0 if self._skips is None else int(self._skips[0])

    @property
    def skipped_in_a_row(self) -> int:
        """Steps skipped since the last one that was taken. Reading it waits for the device."""
        return 0 if self._skips is None else int(self._skips[1])

    @property
    def last_step_skipped(self) -> Tensor:
        """Whether the last step was skipped, bool of shape () on the device: for code that must not wait for it."""
        return torch.zeros((), dtype=torch.bool) if self._skips is None else self._skips[1] > 0

    def stream_grad(self, param: Tensor, stream: str) -> Tensor | None:
        """The gradient of one stream for ``param``, or None where that stream did not reach it."""
        self._check_names([stream])
        return self._gradients.of.get(param, {}).get(stream)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; a group that breaks a rule is refused before it is added."""
        params = param_group["params"]
        if not isinstance(params, (Tensor, set)):  # torch refuses a set, whose order is not defined
            params = param_group["params"] = list(params)
        for entry in [params] if isinstance(params, Tensor) else params:
            tensor = entry[1] if isinstance(entry, tuple) else entry
            if isinstance(tensor, Tensor) and tensor.is_complex():
                raise TypeError(f"expected real parameters, got one of dtype {tensor.dtype}")
        self._check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def backward(self, **losses: Tensor) -> None:
        """Fill every stream from its own loss: one backward pass per stream through the shared graph.

        Gradients add up until ``zero_grad()``. If a backward pass fails midway, everything is as it was before.

        Raises:
            ValueError: a stream is missing or unknown, or a loss is not a scalar.
            RuntimeError: a loss does not require grad, or reaches no parameter of this optimizer.
        """
        self._fill(self._checked(losses), None)

    def join(self, **losses: Tensor) -> Tensor:
        """The sum of the losses as one scalar whose ordinary ``.backward()`` fills every stream.

        For code that must call ``loss.backward()`` itself: GradScaler, Accelerate, trainers. Whatever factor the result
        is multiplied by reaches every stream. Raises as :meth:`backward` does.
        """
        checked = self._checked(losses)
        anchor = torch.zeros((), device=checked[self._streams[0]].device, requires_grad=True)
        return cast("Tensor", Join.apply(anchor, self._fill, checked))

    @torch.no_grad()
    def fill(self, losses: Mapping[str, Tensor], grads: Mapping[str, Sequence[Tensor | None]]) -> None:
        """As :meth:`backward`, where the gradients have been computed already, as in a step compiled as a whole.

        Args:
            losses: by stream, shape () each, as :meth:`backward` takes them; only whether they are finite counts.
            grads: by stream, for each parameter that requires grad, in the order of the groups, its gradient, or None
                where the loss does not reach it. They become the optimizer's.

        Raises:
            ValueError: a stream is missing or unknown, or gradients do not fit the parameters.
            RuntimeError: a loss reaches no parameter.
        """
        params = self._trainable()
        for name in self._named(losses, grads):
            shapes = [None if grad is None else grad.shape for grad in grads[name]]
            if len(shapes) != len(params):
                raise ValueError(f"expected {len(params)} gradients for stream {name!r}, got {len(shapes)}")
            for shape, p in zip(shapes, params, strict=True):
                if shape not in (None, p.shape):
                    raise ValueError(
                        f"expected a gradient of shape {tuple(p.shape)} in stream {name!r}, got {tuple(shape)}"
                    )
        self._look_for_ranks()
        if self._ranks is not None:
            raise RuntimeError("fill() takes this rank's gradients alone: with several ranks use backward() or join()")
        self._follow()
        self._take(self._count_bad(losses), params, {name: list(grads[name]) for name in self._streams})

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of every stream, and their sum in ``p.grad``."""
        super().zero_grad(set_to_none)
        self._gradients.clear()
        self._bad_losses = None

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float | Tensor) -> Tensor:
        """Scale all streams by one factor so that the global 2-norm of their *sum* is at most ``max_norm``.

        Returns the norm before clipping, shape (). Under a GradScaler whose ``unscale_`` was not called, pass
        ``scaler.scale(max_norm)``: everything here is still scaled then.
        """
        if not isinstance(max_norm, Tensor) and not max_norm > 0:
            raise ValueError(f"expected `max_norm` > 0, got {max_norm}")
        self._gradients.refuse_rescaling()
        self._gradients.follow(self._params(), look=mesh_of(self._gradients.of) is not None)
        total = whole(torch.nn.utils.get_total_norm([p.grad for p in self._gradients.of if p.grad is not None]))
        factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
        for (device, _), grads in self._gradients.tensors(with_sum=True).items():
            torch._foreach_mul_(grads, factor.to(device))
        self._gradients.remember()
        return total

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the parameters once from all streams, or skip the step if any gradient is not finite.

        Raises:
            RuntimeError: no stream was filled since the last ``zero_grad()``, or ``p.grad`` was changed otherwise than
                by a common factor.
            ValueError: a hyper-parameter was changed to a value that its rule forbids.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale: Tensor | None = getattr(self, "grad_scale", None)
        overflow: Tensor | None = getattr(self, "found_inf", None)
        if self._ranks is not None and self._gradients.of:
            self._ranks.check(scaled=overflow is not None)
        # A scaler that unscaled p.grad by itself leaves no trace but the absence of its scale; what torch's clipping
        # does to shards leaves none at all.
        look = (overflow is not None and scale is None) or mesh_of(self._gradients.of) is not None
        self._gradients.follow(self._params(), look=look)
        if self._started_state():
            return loss
        if not self._gradients.of:
            raise RuntimeError(f"step() before backward(): the streams {', '.join(self._streams)} hold no gradient")
        for group in self.param_groups:
            self._check_group(group)
        found = self._find_non_finite(scale, overflow)
        for group in self.param_groups:
            self._update(group, found)
        if self._ranks is not None:
            self._ranks.apart = self._ranks.world > 1 and self._gradients.state == "direction"
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch; buffers whose shapes differ from the parameters' are refused before anything is loaded.

        Whole buffers become shards where the parameters are, and the other way round; then all ranks call this.
        """
        params = self._params()
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        for index, p in zip(saved, params, strict=False):
            for name, value in state_dict["state"].get(index, {}).items():
                if isinstance(value, Tensor) and value.dim() and value.shape != p.shape:
                    raise ValueError(
                        f"state {name!r} of parameter {index} has shape {tuple(value.shape)}, expected {tuple(p.shape)}"
                    )
        for ours, theirs in zip(self.param_groups, state_dict["param_groups"], strict=False):
            # torch adds a default of its own when a state is loaded, which states from before then do not have.
            if missing := sorted(set(self.defaults) - set(theirs) - {"differentiable"}):
                raise ValueError(f"the state is of another optimizer: its groups have no {', '.join(missing)}")
            self._check_group({**ours, **theirs})
        state = dict(state_dict["state"])
        for index, p in zip(saved, params, strict=False):
            if index in state:
                state[index] = {name: spread_as(value, p) for name, value in state[index].items()}
        super().load_state_dict({**state_dict, "state": state})
        if self._ranks is not None:
            self._ranks.apart = False

    def __getstate__(self) -> dict[str, Any]:
        own = ("_streams", "_gradients", "_bad_losses", "_skips")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}

    # --- for subclasses ---------------------------------------------------------------------------------------------

    @abstractmethod
    def _check_group(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError if a hyper-parameter breaks its rule. Runs on construction and before every step."""

    # --- inside -----------------------------------------------------------------------------------------------------

    def _check_names(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._streams:
                near = difflib.get_close_matches(name, self._streams, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"unknown stream {name!r}, expected {', '.join(self._streams)}{hint}")

    def _trainable(self) -> list[Tensor]:
        return [p for p in self._params() if p.requires_grad]

    def _named(self, *by_stream: Mapping[str, Any]) -> tuple[str, ...]:
        """The streams, for each of which every argument must have an entry."""
        for given in by_stream:
            self._check_names(given)
            if missing := [name for name in self._streams if name not in given]:
                raise ValueError(f"a step needs every stream: missing {', '.join(missing)}")
        return self._streams

    def _checked(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._named(losses)
        for name, loss in losses.items():
            if not isinstance(loss, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"expected a tensor for stream {name!r}, got {type(loss).__name__}")
            if loss.dim():
                raise ValueError(f"expected a scalar loss for stream {name!r}, got shape {tuple(loss.shape)}")
            if not loss.requires_grad:
                raise RuntimeError(f"the loss of stream {name!r} does not require grad: was it detached?")
        return {name: losses[name] for name in self._streams}

    def _follow(self) -> None:
        self._gradients.follow(self._params())
        if not self._gradients.of:  # the model was zeroed rather than the optimizer
            self._bad_losses = None

    @torch.no_grad()
    def _fill(self, losses: Mapping[str, Tensor], scale: Tensor | None) -> None:
        self._look_for_ranks()
        mesh_of(self._params())  # refuses what is spread over the ranks in part only
        self._follow()
        params = self._trainable()
        held = [p.grad for p in params]
        fresh: dict[str, list[Tensor | None]] = {}
        bad = self._count_bad(losses)
        try:
            if self._ranks is not None:  # which sees to it that all passes are averaged
                fresh = self._ranks.passes(losses, scale, params, bad)
            # Real backward passes rather than autograd.grad: hooks fire, and parameters that belong to another
            # optimizer collect the sum, as after an ordinary backward().
            for name, loss in losses.items() if self._ranks is None else ():
                for p in params:
                    p.grad = None
                backward_pass(loss, scale, last=name == self._streams[-1])
                fresh[name] = [p.grad for p in params]
        finally:
            for p, grad in zip(params, held, strict=True):
                p.grad = grad
        self._take(bad, params, fresh)

    def _count_bad(self, losses: Mapping[str, Tensor]) -> Tensor:
        """How many losses were not finite since zero_grad(), these included, shape ()."""
        flags = [(~loss.detach().isfinite()).float() for loss in losses.values()]
        return torch.stack(flags if self._bad_losses is None else [*flags, self._bad_losses]).sum()

    def _take(self, bad: Tensor, params: list[Tensor], fresh: Fresh) -> None:
        self._refuse_unusable(fresh)
        self._bad_losses = bad
        if self._ranks is not None:
            self._ranks.take(params, fresh)
        else:
            self._gradients.add(params, fresh)

    def _refuse_unusable(self, fresh: Fresh) -> None:
        for name, grads in fresh.items():
            present = [grad for grad in grads if grad is not None]
            if not present:
                held_back = "; or set_requires_gradient_sync(False) keeps its gradient back, where the streams mix"
                hint = held_back if mesh_of(self._params()) is not None else ""
                raise RuntimeError(f"the loss of stream {name!r} reaches no parameter of this optimizer{hint}")
            if any(grad.is_sparse for grad in present):
                raise TypeError(f"stream {name!r} has a sparse gradient, expected dense: use Embedding(sparse=False)")

    def _find_non_finite(self, scale: Tensor | None, overflow: Tensor | None) -> dict[torch.device, Tensor]:
        """Unscale all gradients if a scaler asks for it, and flag the step if any of them is not finite."""
        table = self._gradients.tensors(with_sum=scale is not None)
        home = next(iter(table))[0]
        found = torch.zeros((), device=home)
        if self._bad_losses is not None:
            found = self._bad_losses.to(home).clamp(max=1.0)
        if overflow is not None:
            found = torch.maximum(found, overflow.to(home).reshape(()))
        inverse = torch.ones((), device=home) if scale is None else scale.to(home).double().reciprocal().float()
        for (device, _), grads in table.items():
            flag = torch.zeros((), device=device)
            torch._amp_foreach_non_finite_check_and_unscale_(grads, flag, inverse.to(device))
            found = torch.maximum(found, flag.to(home))
        reduce_over(mesh_of(self._gradients.of), found, largest=True)
        if self._skips is None:
            self._skips = torch.zeros(2, device=home)
        self._skips.add_(found)
        self._skips[1].mul_(found)
        if scale is not None or self._gradients.state == "direction":  # p.grad was written to
            self._gradients.remember()
        return {device: found.to(device) for device, _ in table}
