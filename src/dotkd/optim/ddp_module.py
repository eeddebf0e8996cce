"""One DistributedDataParallel module, seen from its communication hook."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

Send = Callable[[Any], "Future[Tensor]"]  # GradBucket -> its buffer, averaged


class DDPModule:
    """The state of the hook. It stays with the module for good; who decides what is sent can be replaced.

    Raises ValueError if the module has another hook, or a static graph, whose first backward pass is not bucketed.
    """

    def __init__(self, module: DistributedDataParallel, send: Send) -> None:
        if module.static_graph:
            raise ValueError(
                "expected DistributedDataParallel(static_graph=False): its first step reduces one loss only"
            )
        if module._comm_hooks or module.mixed_precision is not None:
            raise ValueError(
                "expected a DistributedDataParallel module without a communication hook or mixed_precision: "
                "dotkd registers a hook of its own"
            )
        self.send = send
        self.fired: set[Tensor] = set()  # whose gradient DDP was told of in this backward pass, even if there is none
        self.began = self.ended = False  # whether DDP has handed over its first, its last bucket
        self.params = [p for p in module.parameters() if p.requires_grad]
        self._nodes = [_accumulation(p) for p in self.params]
        for p, node in zip(self.params, self._nodes, strict=True):
            node.register_hook(self._on_accumulation(p))
        module.register_comm_hook(self, _hook)

    @classmethod
    def of(cls, module: DistributedDataParallel, send: Send) -> DDPModule:
        """The module's own, redirected to ``send``, if an earlier optimizer has left one."""
        for _, state in module._comm_hooks:
            if isinstance(state, cls):
                state.send = send
                return state
        return cls(module, send)

    def _on_accumulation(self, p: Tensor) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self.fired.add(p)

        return hook

    def expect(self) -> None:
        """Forget the last backward pass."""
        self.fired.clear()
        self.began = self.ended = False


def _hook(state: Any, bucket: Any) -> Any:
    state.began, state.ended = True, bucket.is_last()
    return state.send(bucket)


# DDP compares the annotations themselves, which are strings in this file.
_hook.__annotations__ = {"bucket": dist.GradBucket, "return": Future[Tensor]}


def _accumulation(p: Tensor) -> Any:
    """The node of the autograd graph that adds to ``p.grad``."""
    with torch.enable_grad():
        view = p.view_as(p)
    assert view.grad_fn is not None
    return view.grad_fn.next_functions[0][0]


def modules_around(params: Iterable[Tensor]) -> list[DistributedDataParallel]:
    """The DDP modules of this process that hold any of the parameters, in an unspecified order.

    Raises TypeError if a module of the older FSDP holds some: each rank would clip and skip by its own shard.
    """
    wanted = set(params)
    # Classes, not isinstance: that would ask proxies for their __class__, and wake them.
    modules = [o for o in gc.get_objects() if issubclass(type(o), nn.Module)]
    wrappers = [m for m in modules if type(m).__name__ == "FullyShardedDataParallel"]
    if any(not wanted.isdisjoint(module.parameters()) for module in wrappers):
        raise TypeError("expected torch.distributed.fsdp.fully_shard, got FullyShardedDataParallel, its predecessor")
    found = [m for m in modules if isinstance(m, DistributedDataParallel)]
    return [module for module in found if not wanted.isdisjoint(module.parameters())]
