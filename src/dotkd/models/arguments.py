"""Checks of the arguments that every model factory takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

from dotkd.suggestion import suggestion

# What the caller's data decides; a factory is given these, a user never sets them as options.
FROM_DATA = ("num_classes", "input_shape")


def check_whole(name: str, value: object, *, least: int) -> int:
    """Return `value` if it is an integer of at least `least`; TypeError or ValueError otherwise."""
    # bool is an int to Python, yet `width=True` is always a mistake.
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected `{name}` to be an integer, got {value!r} ({type(value).__name__})")
    if value < least:
        raise ValueError(f"expected `{name}` >= {least}, got {value}")
    return value


def check_choice(name: str, value: object, allowed: Sequence[str]) -> str:
    """Return `value` if it is one of `allowed`; TypeError or ValueError otherwise."""
    listed = ", ".join(f'"{choice}"' for choice in allowed)
    if not isinstance(value, str):
        kind = type(value).__name__
        raise TypeError(f"expected `{name}` to be one of {listed}, got {value!r} ({kind})")
    if value not in allowed:
        raise ValueError(f'expected `{name}` to be one of {listed}, got "{value}"{suggestion(value, allowed)}')
    return value


def check_shape(value: object) -> tuple[int, ...]:
    """Return the shape of one input, without the batch dimension, as a tuple of positive integers."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        kind = type(value).__name__
        raise TypeError(f"expected `input_shape` to be a tuple such as (channels, length), got {value!r} ({kind})")
    sizes: Sequence[object] = value  # pyright: ignore[reportUnknownVariableType]
    if not sizes:
        raise ValueError("expected `input_shape` with at least one dimension, got ()")
    return tuple(check_whole(f"input_shape[{axis}]", size, least=1) for axis, size in enumerate(sizes))


def keyword_names(factory: Callable[..., object]) -> tuple[list[str], bool]:
    """Return the names that `factory` takes as keywords, and whether it takes any others (`**kwargs`)."""
    parameters = inspect.signature(factory).parameters.values()
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [parameter.name for parameter in parameters if parameter.kind in by_keyword]
    return names, any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def check_options(spec: str, factory: Callable[..., object], options: Mapping[str, object]) -> None:
    """Refuse options that `factory` does not take: one ValueError that names every one of them."""
    names, takes_any = keyword_names(factory)
    known = [name for name in names if name not in FROM_DATA]
    problems = [f"`{name}` follows from the data and is no option" for name in options if name in FROM_DATA]
    if not takes_any:
        problems += [
            f"unknown option `{name}`{suggestion(str(name), known)}"
            for name in options
            if name not in names and name not in FROM_DATA
        ]
    if problems:
        listed = ", ".join(known) or "none"
        raise ValueError(f"model `{spec}`: {'; '.join(problems)} (its options: {listed})")
