"""`dotkd models`: the models by name, their sizes, and the libraries whose models can be named too."""

from __future__ import annotations

import functools
import inspect
import re
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

EXAMPLE = """\
  dotkd models
  dotkd models resnet2d
"""

# How the models of other libraries are named, and the package that each needs.
_FORMS = {"timm:NAME": "timm", "torchvision:NAME": "torchvision", "transformers:NAME": "transformers"}
_CLASSES = 100
_SHAPES = ((3, 32, 32), (3, 64, 64), (3, 224, 224), (1, 40))


def models(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print the options of this one.")] = None,
) -> None:
    """List the models.

    Parameters are counted for the classes and the input of the table. With NAME, print the options of that model.
    """
    from dotkd.cli import console
    from dotkd.config_rules import nearest, shown
    from dotkd.models import MODELS

    out = console.results()
    if name is not None:
        if name not in MODELS:
            raise ValueError(f"expected one of {', '.join(MODELS)}, got {shown(name)}{nearest(name, MODELS)}")
        _show(name)
        return
    from dotkd.models.published import PUBLISHED

    table = console.table(out, "name", "parameters", "published", "classes", "input", "takes")
    table.columns[0].no_wrap = True
    table.columns[5].justify = "left"
    for key in MODELS:
        published = PUBLISHED.get(key)
        classes, shape = (published.num_classes, published.input_shape) if published else (_CLASSES, _first_fit(key))
        told = "" if published is None else f"{'' if not published.within else '~'}{published.parameters:,}"
        sides = "x".join(str(side) for side in shape)
        table.add_row(key, f"{_count(key, classes, shape):,}", told, str(classes), sides, _takes(key))
    out.print(table)
    console.say(out, "takes: the sides of pictures, in pixels")
    for form, package in _FORMS.items():
        console.say(out, f"{form}: a model of {package} ({_installed(package)})")
    console.say(out, "module:attr: a class or function of your own that makes an nn.Module, or a ready one")


def _show(name: str) -> None:
    from dotkd.cli import console
    from dotkd.models import MODELS
    from dotkd.models.arguments import keyword_names

    out = console.results()
    factory = MODELS[name]
    out.print(inspect.getdoc(factory) or name, soft_wrap=True)
    points = getattr(_build(name, _CLASSES, _first_fit(name)), "feature_points", ())
    console.say(out, f"feature maps: {', '.join(points)}")
    parameters = inspect.signature(factory).parameters
    options = [key for key in keyword_names(factory)[0] if key not in ("num_classes", "input_shape")]
    console.say(out, "options (student_options.NAME=VALUE):" if options else "options: it has none")
    for key in options:
        console.say(out, f"  {key}={parameters[key].default}")


@functools.cache
def _build(name: str, classes: int, shape: tuple[int, ...]) -> Any:
    """The model without memory for its weights."""
    import torch

    from dotkd.models import build

    with torch.device("meta"):
        return build(name, num_classes=classes, input_shape=shape)


def _count(name: str, classes: int, shape: tuple[int, ...]) -> int:
    from dotkd.models import parameter_count

    return parameter_count(_build(name, classes, shape))


def _first_fit(name: str) -> tuple[int, ...]:
    """The first of the usual inputs that the model takes."""
    for shape in _SHAPES:
        try:
            _build(name, _CLASSES, shape)
        except ValueError:
            continue
        return shape
    raise AssertionError(f"{name} takes none of the usual inputs")


def _takes(name: str) -> str:
    """The sizes that the model's own refusal of one pixel states, else the number of dimensions that it takes."""
    try:
        _build(name, _CLASSES, (3, 1, 1))
    except ValueError as error:
        stated = re.search(r"images of (.+?) pixels", str(error))
        return stated[1] if stated else "signals"
    try:
        _build(name, _CLASSES, (7,))
    except ValueError:
        return "any images"
    return "anything"


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
