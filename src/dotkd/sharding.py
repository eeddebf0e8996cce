"""A model spread over the processes (FSDP2): each keeps a part of every weight, and asks for the rest when it needs it.

`torch.distributed.fsdp.fully_shard` turns the parameters into DTensors in place, module by module: those of a block are
whole only while it runs, so the outermost members of every ``nn.Sequential`` and ``nn.ModuleList`` are sharded by
themselves, and what is left with the model. Gradients come back averaged and spread alike, in every backward pass, so
that streams need nothing else. Everything here has to be called in all processes together; alone it changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dotkd import distributed
from dotkd.assembly import Parts, trained_parameters
from dotkd.config import Config
from dotkd.optim import shards
from dotkd.schedule import plan


def spread(config: Config, parts: Parts) -> Parts:
    """The parts with the student sharded, and an optimizer of the shards.

    The teacher has to have its weights first: see `Stepper.start_together`.

    Raises:
        ValueError: the method looks inside the models. FSDP makes ready for a gradient that comes in by a model's
            output; one that comes in elsewhere, by a hook, would be lost.
    """
    if parts.distiller and parts.distiller.looks_inside:
        raise ValueError(f"method {config.method} looks inside the models, which parallel fsdp does not allow: use ddp")
    shard(parts.student, parts.device)
    return parts._replace(plan=plan(config, trained_parameters(config, parts.student, parts.distiller)))


def shard(model: nn.Module, device: torch.device) -> None:
    """Spread the parameters of ``model`` over all processes, those of the main one; leaves its buffers whole."""
    if not any(True for _ in model.parameters()):
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # slow to import

    distributed.follow_main((*model.parameters(), *model.buffers()))
    mesh = init_device_mesh(device.type, (distributed.size(),))
    for module in (*_blocks(model), model):
        fully_shard(module, mesh=mesh)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    for child in model.children():
        if isinstance(model, (nn.Sequential, nn.ModuleList)) and not isinstance(child, (nn.Sequential, nn.ModuleList)):
            if any(True for _ in child.parameters()):
                yield child
        else:
            yield from _blocks(child)


def whole(value: Any) -> Any:
    """Nested dicts and lists with every shard gathered into a plain tensor."""
    if isinstance(value, Mapping):
        return {key: whole(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [whole(entry) for entry in value]
    return shards.whole(value)


@torch.no_grad()
def load_whole(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load plain tensors, the same in all processes, also into a sharded model. Raises as torch does."""
    held: dict[str, Tensor] = model.state_dict()
    spread_out = {
        name: shards.spread_as(value, held[name]) if name in held and held[name].shape == value.shape else value
        for name, value in weights.items()
    }
    model.load_state_dict(spread_out)
