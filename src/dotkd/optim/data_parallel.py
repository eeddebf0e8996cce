"""Named streams on many devices: what each rank of a DistributedDataParallel (DDP) run sends, and when.

DDP averages the gradients of one backward pass over the ranks. With one pass per loss it averages those of the first
pass, and the others stay as each rank found them, without an error. Here all streams but the last are computed where
DDP does not notice (``torch.autograd.grad``). The last one is an ordinary backward pass, during which DDP hands over
its buckets as they fill (a *comm hook*), so that sending overlaps with the rest of that pass. There are two ways.

``reduce="momenta"``: for an update that is linear in the gradients (DOT). With rank r = 1..R, stream s, momentum m_s,
share c_s (1, or that of ``normalize``) and decay lambda_s, one process on the joined batch would do

    v_s   <- m_s v_s + mean_r g_s^r + lambda_s theta
    theta <- theta - lr sum_s c_s v_s

Let each rank keep a v_s^r of its own, from its own gradient alone. If mean_r v_s^r = v_s before the step, the same
holds after it, because the first line is linear; all start at 0. So it is enough to send what the step takes from
theta / lr,

    u^r = sum_s c_s (m_s v_s^r + g_s^r + lambda_s theta),    theta <- theta - lr mean_r u^r

one number per parameter however many streams there are: as much as DDP sends for one loss. ``p.grad`` holds mean_r u^r
after the backward pass. Nothing may rescale it, for the local buffers would not follow. Replacing every v_s^r by its
mean keeps that mean, so a checkpoint holds averages (``average_buffers()``), and continues on any number of ranks.

``reduce="gradients"``: every stream's gradient is averaged, S numbers per parameter for S streams; from there on each
rank does what one process would do. This is for updates that are not linear (AdamW), clipping, and GradScaler.

In both:

* A loss or gradient that is not finite on one rank makes what is sent not finite, so all ranks skip the same steps.
* Parameters that are in no DDP module are averaged in one flat tensor per dtype, when the backward pass ends.
* Micro-batches under ``no_sync()`` stay local and add up; the first backward pass outside it sends the total.
* Where a stream reaches a parameter on some ranks only, the others add nothing. With "momenta" a buffer then waits on
  the ranks that its stream did not reach; with "gradients" the stream counts as reaching everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from dotkd.optim.ddp_module import DDPModule
from dotkd.optim.gradients import Fresh
from dotkd.optim.packets import Packet, like
from dotkd.optim.passes import backward_pass
from dotkd.optim.rank_state import average, by_kind, start_mean
from dotkd.optim.streams import StreamOptimizer

Reduce = Literal["momenta", "gradients"]
_Grads = dict[str, list["Tensor | None"]]  # by stream, then in the order of the parameters


class DataParallel:
    """The ranks that train the parameters of one optimizer; made by ``StreamOptimizer.distribute``."""

    def __init__(
        self, optimizer: StreamOptimizer, modules: Sequence[DistributedDataParallel], reduce: Reduce | None
    ) -> None:
        _check(optimizer, modules, reduce)
        self.reduce: Reduce = reduce or ("momenta" if optimizer.linear else "gradients")
        self.group = modules[0].process_group
        self.world = dist.get_world_size(self.group)
        self.apart = False  # whether the ranks' momenta differ
        self._optimizer = optimizer
        self._modules = [DDPModule.of(module, self._send) for module in modules]
        self._rules: list[dict[str, Any]] = []  # the hyper-parameters that went into what was sent
        self._running = False  # whether DDP's buckets are those of a backward pass of ours
        self._stream = ""  # the last one, whose pass DDP sees
        self._local: dict[Tensor, dict[str, Tensor]] = {}  # this rank's gradients, earlier micro-batches included
        self._last: dict[Tensor, Tensor] = {}  # the last stream's, of this pass alone
        self._touched: set[Tensor] = set()
        self._sent: dict[Tensor, Tensor] = {}  # where the average arrives; with "momenta" the future p.grad
        self._packets: list[Packet] = []  # "gradients"
        self._poison = torch.zeros(())  # nan if a loss was not finite, else 0

    def passes(self, losses: Mapping[str, Tensor], scale: Tensor | None, params: list[Tensor], bad: Tensor) -> _Grads:
        """One backward pass per stream, and the exchange; returns this rank's gradients alone.

        ``bad`` counts the losses that were not finite since ``zero_grad()``, shape ().
        """
        *earlier, self._stream = losses
        fresh: _Grads = {}
        for name in earlier:
            loss = losses[name]
            seed = None if scale is None else scale.to(loss.dtype)
            fresh[name] = list(torch.autograd.grad(loss, params, seed, retain_graph=True, allow_unused=True))
        self._optimizer._refuse_unusable(fresh)
        held = self._optimizer._gradients.of
        self._local = {p: dict(held.get(p, {})) for p in self._optimizer._params()}
        for name, grads in fresh.items():
            self._add(name, {p: grad for p, grad in zip(params, grads, strict=True) if grad is not None})
        self._poison = torch.where(bad > 0, torch.nan, 0.0)
        self._last, self._touched, self._sent, self._packets = {}, set(), {}, []
        for p in params:
            p.grad = None
        for module in self._modules:
            module.expect()
        self._running = True
        try:
            backward_pass(losses[self._stream], scale, last=True)
            alone = [p.grad for p in params]
            self._touch(
                p for p, *others in zip(params, *fresh.values(), strict=True) if any(g is not None for g in others)
            )
            self._refuse_unfinished()
            if self._sent:
                self._send_rest(params)
                fresh[self._stream] = [self._last.get(p) for p in params]
                # DDP leaves alone what it takes for unused, that is, not reached by the last stream on any rank.
                self._sent = {p: p.grad if p.grad is not None else view.clone() for p, view in self._sent.items()}
            else:  # under no_sync(): what autograd.grad returns may share memory, and will be added to
                fresh = {name: [None if g is None else g.clone() for g in grads] for name, grads in fresh.items()}
                fresh[self._stream] = alone
        finally:
            self._running = False
        return fresh

    def take(self, params: list[Tensor], fresh: Fresh) -> None:
        """Hand what the passes left to the optimizer: averages, or under ``no_sync()`` this rank's own gradients."""
        gradients = self._optimizer._gradients
        if not self._sent:
            if gradients.state == "direction":
                gradients.of = {p: {name: g.clone() for name, g in held.items()} for p, held in gradients.of.items()}
            gradients.add(params, fresh)
            gradients.state = "local"
        elif self.reduce == "momenta":
            for p in params:
                p.grad = self._sent[p]
            gradients.of = {p: self._local[p] for p in params if p.grad is not None}
            gradients.state = "direction"
            gradients.remember()
            self._rules = self._current_rules()
        else:
            gradients.of.clear()
            for p in params:
                p.grad = None
            for packet in self._packets:
                gradients.add(packet.params, packet.gradients())
            gradients.state = "averaged"
        self._local, self._last, self._sent, self._packets = {}, {}, {}, []

    def check(self, *, scaled: bool) -> None:
        """Refuse a step for which the gradients were not averaged, or not in the way that it needs."""
        gradients = self._optimizer._gradients
        if gradients.state == "local":
            raise RuntimeError(
                "the gradients of this step were not averaged over the ranks: the last forward and backward pass "
                "before step() must run through the DistributedDataParallel module and outside no_sync()"
            )
        if scaled:
            gradients.refuse_rescaling()
        if gradients.state == "direction" and self._rules != self._current_rules():
            raise RuntimeError("a hyper-parameter other than `lr` was changed between backward() and step()")

    def average_buffers(self) -> None:
        """Give all ranks the mean of their momenta."""
        if self.apart:
            keys = [f"momentum_{name}" for name in self._optimizer.streams]
            average(self._optimizer._params(), self._optimizer.state, keys, self.group)
            self.apart = False

    def rest(self) -> list[Tensor]:
        """The optimizer's parameters that are in no DDP module."""
        inside = {p for module in self._modules for p in module.params}
        return [p for p in self._optimizer._params() if p not in inside]

    # --- what is sent -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _send(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """The hook: fill the bucket, or something larger, with what is to be averaged, and start averaging it."""
        buffer = bucket.buffer()
        if not self._running:  # an ordinary backward pass, of somebody else
            return start_mean(buffer, self.group).then(_first)
        params, views = bucket.parameters(), bucket.gradients()
        reached = [p.grad is not None and p not in self._touched for p in params]
        own = like(buffer.clone(), buffer, views)
        self._last.update((p, grad) for p, grad, there in zip(params, own, reached, strict=True) if there)
        self._add(self._stream, {p: grad for p, grad, there in zip(params, own, reached, strict=True) if there})
        self._sent.update(zip(params, views, strict=True))
        if self.reduce == "momenta":
            self._fill_directions(buffer, params, views)
            return start_mean(buffer, self.group).then(_first)
        packet = self._pack(buffer, params, views)

        def last(future: Future[Any]) -> Tensor:
            return packet.last(_first(future))

        return start_mean(packet.flat, self.group).then(last)

    def _send_rest(self, params: list[Tensor]) -> None:
        """The same for the parameters that are in no DDP module, and wait for the result."""
        for (device, dtype), some in by_kind(p for p in params if p not in self._sent).items():
            grads = {p: p.grad for p in some if p.grad is not None and p not in self._touched}
            self._last.update(grads)
            self._add(self._stream, grads)
            buffer = torch.zeros(sum(p.numel() for p in some), device=device, dtype=dtype)
            views = [v.view_as(p) for v, p in zip(buffer.split([p.numel() for p in some]), some, strict=True)]
            if self.reduce == "momenta":
                self._fill_directions(buffer, some, views)
                start_mean(buffer, self.group).wait()
                for p, view in zip(some, views, strict=True):
                    p.grad = self._sent[p] = view
            else:
                start_mean(self._pack(buffer, some, views).flat, self.group).wait()

    def _fill_directions(self, buffer: Tensor, params: list[Tensor], views: list[Tensor]) -> None:
        buffer.zero_()
        self._optimizer._add_directions({p: self._local[p] for p in params}, dict(zip(params, views, strict=True)))
        buffer[:1].add_(self._poison.to(buffer.device))

    def _pack(self, buffer: Tensor, params: list[Tensor], views: list[Tensor]) -> Packet:
        packet = Packet(buffer, params, views, self._local, self._optimizer.streams)
        packet.flat[:1].add_(self._poison.to(buffer.device))
        self._packets.append(packet)
        return packet

    # --- inside -------------------------------------------------------------------------------------------------------

    def _add(self, name: str, grads: Mapping[Tensor, Tensor]) -> None:
        """Add gradients of one stream to this rank's own, in memory of their own where there are some already."""
        both = [p for p in grads if name in self._local[p]]
        sums = torch._foreach_add([self._local[p][name] for p in both], [grads[p] for p in both]) if both else ()
        for p, grad in {**grads, **dict(zip(both, sums, strict=True))}.items():
            self._local[p][name] = grad

    def _touch(self, reached: Iterable[Tensor]) -> None:
        """Tell DDP that parameters which earlier streams alone reach are done, or it waits for them for ever."""
        waited_for = {p for module in self._modules for p in module.params if p not in module.fired}
        missing = [p for p in reached if p in waited_for]
        self._touched = set(missing)
        if missing:
            with torch.enable_grad():
                copies = [p.view_as(p) for p in missing]
            torch.autograd.backward(copies, [torch.zeros_like(p) for p in missing])

    def _refuse_unfinished(self) -> None:
        for module in self._modules:
            left = [p for p in module.params if p not in module.fired]
            if module.waits and module.fired and left:
                raise RuntimeError(
                    f"no loss reaches {len(left)} parameters of the DistributedDataParallel module, the first of shape "
                    f"{tuple(left[0].shape)}: freeze them before wrapping, or pass find_unused_parameters=True"
                )

    def _current_rules(self) -> list[dict[str, Any]]:
        rules = self._optimizer.defaults.keys() - {"lr"}
        groups = self._optimizer.param_groups
        return [copy.deepcopy({key: value for key, value in group.items() if key in rules}) for group in groups]


def _first(future: Future[Any]) -> Tensor:
    return future.value()[0]


def _check(optimizer: StreamOptimizer, modules: Sequence[DistributedDataParallel], reduce: Reduce | None) -> None:
    if not modules:
        raise ValueError("expected at least one DistributedDataParallel module, got none")
    for module in modules:
        if not isinstance(module, DistributedDataParallel):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"expected a DistributedDataParallel module, got {type(module).__name__}")
    if reduce is not None and reduce not in get_args(Reduce):
        raise ValueError(f"expected `reduce` 'momenta' or 'gradients', got {reduce!r}")
    if reduce == "momenta" and not optimizer.linear:
        raise ValueError(
            f"expected reduce='gradients' for {type(optimizer).__name__}, whose step is not linear in the gradients, "
            "got 'momenta'"
        )
    if getattr(optimizer, "_in_buffers", False):
        raise RuntimeError("with gradients_in_buffers no gradients are kept: there are none to average over the ranks")
    if any(module.process_group != modules[0].process_group for module in modules):
        raise ValueError("expected DistributedDataParallel modules of one process group")
    if optimizer._gradients.of:
        raise RuntimeError("distribute() after backward(): call it before, or zero_grad() first")
    own, seen = set(optimizer._params()), set[Tensor]()
    for module in modules:
        for name, p in module.module.named_parameters():
            if p.requires_grad and p not in own:
                raise ValueError(f"parameter {name!r} of the DistributedDataParallel module is not in this optimizer")
            if p in seen:
                raise ValueError(f"parameter {name!r} is in two DistributedDataParallel modules: pass the one in use")
            seen.add(p)
