"""What a method sees of a model: its logits, and what hooks find at named modules. No model is ever rewritten.

A *point* is the path of a module whose output is a feature map, such as `layer3`. Models of this library name theirs in
`feature_points`, those of timm, torchvision and transformers are known by family, for any other the user names them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dotkd.methods.card import Need
from dotkd.methods.points import as_map, declared_activations, default_points, refuse_unknown

_ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Softplus,
)


class Activations(NamedTuple):
    """What one forward pass showed; what the method does not need is empty.

    features: one (N, C, H, W) map a point, shallow to deep; a vector is a map of one pixel, a signal one of height 1.
    preactivations: likewise, what the activation at the end of each point received; the output itself where the point
    ends without one. embedding: (N, D), what the classifier received.
    """

    logits: Tensor
    features: tuple[Tensor, ...] = ()
    preactivations: tuple[Tensor, ...] = ()
    embedding: Tensor = torch.empty(0)

    def detached(self) -> Activations:
        """The same, out of which no gradient flows."""
        return Activations(
            self.logits.detach(),
            tuple(maps.detach() for maps in self.features),
            tuple(maps.detach() for maps in self.preactivations),
            self.embedding.detach(),
        )


class Anatomy(NamedTuple):
    """The shapes of `Activations` without the batch, for a method to size its projectors by.

    logits: number of classes. features, preactivations: (C, H, W) each. embedding: D. classify: the model's own last
    layer, (N, D) -> (N, classes), with the weights that it has when called, held fixed; None unless the embedding is
    needed.
    """

    logits: int
    features: tuple[tuple[int, int, int], ...] = ()
    preactivations: tuple[tuple[int, int, int], ...] = ()
    embedding: int = 0
    classify: Callable[[Tensor], Tensor] | None = None


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output: a tensor, a tuple that starts with one, or an object with ``.logits``."""
    logits = getattr(output, "logits", output)
    if isinstance(logits, (tuple, list)) and logits:
        logits = logits[0]
    if not isinstance(logits, Tensor):
        raise TypeError(f"expected a model to return logits, (logits, ...) or .logits, got {type(output).__name__}")
    return logits


@contextmanager
def in_eval_mode(model: nn.Module) -> Generator[None, None, None]:
    """Within, the model is in eval mode; afterwards each of its modules is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class Observer:
    """Runs a model and collects its `Activations`.

    Args:
        role: "student" or "teacher", for messages.
        needs: what to collect besides the logits.
        points: module paths, shallow to deep; empty: those of the model's family.
        example: (N, ...) inputs, on the model's device, that the model is tried on once, in eval mode.

    Raises:
        ValueError: a path that does not exist, a family without known points, an output that is no feature map, or
            a model in which what is needed cannot be found.
    """

    def __init__(
        self, model: nn.Module, role: str, needs: Sequence[Need], *, points: Sequence[str] = (), example: Tensor
    ) -> None:
        self.model, self._needs = model, needs
        self._seen: dict[str, Tensor] = {}
        self._watching = False  # what others run through the model is not kept
        self._plain: list[str] = []  # points whose output is the pre-activation itself
        self._classifier: nn.Linear | None = None
        wants_maps = "features" in needs or "preactivations" in needs
        self.points = tuple(points) or (default_points(model, role) if wants_maps else ())
        refuse_unknown(model, self.points, role)
        trace = _trace(model, example)
        if wants_maps:
            for point in self.points:
                if point not in trace.outputs:
                    raise ValueError(f"expected the {role}'s `{point}` to give a feature map, but it gave no tensor")
                model.get_submodule(point).register_forward_hook(self._keep_output(point))
        if "preactivations" in needs:
            self._hook_preactivations(trace, role, declared=() if points else declared_activations(model))
        if "embedding" in needs:
            self._classifier = trace.classifier()
            if self._classifier is None:
                raise ValueError(f"the {role} has no nn.Linear at its end, whose input this method needs")
            self._classifier.register_forward_pre_hook(self._keep_input("embedding", clone=False))
        with in_eval_mode(model), torch.no_grad():
            seen = self(example)
        self.anatomy = Anatomy(
            seen.logits.shape[-1],
            tuple(cast("tuple[int, int, int]", tuple(f.shape[1:])) for f in seen.features),
            tuple(cast("tuple[int, int, int]", tuple(f.shape[1:])) for f in seen.preactivations),
            seen.embedding.shape[-1],
            self._classify if self._classifier is not None else None,
        )

    def __call__(self, inputs: Tensor, forward: Callable[[Tensor], Any] | None = None) -> Activations:
        """One forward pass, through `forward` where the model is compiled."""
        self._watching = True
        try:
            logits = logits_of(self.model(inputs) if forward is None else forward(inputs))
        finally:
            self._watching = False
        maps = {point: as_map(self.model, point, self._seen[point]) for point in self.points if point in self._seen}
        features = tuple(maps[point] for point in self.points) if maps and "features" in self._needs else ()
        before: tuple[Tensor, ...] = ()
        if "preactivations" in self._needs:
            before = tuple(
                maps[point] if point in self._plain else as_map(self.model, point, self._seen[f"{point}<"])
                for point in self.points
            )
        embedding = self._seen["embedding"].flatten(1) if self._classifier is not None else torch.empty(0)
        self._seen.clear()  # not to keep this pass alive until the next
        return Activations(logits, features, before, embedding)

    def _hook_preactivations(self, trace: _Trace, role: str, *, declared: Sequence[str]) -> None:
        for place, point in enumerate(self.points):
            last = self.model.get_submodule(declared[place]) if declared else trace.activation_of(point)
            if last is not None:
                clone = bool(getattr(last, "inplace", False))
                last.register_forward_pre_hook(self._keep_input(f"{point}<", clone=clone))
            elif trace.is_rectified(point):
                raise ValueError(
                    f"the {role}'s `{point}` gives no negative value, yet no activation module ends it: this method "
                    "needs what the activation receives, so name points that end with a module like nn.ReLU"
                )
            else:
                self._plain.append(point)

    def _keep_output(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self._watching:
                self._seen[name] = output[0] if isinstance(output, (tuple, list)) else output

        return hook

    def _keep_input(self, name: str, *, clone: bool) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: Any) -> None:
            if self._watching:
                # An activation that works in place is about to overwrite what it was given.
                self._seen[name] = inputs[0].clone() if clone else inputs[0]

        return hook

    def _classify(self, embedding: Tensor) -> Tensor:
        assert self._classifier is not None
        held = {name: p.detach() for name, p in self._classifier.named_parameters()}
        logits = torch.func.functional_call(self._classifier, held, (embedding,))
        # A teacher of more classes than the student's picks those of the student (dotkd.teachers).
        select = getattr(self.model, "select_classes", None)
        return logits if select is None else select(logits)


class _Trace(NamedTuple):
    """What every module of a model gave in one forward pass."""

    model: nn.Module
    outputs: dict[str, Tensor]  # path -> its last output
    calls: list[str]  # paths in the order in which their calls ended

    def activation_of(self, point: str) -> nn.Module | None:
        """The activation module whose output is that of `point`."""
        output = self.outputs.get(point)
        inside = [path for path in self.calls if path == point or path.startswith(f"{point}.")]
        for path in reversed(inside):
            module = self.model.get_submodule(path)
            if isinstance(module, _ACTIVATIONS) and self.outputs[path] is output:
                return module
        return None

    def is_rectified(self, point: str) -> bool:
        return not bool((self.outputs[point] < 0).any())

    def classifier(self) -> nn.Linear | None:
        """The last module with weights, if it is linear: an earlier one is a layer like any other."""
        for path in reversed(self.calls):
            module = self.model.get_submodule(path)
            if isinstance(module, nn.Linear):
                return module
            if next(module.parameters(recurse=False), None) is not None:
                return None
        return None


def _trace(model: nn.Module, example: Tensor) -> _Trace:
    trace = _Trace(model, {}, [])
    handles: list[Any] = []

    def note(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            if isinstance(first, Tensor):
                trace.outputs[path] = first
                trace.calls.append(path)

        return hook

    try:
        handles += [module.register_forward_hook(note(path)) for path, module in model.named_modules() if path]
        with in_eval_mode(model), torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return trace
