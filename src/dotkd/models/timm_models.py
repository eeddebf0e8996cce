"""Models of timm, by `timm:NAME`, NAME as in `timm.list_models()`, with a weights tag or without."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import nn

from dotkd.models.hub_access import (
    call_factory,
    fetching,
    hugging_face,
    import_library,
    picture,
    refuse_options,
    take_flag,
    unexpected_keyword,
)
from dotkd.suggestion import suggestion

_FROM_DATA = ("num_classes", "in_chans", "img_size", "input_shape")
# timm's own prefixes of models that are described outside of it.
_ELSEWHERE = ("hf-hub:", "hf_hub:", "local-dir:")
_BY_HAND = (
    "download it elsewhere, keep `pretrained` and give the option pretrained_cfg_overlay={file: PATH}; or, for weights "
    "of as many classes as the data has, leave `pretrained` out and name the file in teacher_weights or student_weights"
)


def timm_model(
    spec: str, name: str, *, num_classes: int, input_shape: tuple[int, ...], options: Mapping[str, object]
) -> nn.Module:
    """Build a model by `timm.create_model`.

    The classes and channels of the data are passed on, and the size of its pictures where the model takes one. With the
    option `pretrained`, timm loads the weights and replaces the classifier where its width differs; all other options
    are timm's.

    Raises:
        ImportError: timm is not installed, or torchvision, which it needs, does not match torch.
        ValueError: an unknown name or option (with the nearest), or values that timm refuses.
        FileNotFoundError: the weights cannot be fetched.
    """
    timm = import_library(spec, "timm")
    given: dict[str, Any] = dict(options)
    refuse_options(spec, given, _FROM_DATA, None)
    pretrained = take_flag(spec, given, "pretrained")
    channels, height, width = picture(spec, input_shape)
    elsewhere = name.startswith(_ELSEWHERE)
    if not elsewhere:
        _check_name(spec, name, timm)
    wanted = _weights(spec, name, timm, given) if pretrained and not elsewhere else name
    home = None if elsewhere else sys.modules[timm.models.model_entrypoint(name).__module__]
    size = height if height == width else (height, width)
    fixed = {"model_name": name, "pretrained": pretrained, "num_classes": num_classes, "in_chans": channels}

    def create(**arguments: Any) -> nn.Module:
        if not pretrained and not elsewhere:
            return timm.create_model(**arguments)
        with hugging_face(), fetching(spec, wanted, _BY_HAND):
            return timm.create_model(**arguments)

    def sized(**arguments: Any) -> nn.Module:
        try:
            return create(img_size=size, **arguments)
        except TypeError as error:
            # Only models that depend on the size take it.
            if unexpected_keyword(error) != "img_size":
                raise
        return create(**arguments)

    return call_factory(spec, home, sized, given, **fixed)


def _check_name(spec: str, name: str, timm: Any) -> None:
    if not timm.is_model(name):
        near = suggestion(name.partition(".")[0], timm.list_models())
        raise ValueError(f"model `{spec}`: timm {timm.__version__} has no `{name}`{near}")
    architecture, dot, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if dot and tag not in tags:
        listed = ", ".join(tags) or "none"
        raise ValueError(
            f"model `{spec}`: {architecture} has no weights `{tag}`{suggestion(tag, tags)} (it has {listed})"
        )


def _weights(spec: str, name: str, timm: Any, options: Mapping[str, Any]) -> str:
    """What is to be fetched, in words; raises ValueError where timm has no weights of the model."""
    overlay = options.get("pretrained_cfg_overlay")
    if isinstance(overlay, Mapping) and overlay.get("file"):
        return f"the file {overlay['file']}"
    settings = timm.models.get_pretrained_cfg(name)
    if settings is None or not settings.has_weights:
        raise ValueError(f"model `{spec}`: timm has no pretrained weights of `{name}`; leave `pretrained` out")
    if settings.hf_hub_id:
        return f"model.safetensors of the repository {settings.hf_hub_id}"
    return str(settings.url or settings.file)
