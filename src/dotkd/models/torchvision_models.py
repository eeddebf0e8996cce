"""Models of torchvision, by `torchvision:NAME`, NAME a classifier of `torchvision.models`."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dotkd.models.hub_access import (
    call_factory,
    fetching,
    import_library,
    picture,
    reachable,
    refuse_options,
    take_flag,
)
from dotkd.suggestion import suggestion

_FROM_DATA = ("num_classes", "image_size", "input_size", "input_shape")
# The families with auxiliary classifiers, which would stay untrained: only the first logits have a loss.
_WITH_AUXILIARY = ("googlenet", "inception_v3")


def torchvision_model(
    spec: str, name: str, *, num_classes: int, input_shape: tuple[int, ...], options: Mapping[str, object]
) -> nn.Module:
    """Build a model by `torchvision.models.get_model`.

    The classes of the data are passed on, and the size of its pictures to transformers, which depend on it. With the
    option `pretrained`, or with `weights` naming one of the model's weights, these are loaded: all of them where they
    have as many classes as the data, else all but the classifier, which starts anew. Other options are torchvision's.

    Raises:
        ImportError: torchvision is not installed or does not match torch.
        ValueError: an unknown name or option (with the nearest), pictures without three channels, or values that
            torchvision refuses.
        FileNotFoundError: the weights cannot be fetched.
    """
    hub = import_library(spec, "torchvision", "torchvision.models")
    given: dict[str, Any] = dict(options)
    refuse_options(spec, given, _FROM_DATA, None)
    pretrained = take_flag(spec, given, "pretrained")
    channels, height, width = picture(spec, input_shape)
    known: list[str] = hub.list_models(module=hub)
    if name not in known:
        raise ValueError(f"model `{spec}`: torchvision has no classifier `{name}`{suggestion(name, known)}")
    if channels != 3:
        raise ValueError(
            f"model `{spec}`: torchvision's models take pictures of 3 channels, the data has {channels}; those of timm "
            "(`timm:NAME`) take any number"
        )
    home = sys.modules[hub.get_model_builder(name).__module__]
    if name in _WITH_AUXILIARY:
        given = {"aux_logits": False, "init_weights": True, **given}
    chosen = _chosen_weights(spec, name, hub, pretrained, given.pop("weights", None))
    sized = given | _size(spec, home, height, width)
    model = call_factory(spec, home, hub.get_model, sized, name=name, num_classes=num_classes)
    if chosen is not None:
        _load(spec, model, _trained(spec, name, hub, chosen, given, home), len(chosen.meta["categories"]))
    return model


def _size(spec: str, home: Any, height: int, width: int) -> dict[str, object]:
    family = home.__name__.rpartition(".")[2]
    if family == "maxvit":
        return {"input_size": (height, width)}
    if family != "vision_transformer":
        return {}
    if height != width:
        raise ValueError(f"model `{spec}` takes square pictures, the data has {height} x {width}")
    return {"image_size": height}


def _chosen_weights(spec: str, name: str, hub: Any, pretrained: bool, wanted: object) -> Any:
    if wanted is None and not pretrained:
        return None
    offered = hub.get_model_weights(name)
    if wanted is None or wanted == "DEFAULT":
        return offered.DEFAULT
    names = list(offered.__members__)
    if wanted not in names:
        near = suggestion(str(wanted), names)
        raise ValueError(f"model `{spec}` has no weights {wanted!r}{near} (it has {', '.join(names)})")
    return offered[wanted]


def _trained(spec: str, name: str, hub: Any, weights: Any, options: Mapping[str, object], home: Any) -> nn.Module:
    """The model as it was trained, with its own classes and picture size."""
    file = weights.url.rpartition("/")[2]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    by_hand = (
        f"download it elsewhere and put it into {folder}; or, for weights of as many classes as the data has, leave "
        "`pretrained` out and name the file in teacher_weights or student_weights"
    )
    with fetching(spec, file, by_hand):
        # urlopen, by which torch.hub fetches, has no time limit.
        if not (folder / file).is_file() and not reachable(weights.url):
            raise ConnectionError("its server cannot be reached")
        return call_factory(spec, home, hub.get_model, options, name=name, weights=weights, progress=False)


def _load(spec: str, model: nn.Module, trained: nn.Module, classes: int) -> None:
    """Copy the weights of `trained`, all but the classifier's where `model` has another number of classes."""
    wanted: Mapping[str, Tensor] = model.state_dict()
    stored: Mapping[str, Tensor] = trained.state_dict()
    if hasattr(trained, "image_size") and "encoder.pos_embedding" in stored:
        stored = _resized(model, stored)
    other = [name for name in stored if name not in wanted or stored[name].shape != wanted[name].shape]
    body = [name for name in other if name not in wanted or stored[name].shape[:1] != (classes,)]
    if body or stored.keys() != wanted.keys():
        raise ValueError(f"model `{spec}`: with these options the pretrained weights do not fit: {', '.join(body[:5])}")
    model.load_state_dict({**stored, **{name: wanted[name] for name in other}})
    # Set by torchvision where it loads weights: the pictures of these were normalised in another way.
    if hasattr(trained, "transform_input"):
        model.transform_input = trained.transform_input


def _resized(model: Any, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    from torchvision.models.vision_transformer import interpolate_embeddings

    return interpolate_embeddings(model.image_size, model.patch_size, OrderedDict(stored))
