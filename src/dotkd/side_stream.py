"""Work on a CUDA stream of its own, beside what the current stream does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class SideStream:
    """Starts work that nobody needs yet, and has it waited for, on the device, where its result is used.

    Memory that one stream has taken may be handed out to it again while another still reads there: every tensor that
    crosses over is therefore marked as in use by the stream that it comes to.
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def start(self, work: Callable[[], T], inputs: Iterable[Tensor]) -> Callable[[], T]:
        """Start ``work``, which reads ``inputs``, all on one device; calling what comes back gives its result.

        On a CPU, which has no streams, it runs when the result is asked for.
        """
        inputs = list(inputs)
        device = inputs[0].device
        if device.type != "cuda":
            return work
        current = torch.cuda.current_stream(device)
        side = self._streams.setdefault(device, torch.cuda.Stream(device))
        side.wait_stream(current)  # the inputs, and weights that were changed, are ready by then
        with torch.cuda.stream(side):
            result = work()
        for tensor in inputs:
            tensor.record_stream(side)

        def joined() -> T:
            here = torch.cuda.current_stream(device)
            here.wait_stream(side)
            for tensor in tensors_in(result):
                tensor.record_stream(here)
            return result

        return joined


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors on a device other than the CPU, in (nested) tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return [] if value.device.type == "cpu" else [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for part in value for tensor in tensors_in(part)] if isinstance(value, (tuple, list)) else []
