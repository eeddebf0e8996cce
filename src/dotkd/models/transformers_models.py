"""Image classifiers of Hugging Face's transformers, by `transformers:NAME`.

NAME is a folder that `save_pretrained` wrote; with the option `pretrained` a repository; and otherwise a model type
(`vit`, `convnext`, ...), whose configuration takes the options.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dotkd.models.hub_access import (
    call_factory,
    fetching,
    hugging_face,
    import_library,
    picture,
    refuse_options,
    take_flag,
)
from dotkd.suggestion import suggestion

# What classifiers are called in these models.
_HEADS = ("classifier", "cls_classifier", "dist_head", "distillation_classifier", "fc", "head", "score")
# Bound to one picture size by tables of relative positions.
_FIXED_SIZE = ("beit", "data2vec-vision")
_FROM_DATA = ("num_classes", "num_labels", "id2label", "label2id", "num_channels", "image_size", "input_shape")


def transformers_model(
    spec: str, name: str, *, num_classes: int, input_shape: tuple[int, ...], options: Mapping[str, object]
) -> nn.Module:
    """Build a model by `AutoModelForImageClassification`.

    The classes, channels and picture size of the data go into the configuration. Weights that are loaded keep their
    channels and, where they have position embeddings, their picture size; only a classifier of another width is
    replaced. Other options are the configuration's, and `revision` for a repository.

    Raises:
        ImportError: transformers is not installed.
        ValueError: an unknown model type or option (with the nearest), values that transformers refuses, or weights
            that do not fit the data.
        FileNotFoundError: the weights cannot be fetched.
    """
    library = import_library(spec, "transformers")
    given: dict[str, Any] = dict(options)
    folder = Path(name).expanduser()
    pretrained = take_flag(spec, given, "pretrained")
    shape = picture(spec, input_shape)
    if folder.is_dir() or pretrained:
        source = str(folder) if folder.is_dir() else name
        return _loaded(spec, source, library, num_classes, shape, given)
    return _from_type(spec, name, library, num_classes, shape, given)


def is_transformers(model: nn.Module) -> bool:
    """Return whether a model is one of transformers."""
    return any(kind.__module__.startswith("transformers.") for kind in type(model).__mro__)


def by_current_names(model: Any, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights from a file under the names that `model` has for them, as transformers itself translates them.

    What the model lacks keeps its name; what has another shape than the model's comes without its values.
    """
    loaded: Any = type(model).from_pretrained(
        None,
        config=copy.deepcopy(model.config),
        state_dict=dict(stored),
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    translated, report = loaded
    found = {name: value for name, value in translated.state_dict().items() if name not in report["missing_keys"]}
    found |= {name: torch.empty(tuple(shape), device="meta") for name, shape, _ in report["mismatched_keys"]}
    return found | {name: stored[name] for name in report["unexpected_keys"] if name in stored}


def _from_type(
    spec: str, name: str, library: Any, num_classes: int, shape: tuple[int, int, int], options: dict[str, Any]
) -> nn.Module:
    auto = import_library(spec, "transformers", "transformers.models.auto.modeling_auto")
    classes: dict[str, Any] = dict(auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)
    if name not in classes:
        near = suggestion(name, classes)
        hint = near or f" (known: {', '.join(classes)})"
        raise ValueError(
            f"model `{spec}`: no folder `{name}`, and transformers has no image classifier of that type{hint}; a "
            "repository needs the option `pretrained`"
        )
    default = library.AutoConfig.for_model(name)
    refuse_options(spec, options, _FROM_DATA, default.to_dict())
    described = options | _described(default, shape, options)

    def make(**settings: Any) -> nn.Module:
        config = library.AutoConfig.for_model(name, **settings)
        kinds = classes[name]
        # Some types have a second class with one more head, and the first only where the configuration says so.
        config.architectures = [kinds if isinstance(kinds, str) else kinds[0]]
        return library.AutoModelForImageClassification.from_config(config)

    return call_factory(spec, library, make, described, num_labels=num_classes)


def _part(config: Any) -> Any:
    """The part of a configuration that describes the pictures."""
    return getattr(config, "vision_config", config)


def _described(default: Any, shape: tuple[int, int, int], options: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a configuration, of those it has, that follow from (channels, height, width)."""
    channels, height, width = shape
    part, entries = _part(default), dict[str, Any]()
    if hasattr(part, "num_channels"):
        entries["num_channels"] = channels
    if hasattr(part, "image_size"):
        whole = isinstance(part.image_size, int) and height == width
        entries["image_size"] = height if whole else (height, width)
    return entries if part is default else {"vision_config": {**options.get("vision_config", {}), **entries}}


def _loaded(
    spec: str, source: str, library: Any, num_classes: int, shape: tuple[int, int, int], options: dict[str, Any]
) -> nn.Module:
    revision = {"revision": options.pop("revision")} if "revision" in options else {}
    # A repository's own code is never run.
    place: dict[str, Any] = {"pretrained_model_name_or_path": source, "trust_remote_code": False, **revision}
    by_hand = (
        "download its config.json and model.safetensors into one folder elsewhere and name it: transformers:FOLDER"
    )
    with hugging_face(), fetching(spec, f"config.json or model.safetensors of {source}", by_hand):
        config = library.AutoConfig.from_pretrained(**place)
        refuse_options(spec, options, _FROM_DATA, config.to_dict())
        loaded: Any = call_factory(
            spec,
            library,
            library.AutoModelForImageClassification.from_pretrained,
            options,
            num_labels=num_classes,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **place,
        )
    model, report = loaded
    _refuse_misfit(spec, model, report, num_classes, shape)
    return model.float()  # the stored precision may be another


def _refuse_misfit(
    spec: str, model: Any, report: Mapping[str, Any], num_classes: int, shape: tuple[int, int, int]
) -> None:
    """Raise ValueError where weights other than a classifier's were left out, or the pictures have another form."""
    absent = [name for name in report["missing_keys"] if name.partition(".")[0] not in _HEADS]
    absent += [
        name
        for name, stored, wanted in report["mismatched_keys"]
        if wanted[0] != num_classes or tuple(stored[1:]) != tuple(wanted[1:])
    ]
    if absent:
        listed = ", ".join(sorted(absent)[:5])
        raise ValueError(f"model `{spec}`: the stored weights do not fit, or lack, {len(absent)} entries: {listed}")
    channels, *size = shape
    part = _part(model.config)
    if getattr(part, "num_channels", channels) != channels:
        raise ValueError(f"model `{spec}` takes pictures of {part.num_channels} channels, the data has {channels}")
    trained = getattr(part, "image_size", None)
    trained = [trained, trained] if isinstance(trained, int) else list(trained or size)
    fixed = model.config.model_type in _FIXED_SIZE or any(
        "position_embedding" in n for n, _ in model.named_parameters()
    )
    if fixed and trained != size:
        raise ValueError(
            f"model `{spec}` takes pictures of {trained[0]} x {trained[1]} pixels, the data has {size[0]} x {size[1]}: "
            "bring all to its size by image_size, or a teacher's by teacher_input"
        )
