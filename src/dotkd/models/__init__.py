"""The models that can be trained and distilled, by name, and the user's own.

Each name of `MODELS` stands for a factory of one file of this package. A factory is called by keywords:
`num_classes` and `input_shape` (one input's, without the batch dimension) come from the data, all others are
its options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from dotkd.models import mlp, resnet_small
from dotkd.models.arguments import check_options, suggestion
from dotkd.models.external import make_external
from dotkd.models.weights import load_weights

__all__ = ["MODELS", "build", "load_weights", "parameter_count"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp.mlp,
    "resnet1d": resnet_small.resnet1d,
    "resnet2d": resnet_small.resnet2d,
}


def build(
    spec: str, *, num_classes: int, input_shape: tuple[int, ...], options: Mapping[str, object] = {}
) -> nn.Module:
    """Return a new model.

    Args:
        spec: a name of `MODELS`, or `module:attr`: a class or function of the user's that makes an
            `nn.Module`, or a ready one (copied), imported with the working directory on the path.
        num_classes: width of the output. Whether a user's model keeps to it shows in its first logits, not
            here.
        input_shape: shape of one input without the batch dimension.
        options: further keywords of the factory.

    Raises:
        ValueError: an unknown model or option (with the nearest name), or an option's value out of its range.
        TypeError: an argument of the wrong kind, or a user's factory that returns no `nn.Module`.

    >>> model = build("resnet1d", num_classes=10, input_shape=(1, 40), options={"width": 8})
    >>> parameter_count(model)
    7474
    """
    if ":" in spec:
        return make_external(spec, num_classes=num_classes, input_shape=input_shape, options=options)
    if spec not in MODELS:
        raise ValueError(
            f"unknown model `{spec}`{suggestion(spec, MODELS)} "
            f"(known: {', '.join(MODELS)}; `module:attr` names one of your own)"
        )
    factory = MODELS[spec]
    check_options(spec, factory, options)
    return factory(num_classes=num_classes, input_shape=input_shape, **options)


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters, frozen ones included; those shared by several modules count once."""
    return sum(parameter.numel() for parameter in model.parameters())
