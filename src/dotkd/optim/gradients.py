"""The gradients of named streams, kept beside ``p.grad``, which holds their sum."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dotkd.optim.shards import local, mesh_of, reduce_over

Fresh = Mapping[str, list[Tensor | None]]


class _Seen(NamedTuple):
    """The sum as we left it; a different object or version means that somebody else wrote to it."""

    grad: Tensor
    version: int


class StreamGradients:
    """For each parameter, the gradient of every stream that reached it."""

    def __init__(self) -> None:
        self.of: dict[Tensor, dict[str, Tensor]] = {}
        self._seen: dict[Tensor, _Seen] = {}
        # What several ranks hold: each its own gradients; their mean; or, in p.grad alone, the mean of what the step
        # takes from the parameters, momenta included.
        self.state: Literal["local", "averaged", "direction"] = "local"

    def clear(self) -> None:
        """Forget everything; ``p.grad`` is the caller's business."""
        self.of.clear()
        self._seen.clear()
        self.state = "local"

    def add(self, params: list[Tensor], fresh: Fresh) -> None:
        """Add one gradient (or None) per stream and parameter to the streams, and their sums to ``p.grad``."""
        sums: dict[Tensor, Tensor] = {}
        adding: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, grads in fresh.items():
            reached = {p: grad for p, grad in zip(params, grads, strict=True) if grad is not None}
            for p, grad in reached.items():
                streams = self.of.setdefault(p, {})
                if name in streams:
                    adding[0].append(streams[name])
                    adding[1].append(grad)
                else:
                    streams[name] = grad
            again = [p for p in reached if p in sums]
            if again:
                both = torch._foreach_add([sums[p] for p in again], [reached.pop(p) for p in again])
                sums.update(zip(again, both, strict=True))
            sums.update(reached)
        own = {id(grad) for grads in fresh.values() for grad in grads if grad is not None}
        for p, total in sums.items():
            if p.grad is None:
                # The sum must not share memory with a stream: whoever rescales p.grad would rescale that stream twice.
                p.grad = total.clone() if id(total) in own else total
            else:
                adding[0].append(p.grad)
                adding[1].append(total)
        if adding[0]:
            torch._foreach_add_(*adding)
        self.remember()

    def remember(self) -> None:
        """Take ``p.grad`` of all parameters as it is now for the sum of the streams."""
        self._seen = {p: _Seen(p.grad, p.grad._version) for p in self.of if p.grad is not None}

    def follow(self, params: Iterable[Tensor], *, look: bool = False) -> None:
        """Bring the streams in line with what happened to ``p.grad`` since it was last seen.

        Removing or zeroing a ``p.grad`` takes that parameter out; one factor common to all of them is passed on to
        every stream; anything else raises RuntimeError. Only where something did happen, or may have without a trace
        (``look``), does this wait for the device.
        """
        for p in params:
            grad, seen = p.grad, self._seen.get(p)
            if grad is None or seen is None:
                self._drop(p)
                if grad is not None and not _is_zero(grad):
                    raise RuntimeError(
                        "a parameter has a gradient that belongs to no stream: use optimizer.backward(...) or "
                        "optimizer.join(...).backward() for every loss, or zero_grad() first"
                    )
            elif grad is not seen.grad or grad._version != seen.version:
                look = True
                if _is_zero(grad) and (self.state == "direction" or not _is_zero(_total(self.of[p]))):
                    self._drop(p)
        if look and self.of:
            self.refuse_rescaling()
            factor = self._common_factor()
            if factor != 1.0:
                torch._foreach_mul_([local(grad) for streams in self.of.values() for grad in streams.values()], factor)
            self.remember()

    def refuse_rescaling(self) -> None:
        """Raise RuntimeError if ``p.grad`` holds directions: this rank's momenta would not follow a new scale."""
        if self.state == "direction":
            raise RuntimeError(
                "gradients cannot be clipped or rescaled here: p.grad holds the averaged direction of the step, with "
                'momenta in it. Call optimizer.distribute(ddp, reduce="gradients") before the first backward pass'
            )

    def tensors(self, *, with_sum: bool) -> dict[tuple[torch.device, torch.dtype], list[Tensor]]:
        """All stream gradients (and their sums in ``p.grad``), by device and dtype as torch's kernels want them.

        Of shards, this rank's. Where ``p.grad`` holds directions, these alone.
        """
        table: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
        for p, streams in self.of.items():
            total = [p.grad] if (with_sum or self.state == "direction") and p.grad is not None else []
            wanted = total if self.state == "direction" else [*streams.values(), *total]
            table[p.device, p.dtype].extend(local(grad) for grad in wanted)
        return table

    def _drop(self, p: Tensor) -> None:
        self.of.pop(p, None)
        self._seen.pop(p, None)

    def _common_factor(self) -> float:
        """The c with ``p.grad == c * sum of the streams`` for all parameters; refuses where there is none."""
        home = next(iter(self.of)).device
        # In double precision, so that a power of two, as loss scales are, comes out as itself.
        wide = torch.float32 if home.type == "mps" else torch.float64
        mesh = mesh_of(self.of)
        rows: list[Tensor] = []
        for p, streams in self.of.items():
            now, total = local(p.grad).to(wide), local(_total(streams)).to(wide)
            size = torch.stack([local(grad).norm() for grad in streams.values()]).sum()
            rows.append(torch.stack([(now * total).sum(), (total * total).sum(), size.to(wide)]).to(home))
        dots, squares, sizes = torch.stack(rows).unbind(1)
        sums = reduce_over(mesh, torch.stack([dots.sum(), squares.sum()]))
        factor = float(torch.where(sums[1] != 0, sums[0] / sums[1], 1.0))
        errors = [(local(p.grad) - factor * local(_total(streams))).norm().to(home) for p, streams in self.of.items()]
        # The bound allows for rounding, also of sums that were accumulated in another order; nan passes on.
        eps = torch.tensor([torch.finfo(p.dtype).eps for p in self.of], device=home)
        wrong = torch.stack([error.to(wide) for error in errors]) > 64 * eps * abs(factor) * sizes
        wrong = reduce_over(mesh, wrong.int(), largest=True)
        if bool(wrong.any()):
            shape = tuple(list(self.of)[int(wrong.argmax())].shape)
            raise RuntimeError(
                f"the gradient of a parameter of shape {shape} was changed by something other than one factor "
                "common to all parameters, which the streams cannot follow: put every loss into a stream, and clip "
                "with optimizer.clip_grad_norm_()"
            )
        return factor


def _total(streams: Mapping[str, Tensor]) -> Tensor:
    first, *others = streams.values()
    return sum(others, first)


def _is_zero(grad: Tensor) -> bool:
    nonzero = local(grad).count_nonzero()
    return not bool(reduce_over(mesh_of([grad]), nonzero, largest=True))
