"""Models of the user's own, named by a `module:attr` spec."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping

from torch import nn

from dotkd.models.arguments import check_options, keyword_names
from dotkd.own_code import find_own, own_modules_importable


def make_external(
    spec: str, *, num_classes: int, input_shape: tuple[int, ...], options: Mapping[str, object]
) -> nn.Module:
    """Import what `spec` = "module:attr" names, from the working directory too, and make a model of it.

    A class or function is called by keywords: with `options`, with `num_classes` where its signature names it
    or takes `**kwargs`, and with `input_shape` where its signature names it. (Factories that pass `**kwargs`
    on know the first by that name nearly everywhere, and the second nowhere.) A ready `nn.Module` is copied,
    so that two builds never share parameters and a second run does not start from what the first has learnt.

    Raises:
        ValueError: nothing is found under that name, it cannot be imported, or it does not take these
            options or needs others.
        TypeError: what is found is no model and makes none.
    """
    # The call too, since a factory may import more of the user's modules when it runs.
    with own_modules_importable():
        found = find_own(spec, "model")
        if isinstance(found, nn.Module):
            return _copy_ready(spec, found, options)
        if not callable(found):
            kind = type(found).__name__
            raise TypeError(f"expected `{spec}` to be a torch.nn.Module or to return one, got {kind}")
        return _call(spec, found, {"num_classes": num_classes, "input_shape": input_shape}, options)


def _copy_ready(spec: str, model: nn.Module, options: Mapping[str, object]) -> nn.Module:
    if options:
        listed = ", ".join(f"`{name}`" for name in options)
        raise ValueError(f"model `{spec}` is a ready model and takes no options, got {listed}")
    try:
        return copy.deepcopy(model)
    # Tensors that are not leaves, and attributes such as open files and locks.
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"model `{spec}` cannot be copied ({error}); name a function that returns it") from error


def _call(
    spec: str,
    factory: Callable[..., object],
    from_data: Mapping[str, object],
    options: Mapping[str, object],
) -> nn.Module:
    try:
        names, takes_any = keyword_names(factory)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model `{spec}` has no signature to call it by; wrap it in a function") from error
    check_options(spec, factory, options)
    given = {name: value for name, value in from_data.items() if name in names}
    if takes_any:
        given["num_classes"] = from_data["num_classes"]
    arguments = {**given, **options}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    absent = [
        f"`{parameter.name}`"
        for parameter in inspect.signature(factory).parameters.values()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in variadic
        and parameter.name not in arguments
    ]
    if absent:
        raise ValueError(f"model `{spec}` needs {', '.join(absent)}, given as an option of that name")
    made = factory(**arguments)
    if not isinstance(made, nn.Module):
        raise TypeError(f"expected `{spec}` to return a torch.nn.Module, got {type(made).__name__}")
    return made
