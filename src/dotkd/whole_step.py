"""Forward pass, losses and the gradient of each loss as one compiled graph.

For losses L_1 .. L_n of one forward pass, parameters theta and seeds s (the factor that the losses are multiplied by,
such as a loss scale), a call gives

    L_k,  s dL_k / dtheta    for k = 1 .. n

torch.compile alone cuts a step at every backward pass, and its backward graphs hand out zeros for parameters that a
loss does not reach. Here the step is first run once on tensors without values, recording every operation that reaches
the device, those of all backward passes included; what comes out has no branches, no autograd and no Python in it, and
is compiled as it stands. A gradient that does not exist is None, as without compiling.

What is recorded is what the Python code did that once. So whatever it decides must follow from shapes and types: a
branch on the values of a tensor is refused by torch with its place, and code that changes with a state of its own (a
counter, Python's random numbers) would be frozen. Numbers drawn by torch are drawn anew in every call, as without
compiling.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

Given = Sequence[Tensor | None]


class Computed(NamedTuple):
    """losses: unweighted, by name; streams: weighted, by stream of the optimizer; shape () each. logits: (N, C)."""

    losses: dict[str, Tensor]
    streams: dict[str, Tensor]
    logits: Tensor


class WholeStep:
    """Compiles ``compute`` and the gradients of its streams, once for each set of shapes that it is called with.

    Args:
        compute: gives the losses for the tensors (or Nones) that the step is called with; it runs ``models``.
        models: whose parameters and buffers ``compute`` uses. Buffers that it writes to are written to.
        params: what the gradients are taken for.
        keep: whether results are still looked at when the next call begins. On CUDA a call is one replay of a recorded
            graph, which writes its results to where the last ones were.
    """

    def __init__(
        self,
        compute: Callable[..., Computed],
        models: Sequence[nn.Module],
        params: Sequence[nn.Parameter],
        *,
        keep: bool,
    ) -> None:
        self._models = _Models(compute, models)
        self._state = {**dict(self._models.named_parameters()), **dict(self._models.named_buffers())}
        names = {id(tensor): name for name, tensor in self._state.items()}
        self._params = [names[id(p)] for p in params]
        self._keep = keep
        self._graphs: dict[tuple[object, ...], tuple[Callable[..., Any], list[str], list[str]]] = {}
        for tensor in self._state.values():
            # A recorded graph then reads them where they are instead of a copy of theirs.
            torch._dynamo.mark_static_address(tensor)

    def __call__(self, seed: Tensor, *given: Tensor | None) -> tuple[Computed, dict[str, list[Tensor | None]]]:
        """What ``compute(*given)`` gives, detached, and the gradients by stream, ``seed`` (shape ()) times as large.

        Raises:
            RuntimeError: the step cannot be recorded, for the reason that the text gives.
        """
        key = tuple(None if t is None else (t.shape, t.stride(), t.dtype) for t in given)
        state = list(self._state.values())
        if key not in self._graphs:
            self._graphs[key] = self._recorded(state, seed, given)
        graph, names, streams = self._graphs[key]
        with torch.no_grad():
            logits, losses, weighted, grads = graph(state, seed, given)
            if self._keep:
                logits = logits.clone()
                losses, weighted = ([t.clone() for t in some] for some in (losses, weighted))
                grads = [[None if t is None else t.clone() for t in some] for some in grads]
        computed = Computed(dict(zip(names, losses, strict=True)), dict(zip(streams, weighted, strict=True)), logits)
        return computed, dict(zip(streams, grads, strict=True))

    def _recorded(
        self, state: list[Tensor], seed: Tensor, given: Given
    ) -> tuple[Callable[..., Any], list[str], list[str]]:
        names: list[str] = []
        streams: list[str] = []

        def step(state: list[Tensor], seed: Tensor, given: Given) -> Any:
            values = dict(zip(self._state, state, strict=True))
            found: Computed = torch.func.functional_call(self._models, values, tuple(given))
            params = [values[name] for name in self._params]
            names[:], streams[:] = list(found.losses), list(found.streams)
            grads = [
                list(torch.autograd.grad(loss, params, seed.to(loss.dtype), retain_graph=True, allow_unused=True))
                for loss in found.streams.values()
            ]
            losses, weighted = ([loss.detach() for loss in some.values()] for some in found[:2])
            return found.logits.detach(), losses, weighted, grads

        drawn = random.getstate()
        traced = make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)(state, seed, given)
        if random.getstate() != drawn:
            raise RuntimeError(
                "the model draws from Python's `random`, which a compiled step would do once and for all"
            )
        # Random numbers as torch draws them, and the step as one replay where there is a GPU.
        options: dict[str, Any] = {"fallback_random": True, "triton.cudagraphs": seed.is_cuda}
        return torch.compile(traced, fullgraph=True, dynamic=False, options=options), names, streams


class _Models(nn.Module):
    """Puts the models under one name each, and in place of their tensors those that a call brings."""

    def __init__(self, compute: Callable[..., Computed], models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self._compute = compute

    def forward(self, *given: Tensor | None) -> Computed:
        return self._compute(*given)
