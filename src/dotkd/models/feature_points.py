"""Where the models of timm, torchvision and transformers hold their feature maps, and how these are laid out.

A feature point is the path of a module, as in `named_modules`, whose output (or the first item of it) is a map
(N, C, H, W), one with channels last (N, H, W, C), or tokens (N, L, C). At most four are named, shallow to deep: the
ends of the last four stages, or four blocks at even distances where all blocks have one resolution.

Nothing is imported here: a model says by its class where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from torch import nn

_MOST = 4

# Models whose blocks give no map at all: branches of several resolutions, tokens in the order of windows, a class token
# that only the later blocks have, inner tokens first.
_TIMM_WITHOUT_MAPS = ("CoaT", "ConVit", "CrossVit", "Gemma4VitClassifier", "HighResolutionNet", "Hiera", "TNT")
# Their class token joins after the last of the blocks that are named here.
_TIMM_LATE_CLASS_TOKEN = ("Cait", "Xcit")
# Channels last without an `output_fmt` that says so.
_TIMM_CHANNELS_LAST = ("VOLO", "VisionTransformerSAM")

_TORCHVISION_STAGES = {
    "ResNet": ("layer1", "layer2", "layer3", "layer4"),
    "ShuffleNetV2": ("stage2", "stage3", "stage4"),
    "GoogLeNet": ("conv3", "inception3b", "inception4e", "inception5b"),
    "Inception3": ("Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"),
}
# Chains of layers, with the downsampling ones among them.
_TORCHVISION_CHAINS = {
    "AlexNet": "features",
    "ConvNeXt": "features",
    "DenseNet": "features",
    "EfficientNet": "features",
    "MNASNet": "layers",
    "MobileNetV2": "features",
    "MobileNetV3": "features",
    "SqueezeNet": "features",
    "SwinTransformer": "features",
    "VGG": "features",
}
_TORCHVISION_BLOCKS = {"MaxVit": "blocks", "RegNet": "trunk_output", "VisionTransformer": "encoder.layers"}

# By `config.model_type`: the tokens in front of the patches. Where transformers has moved a list between its versions,
# both places stand below.
_CLASS_TOKENS = {
    "beit": 1,
    "clip": 1,
    "data2vec-vision": 1,
    "deit": 2,
    "dinov2": 1,
    "dinov2_with_registers": 1,  # and the registers, whose number the config has
    "metaclip_2": 1,
    "vit": 1,
    "vit_msn": 1,
}
_TRANSFORMERS_BLOCKS = {
    "beit": ("beit.layers", "beit.encoder.layer"),
    "clip": ("vision_model.encoder.layers",),
    "data2vec-vision": ("data2vec_vision.layers", "data2vec_vision.encoder.layer"),
    "deit": ("deit.layers", "deit.encoder.layer"),
    "dinov2": ("dinov2.layers", "dinov2.encoder.layer"),
    "dinov2_with_registers": ("dinov2_with_registers.layers", "dinov2_with_registers.encoder.layer"),
    "ijepa": ("ijepa.layers", "ijepa.encoder.layer"),
    "metaclip_2": ("vision_model.encoder.layers",),
    "siglip": ("vision_model.encoder.layers",),
    "vit": ("vit.layers", "vit.encoder.layer"),
    "vit_msn": ("vit.layers", "vit.encoder.layer"),
}
_TRANSFORMERS_STAGES = {
    "bit": "bit.encoder.stages",
    "convnext": "convnext.encoder.stages",
    "convnextv2": "convnextv2.encoder.stages",
    "cvt": "cvt.encoder.stages",
    "donut-swin": "donut.encoder.layers",
    "focalnet": "focalnet.encoder.stages",
    "levit": "levit.encoder.stages",
    "mobilevit": "mobilevit.encoder.layer",
    "mobilevitv2": "mobilevitv2.encoder.layer",
    "pp_lcnet": "encoder.blocks",
    "regnet": "regnet.encoder.stages",
    "resnet": "resnet.encoder.stages",
    "segformer": "segformer.stages",
    "swin": "swin.encoder.layers",
    "swinv2": "swinv2.encoder.layers",
}
_TRANSFORMERS_CHAINS = {
    "efficientnet": "efficientnet.encoder.blocks",
    "mobilenet_v1": "mobilenet_v1.layer",
    "mobilenet_v2": "mobilenet_v2.layer",
    "swiftformer": "swiftformer.encoder.network",
}


def library_feature_points(model: nn.Module) -> tuple[str, ...] | None:
    """Return the paths of a library model's feature points, shallow to deep; None where its family is not known.

    A user's class that derives from a library's counts as the library's, as long as it has all the modules.
    """
    find: dict[str, Callable[[nn.Module], Sequence[str] | None]] = {
        "timm": _timm_points,
        "torchvision": _torchvision_points,
        "transformers": _transformers_points,
    }
    library = _library(model)
    points = find[library](model) if library else None
    if not points or not set(points) <= {path for path, _ in model.named_modules() if path}:
        return None
    return tuple(points)


def tokens_before_patches(model: nn.Module) -> int | None:
    """Return how many class, register and distillation tokens stand before the patches in tokens (N, L, C).

    None for models of no library: whether their outputs of three dimensions are tokens at all is not known.
    """
    library = _library(model)
    if library == "timm":
        late = _class_among(model, _TIMM_LATE_CLASS_TOKEN)
        return 0 if late else int(getattr(model, "num_prefix_tokens", 0) or 0)
    if library == "torchvision":
        return 1 if _class_among(model, ("VisionTransformer",)) else 0
    if library == "transformers":
        config = _config(model)
        return _CLASS_TOKENS.get(_model_type(model), 0) + int(getattr(config, "num_register_tokens", 0) or 0)
    return None


def is_channels_last(model: nn.Module) -> bool:
    """Return whether a library model's maps are (N, H, W, C)."""
    library = _library(model)
    if library == "timm":
        return getattr(model, "output_fmt", "") == "NHWC" or _class_among(model, _TIMM_CHANNELS_LAST) is not None
    return library == "torchvision" and _class_among(model, ("SwinTransformer",)) is not None


def _library(model: nn.Module) -> str | None:
    origins = [kind.__module__.partition(".")[0] for kind in type(model).__mro__]
    return next((origin for origin in origins if origin in ("timm", "torchvision", "transformers")), None)


def _class_among(model: nn.Module, names: Iterable[str]) -> str | None:
    own = [kind.__name__ for kind in type(model).__mro__]
    return next((name for name in names if name in own), None)


def _config(model: nn.Module) -> object:
    return getattr(model, "config", None)


def _model_type(model: nn.Module) -> str:
    return str(getattr(_config(model), "model_type", ""))


def _timm_points(model: nn.Module) -> Sequence[str] | None:
    if _class_among(model, _TIMM_WITHOUT_MAPS):
        return None
    entries = [cast("dict[str, Any]", entry) for entry in cast("Any", getattr(model, "feature_info", None) or ())]
    paths = list(dict.fromkeys(str(entry.get("module", "")) for entry in entries))
    one_resolution = len({entry.get("reduction") for entry in entries}) == 1
    return _evenly(paths) if one_resolution or len(paths) > _MOST + 2 else paths[-_MOST:]


def _torchvision_points(model: nn.Module) -> Sequence[str] | None:
    if name := _class_among(model, _TORCHVISION_STAGES):
        return _TORCHVISION_STAGES[name]
    if name := _class_among(model, _TORCHVISION_CHAINS):
        return _before_downsampling(model, _TORCHVISION_CHAINS[name])
    if name := _class_among(model, _TORCHVISION_BLOCKS):
        return _evenly(_children(model, _TORCHVISION_BLOCKS[name]))
    return None


def _transformers_points(model: nn.Module) -> Sequence[str] | None:
    name = _model_type(model)
    if name in _TRANSFORMERS_BLOCKS:
        found = (_children(model, path) for path in _TRANSFORMERS_BLOCKS[name])
        return _evenly(next((paths for paths in found if paths), []))
    if name in _TRANSFORMERS_STAGES:
        return _children(model, _TRANSFORMERS_STAGES[name])[-_MOST:]
    if name in _TRANSFORMERS_CHAINS:
        return _before_downsampling(model, _TRANSFORMERS_CHAINS[name])
    return None


def _children(model: nn.Module, path: str) -> list[str]:
    try:
        return [f"{path}.{name}" for name, _ in model.get_submodule(path).named_children()]
    except AttributeError:  # another layout than the family's
        return []


def _evenly(paths: Sequence[str]) -> list[str]:
    """Four of the paths at even distances, the last among them; all of them where there are no more."""
    count = min(_MOST, len(paths))
    return [paths[(k + 1) * len(paths) // count - 1] for k in range(count)]


def _before_downsampling(model: nn.Module, path: str) -> list[str]:
    """The last links of a chain that each resolution passes through, of the last four resolutions."""
    links = _children(model, path)
    shrinks = [_downsamples(model.get_submodule(link)) for link in links]
    ends = [links[k] for k in range(len(links) - 1) if shrinks[k + 1]]
    if links and not shrinks[-1]:
        ends.append(links[-1])
    return ends[-_MOST:]


def _downsamples(module: nn.Module) -> bool:
    for part in module.modules():
        stride = getattr(part, "stride", 1)
        strides = stride if isinstance(stride, (tuple, list)) else (stride,)
        if any(isinstance(step, int) and step > 1 for step in cast("Sequence[object]", strides)):
            return True
        if type(part).__name__.startswith("PatchMerging"):
            return True
    return False
