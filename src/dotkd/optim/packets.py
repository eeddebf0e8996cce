"""The gradients of several streams in one piece of memory, to be averaged over ranks at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def like(flat: Tensor, buffer: Tensor, views: Sequence[Tensor]) -> list[Tensor]:
    """Views of ``flat`` that lie in it as ``views`` lie in ``buffer``."""
    shift = flat.storage_offset() - buffer.storage_offset()
    return [flat.as_strided(view.shape, view.stride(), view.storage_offset() + shift) for view in views]


class Packet:
    """For S streams, each in the layout of a buffer of n elements that P parameters fill: ``flat``, (S (n + P),).

    The last S P elements say which stream reaches which parameter: 1 where it does, else 0, and after averaging more
    than 0 where it does on any rank.
    """

    def __init__(
        self,
        buffer: Tensor,
        params: list[Tensor],
        views: Sequence[Tensor],
        grads: Mapping[Tensor, Mapping[str, Tensor]],
        streams: Sequence[str],
    ) -> None:
        size = buffer.numel()
        self.params = params
        self.flat = buffer.new_zeros(len(streams) * (size + len(params)))
        self._reach = self.flat[len(streams) * size :].view(len(streams), len(params))
        self._grads: dict[str, list[Tensor]] = {}
        there = [[name in grads[p] for p in params] for name in streams]
        for index, (name, row) in enumerate(zip(streams, there, strict=True)):
            self._last = self.flat[index * size : (index + 1) * size]
            self._grads[name] = like(self._last, buffer, views)
            pairs = [(t, grads[p][name]) for t, p, is_in in zip(self._grads[name], params, row, strict=True) if is_in]
            if pairs:
                torch._foreach_copy_([target for target, _ in pairs], [grad for _, grad in pairs])
        self._complete = all(all(row) for row in there)
        if self._complete:
            self._reach.fill_(1.0)
        else:
            self._reach.copy_(torch.tensor(there))

    def last(self, flat: Tensor) -> Tensor:
        """The part of ``flat``, which is this packet's or what came of it, that belongs to the last stream: (n,)."""
        return flat[self._last.storage_offset() - self.flat.storage_offset() :][: self._last.numel()]

    def gradients(self) -> dict[str, list[Tensor | None]]:
        """By stream, what was averaged; None where no rank's stream reached the parameter."""
        if self._complete:
            return {name: list(grads) for name, grads in self._grads.items()}
        # What the other ranks reached has to be read, which waits for the device.
        return {
            name: [grad if reached else None for grad, reached in zip(grads, row, strict=True)]
            for (name, grads), row in zip(self._grads.items(), (self._reach > 0).tolist(), strict=True)
        }
