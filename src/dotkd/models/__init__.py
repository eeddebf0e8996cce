"""The models that can be trained and distilled, by name, and the user's own.

Each name of `MODELS` stands for a factory of one file of this package. A factory is called by keywords:
`num_classes` and `input_shape` (one input's, without the batch dimension) come from the data, all others are
its options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from dotkd.models import (
    mlp,
    mobilenet_v1,
    mobilenet_v2,
    resnet_cifar,
    resnet_imagenet,
    resnet_small,
    shufflenet,
    shufflenet_v2,
    vgg_cifar,
    wrn,
)
from dotkd.models.arguments import check_options
from dotkd.models.external import make_external
from dotkd.models.hubs import is_of_library, make_from_library, refuse_misnamed
from dotkd.models.weights import load_weights
from dotkd.suggestion import suggestion

__all__ = ["MODELS", "build", "load_weights", "parameter_count"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp.mlp,
    "resnet1d": resnet_small.resnet1d,
    "resnet2d": resnet_small.resnet2d,
    "resnet8": resnet_cifar.resnet8,
    "resnet14": resnet_cifar.resnet14,
    "resnet20": resnet_cifar.resnet20,
    "resnet32": resnet_cifar.resnet32,
    "resnet44": resnet_cifar.resnet44,
    "resnet56": resnet_cifar.resnet56,
    "resnet110": resnet_cifar.resnet110,
    "resnet8x4": resnet_cifar.resnet8x4,
    "resnet32x4": resnet_cifar.resnet32x4,
    "wrn_16_1": wrn.wrn_16_1,
    "wrn_16_2": wrn.wrn_16_2,
    "wrn_40_1": wrn.wrn_40_1,
    "wrn_40_2": wrn.wrn_40_2,
    "vgg8": vgg_cifar.vgg8,
    "vgg11": vgg_cifar.vgg11,
    "vgg13": vgg_cifar.vgg13,
    "vgg16": vgg_cifar.vgg16,
    "vgg19": vgg_cifar.vgg19,
    "mobilenet_v1": mobilenet_v1.mobilenet_v1,
    "mobilenet_v2_cifar": mobilenet_v2.mobilenet_v2_cifar,
    "mobilenet_v2_tiny": mobilenet_v2.mobilenet_v2_tiny,
    "shufflenet_v1": shufflenet.shufflenet_v1,
    "shufflenet_v2": shufflenet_v2.shufflenet_v2,
    "resnet18": resnet_imagenet.resnet18,
    "resnet34": resnet_imagenet.resnet34,
    "resnet50": resnet_imagenet.resnet50,
    "resnet18_small": resnet_imagenet.resnet18_small,
    "resnet50_small": resnet_imagenet.resnet50_small,
}


def build(
    spec: str, *, num_classes: int, input_shape: tuple[int, ...], options: Mapping[str, object] = {}
) -> nn.Module:
    """Return a new model.

    Args:
        spec: a name of `MODELS`; `timm:NAME`, `torchvision:NAME` or `transformers:NAME`, a model of that library;
            or `module:attr`: a class or function of the user's that makes an `nn.Module`, or a ready one (copied),
            imported with the working directory on the path.
        num_classes: width of the output. Whether a user's model keeps to it shows in its first logits, not
            here.
        input_shape: shape of one input without the batch dimension.
        options: further keywords of the factory.

    Raises:
        ValueError: an unknown model or option (with the nearest name), or an option's value out of its range.
        TypeError: an argument of the wrong kind, or a user's factory that returns no `nn.Module`.
        ImportError: a library's model without the library.
        FileNotFoundError: a library's pretrained weights that cannot be fetched.

    >>> model = build("resnet1d", num_classes=10, input_shape=(1, 40), options={"width": 8})
    >>> parameter_count(model)
    7474
    """
    if is_of_library(spec):
        return make_from_library(spec, num_classes=num_classes, input_shape=input_shape, options=options)
    if ":" in spec:
        refuse_misnamed(spec)
        return make_external(spec, num_classes=num_classes, input_shape=input_shape, options=options)
    if spec not in MODELS:
        raise ValueError(
            f"unknown model `{spec}`{suggestion(spec, MODELS)} "
            f"(known: {', '.join(MODELS)}; `timm:NAME`, `torchvision:NAME` and `transformers:NAME` name those of "
            "libraries, `module:attr` one of your own)"
        )
    factory = MODELS[spec]
    check_options(spec, factory, options)
    return factory(num_classes=num_classes, input_shape=input_shape, **options)


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters, frozen ones included; those shared by several modules count once."""
    return sum(parameter.numel() for parameter in model.parameters())
