"""What the ranks of a distributed run hold besides gradients, made equal or shown to be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def by_kind(params: Iterable[Tensor]) -> dict[tuple[torch.device, torch.dtype], list[Tensor]]:
    """The tensors by device and dtype, as one piece of memory can hold them."""
    table: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for p in params:
        table[p.device, p.dtype].append(p)
    return table


def start_mean(flat: Tensor, group: Any) -> Any:
    """Start replacing ``flat`` by its mean over the ranks of ``group``; returns a future of [``flat``]."""
    work = dist.all_reduce(flat.div_(dist.get_world_size(group)), group=group, async_op=True)
    assert work is not None
    return work.get_future()


def share(params: Sequence[Tensor], group: Any) -> None:
    """Give all ranks the parameters of the group's first."""
    first = dist.get_process_group_ranks(group)[0]
    for p in params:
        dist.broadcast(p.data, src=first, group=group)


def refuse_unequal(params: Sequence[Tensor], group: Any) -> None:
    """Raise RuntimeError, on all ranks alike, if the parameters differ between ranks."""
    for some in by_kind(params).values():
        flat = torch.cat([p.detach().flatten() for p in some])
        bounds = torch.cat([flat, -flat])
        dist.all_reduce(bounds, op=dist.ReduceOp.MAX, group=group)
        largest, smallest = bounds[: flat.numel()], -bounds[flat.numel() :]
        if not torch.equal(largest, smallest):
            raise RuntimeError(
                f"{len(params)} parameters of this optimizer are in no DistributedDataParallel module, and differ "
                "between ranks: call optimizer.distribute(ddp) before the first forward pass, which makes them equal"
            )


@torch.no_grad()
def average(params: Sequence[Tensor], state: dict[Tensor, dict[str, Any]], keys: Sequence[str], group: Any) -> None:
    """Give all ranks the mean of the buffers ``keys``; where some ranks have one, it counts as zeros on the others."""
    held = torch.tensor([[int(key in state.get(p, {})) for p in params] for key in keys], device=params[0].device)
    dist.all_reduce(held, op=dist.ReduceOp.MAX, group=group)
    for key, row in zip(keys, held.tolist(), strict=True):
        owners = [p for p, there in zip(params, row, strict=True) if there]
        for p in owners:
            state[p].setdefault(key, torch.zeros_like(p))
        for some in by_kind(owners).values():
            buffers = [state[p][key] for p in some]
            flat = torch.cat([buffer.flatten() for buffer in buffers])
            start_mean(flat, group).wait()
            for buffer, mean in zip(buffers, flat.split([p.numel() for p in some]), strict=True):
                buffer.copy_(mean.view_as(buffer))
