"""Which parameters a backward pass will reach, known before it runs."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def leaves_of(loss: Tensor) -> set[Tensor]:
    """The leaf tensors that the graph of ``loss`` ends in.

    What the graph does not show is missing: leaves inside a Function that runs a backward pass of its own, as reentrant
    checkpointing does. A leaf to which a Function hands None, a gradient that is not there, is among them.
    """
    if loss.grad_fn is None:
        return {loss} if loss.requires_grad else set()
    found: set[Tensor] = set()
    seen: set[Any] = {loss.grad_fn}
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)  # AccumulateGrad's
        if isinstance(leaf, Tensor):
            found.add(leaf)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return found
