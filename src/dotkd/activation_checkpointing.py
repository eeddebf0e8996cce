"""Activations that are computed again when a backward pass needs them, instead of being kept.

Between forward and backward pass a network keeps what each of its blocks computed inside. With checkpointing it keeps
what goes into each block, and in the backward pass the inside of one block at a time; for that each backward pass
repeats the forward pass (Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174). Counted in
forward passes, a step of DOT then costs 1 + 2 x 3 instead of 1 + 2 x 2.

torch's own ``checkpoint`` does it, the one that is not reentrant: it puts random numbers and autocast back to what they
were. Blocks stay where they are, under their names and with their hooks: only their ``forward`` passes through it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(model: nn.Module) -> tuple[str, ...]:
    """Let every block of ``model`` be computed again in backward passes; returns the paths of the blocks.

    Blocks are the members of an ``nn.Sequential`` or ``nn.ModuleList`` that have parts of their own; a chain of simple
    layers is one block. Of blocks within each other the outermost counts.

    A block that changes its input in place is refused by autograd, in the first backward pass.

    Raises:
        ValueError: there is no such block.
    """
    blocks: dict[nn.Module, str] = {}  # one block may stand in two places
    for path, block in _blocks("", model):
        blocks.setdefault(block, path)
    if not blocks:
        parts = ", ".join(f"{name} ({type(part).__name__})" for name, part in model.named_children())
        raise ValueError(
            "activation_checkpointing: expected a student with an nn.Sequential or nn.ModuleList of blocks to compute "
            f"again, got {type(model).__name__} with the parts {parts or 'none'}"
        )
    for block in blocks:
        block.forward = _Recomputed(block)
    return tuple(blocks.values())


def _blocks(path: str, module: nn.Module, *, member: bool = False) -> Iterator[tuple[str, nn.Module]]:
    parts = [(f"{path}.{name}" if path else name, part) for name, part in module.named_children()]
    chained = isinstance(module, (nn.Sequential, nn.ModuleList))
    simple = not any(True for _, part in parts for _ in part.children())
    if (member and parts and not chained) or (isinstance(module, nn.Sequential) and simple and len(parts) > 1):
        yield path, module
    else:
        for name, part in parts:
            yield from _blocks(name, part, member=chained)


class _Recomputed:
    """The ``forward`` of a block: where gradients are wanted, its activations are computed again for them."""

    def __init__(self, block: nn.Module) -> None:
        self._block, self._forward = block, block.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        contexts = nullcontext(), _BuffersAsNow(self._block)
        return checkpoint(self._forward, *args, use_reentrant=False, context_fn=lambda: contexts, **kwargs)


class _BuffersAsNow(AbstractContextManager[None]):
    """Within, as often as it is entered, a block works on copies of its buffers as they were when this was made.

    So running statistics move once for each batch, and a buffer that the output depends on is what it was.
    """

    def __init__(self, block: nn.Module) -> None:
        self._owners = [
            (part, name, buffer, buffer.clone())
            for part in block.modules()
            for name, buffer in part.named_buffers(recurse=False)
        ]

    def __enter__(self) -> None:
        for part, name, _, before in self._owners:
            part._buffers[name] = before.clone()

    def __exit__(self, *error: object) -> None:
        for part, name, buffer, _ in self._owners:
            part._buffers[name] = buffer
