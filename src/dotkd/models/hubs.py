"""Models of other libraries, by `timm:NAME`, `torchvision:NAME` and `transformers:NAME`."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from dotkd.models.timm_models import timm_model
from dotkd.models.torchvision_models import torchvision_model
from dotkd.models.transformers_models import transformers_model

LIBRARIES: dict[str, Callable[..., nn.Module]] = {
    "timm": timm_model,
    "torchvision": torchvision_model,
    "transformers": transformers_model,
}


def is_of_library(spec: str) -> bool:
    """Return whether `spec` names a model of a library: a module of the user's of that name cannot be reached."""
    return spec.partition(":")[0] in LIBRARIES


def make_from_library(
    spec: str, *, num_classes: int, input_shape: tuple[int, ...], options: Mapping[str, object]
) -> nn.Module:
    """Build the model `spec` = "library:NAME" for `num_classes` and inputs of `input_shape`.

    Raises:
        ImportError: the library is not installed (the message names the extra), or does not work.
        ValueError: an unknown name or option, with the nearest; data or values that the model does not take.
        TypeError: an argument of the wrong kind.
        FileNotFoundError: `pretrained` weights that can be neither found nor fetched.
    """
    refuse_misnamed(spec)
    library, _, name = spec.partition(":")
    return LIBRARIES[library](spec, name, num_classes=num_classes, input_shape=input_shape, options=options)


def refuse_misnamed(spec: str) -> None:
    """Raise ValueError for a `prefix:name` without a name, or whose prefix is a library's name misspelt.

    Imports nothing; whether the library has such a model shows when it is built.
    """
    prefix, _, name = spec.partition(":")
    if prefix in LIBRARIES:
        if not name.strip():
            raise ValueError(f"expected a model of {prefix} as `{prefix}:NAME`, got `{spec}`")
        return
    near = difflib.get_close_matches(prefix.lower(), LIBRARIES, n=1, cutoff=0.75)
    if near and not _importable(prefix):
        known = ", ".join(f"`{library}:NAME`" for library in LIBRARIES)
        raise ValueError(
            f"no library or module `{prefix}`, did you mean `{near[0]}:{name}`? "
            f"(libraries: {known}; `module:attr` names a model of your own)"
        )


def _importable(module: str) -> bool:
    if Path(f"{module}.py").is_file() or Path(module).is_dir():
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent that is missing, a name that is none
        return False
