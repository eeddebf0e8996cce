"""Parameters that are spread over the ranks (DTensors, as ``torch.distributed.fsdp.fully_shard`` makes them).

FSDP averages the gradient of every backward pass over the ranks and leaves each rank its shard, so that streams come
out right by themselves. Updates go element by element: each rank does its own shard, with the kernels for plain
tensors. What needs all of a gradient, or has to be decided alike everywhere, is reduced over the ranks here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)


def is_shard(tensor: Tensor) -> bool:
    """Whether it is a DTensor; without importing what defines them."""
    return type(tensor) not in _PLAIN and hasattr(tensor, "to_local")


def local(tensor: Any) -> Any:
    """This rank's part of a DTensor, in the same memory; any other tensor itself."""
    return tensor.to_local() if is_shard(tensor) else tensor


def mesh_of(params: Iterable[Tensor]) -> Any:
    """The device mesh that the parameters are spread over, None if they are not.

    Raises ValueError where they are spread over different meshes, or only some are: nobody would average the others.
    """
    meshes: set[Any] = {None if type(p) in _PLAIN else getattr(p, "device_mesh", None) for p in params}
    if len(meshes) > 1:
        raise ValueError(
            "expected all parameters of the optimizer on one device mesh, got "
            f"{'some that are not sharded' if None in meshes else f'{len(meshes)} meshes'}: call fully_shard on all of "
            "them with the same mesh, or use one optimizer for each"
        )
    return next(iter(meshes), None)


def reduce_over(mesh: Any, tensor: Tensor, largest: bool = False) -> Tensor:
    """Replace ``tensor`` by its sum, or its ``largest`` value, over the ranks of ``mesh``; return it."""
    for dim in range(mesh.ndim if mesh else 0):
        dist.all_reduce(tensor, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, group=mesh.get_group(dim))
    return tensor


def whole(tensor: Any) -> Tensor:
    """All of a DTensor, for which all ranks call it; any other tensor itself."""
    return tensor.full_tensor() if is_shard(tensor) else tensor


def spread_as(value: Any, param: Tensor) -> Any:
    """A tensor of the parameter's whole shape, spread as ``param`` is; all ranks call it. Anything else as it is."""
    if not isinstance(value, Tensor) or not value.dim() or is_shard(value) == is_shard(param):
        return value
    if is_shard(value):
        return whole(value)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(param.device), param.device_mesh, param.placements)  # pyright: ignore
