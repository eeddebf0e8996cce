"""What the models of timm, torchvision and transformers have in common: import, picture sizes, options, downloads.

The libraries are extras. They are imported when a model of theirs is asked for, and never at any other time.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Generator, Iterable, Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from dotkd.models.arguments import check_shape, keyword_names
from dotkd.suggestion import suggestion

_EXTRAS = {"timm": "vision", "torchvision": "vision", "transformers": "hf"}
# Where the exceptions of HTTP clients that are no OSError come from.
_CLIENTS = ("httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3")
_CONNECT_SECONDS = 5.0


def import_library(spec: str, library: str, module: str = "") -> Any:
    """Import `library`, or a `module` of it, for the model `spec`.

    Raises ImportError: it is not installed (naming the extra), or it does not work with the torch that is.
    """
    try:
        package = importlib.import_module(library)
        return importlib.import_module(module) if module else package
    # What a torchvision of another build raises is a RuntimeError about an operator.
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent == library:
            needed = f"model `{spec}` needs the package {library}"
            raise ImportError(f"{needed}: pip install 'dotkd[{_EXTRAS[library]}]'", name=library) from error
        if "torchvision::" in _chain(error):
            raise ImportError(_mismatch(spec), name="torchvision") from error
        raise ImportError(f"model `{spec}`: importing {library} failed: {error}", name=library) from error


def _chain(error: BaseException | None) -> str:
    parts: list[str] = []
    while error is not None:
        parts.append(str(error))
        error = error.__cause__ or error.__context__
    return " ".join(parts)


def _mismatch(spec: str) -> str:
    numbers = re.match(r"2\.(\d+)", torch.__version__)
    # torchvision 0.15 came with torch 2.0, and both have gone on in step.
    pair = f"'torch==2.{numbers[1]}.*' 'torchvision==0.{int(numbers[1]) + 15}.*'" if numbers else "torch torchvision"
    return (
        f"model `{spec}` needs torchvision, and torchvision {version('torchvision')} was not built for torch "
        f"{torch.__version__}: its compiled operators are missing. Install both anew from one index, so that they are "
        f"of one build (CPU, or one CUDA version): pip uninstall --yes torch torchvision; pip install {pair}"
    )


def picture(spec: str, input_shape: object) -> tuple[int, int, int]:
    """Return (channels, height, width); raises ValueError where inputs are no pictures."""
    shape = check_shape(input_shape)
    if len(shape) != 3:
        raise ValueError(f"model `{spec}` takes pictures, `input_shape` = (channels, height, width), got {shape}")
    return shape[0], shape[1], shape[2]


def take_flag(spec: str, options: dict[str, Any], name: str) -> bool:
    """Remove the option `name` and return it, False by default; raises TypeError where it is no bool."""
    value = options.pop(name, False)
    if not isinstance(value, bool):
        raise TypeError(f"model `{spec}`: expected `{name}` to be true or false, got {value!r}")
    return value


def refuse_options(
    spec: str, options: Mapping[str, object], from_data: Iterable[str], known: Iterable[str] | None
) -> None:
    """Raise ValueError for options that the data decides, and for those not `known` where that is known."""
    decided, listed = tuple(from_data), None if known is None else list(known)
    problems = [f"`{name}` follows from the data and is no option" for name in options if name in decided]
    if listed is not None:
        usable = [name for name in listed if name not in decided]
        unknown = [name for name in options if name not in listed and name not in decided]
        problems += [f"unknown option `{name}`{suggestion(name, usable)}" for name in unknown]
    if problems:
        raise ValueError(f"model `{spec}`: {'; '.join(problems)}")


def call_factory(
    spec: str, home: Any, factory: Callable[..., nn.Module], options: Mapping[str, object], **others: object
) -> nn.Module:
    """Call a library's factory with the user's options.

    Raises ValueError: an option that the model does not take, with the nearest one where the class of the model, sought
    in the module `home`, tells its own; one that its name has settled, with the classes of `home` that take it; or
    whatever else the library raised, but for an OSError, which goes on.
    """
    try:
        return factory(**others, **options)
    except OSError:  # about files, not about options: `fetching` has worded it
        raise
    except Exception as error:  # libraries raise anything from AssertionError to KeyError
        name = unexpected_keyword(error)
        if name is not None and name in options:
            raise ValueError(f"model `{spec}`: unknown option `{name}`{_nearest_keyword(error, name, home)}") from error
        name = _settled_keyword(error)
        if name is not None and name in options:
            told = f"model `{spec}`: `{name}` is settled by the name and is no option{_classes_with(name, home)}"
            raise ValueError(told) from error
        given = ", ".join(f"{key}={value!r}" for key, value in {**others, **options}.items())
        kind = type(error).__name__
        raise ValueError(f"model `{spec}` cannot be built with {given}: {kind}: {error}") from error


def unexpected_keyword(error: BaseException) -> str | None:
    """The keyword that a call did not take, if that is what the error is about."""
    found = re.search(r"got an unexpected keyword argument '(\w+)'", str(error))
    return found[1] if found and isinstance(error, TypeError) else None


def _settled_keyword(error: BaseException) -> str | None:
    """The keyword that a factory gives by itself, if the error is that the caller gave it too."""
    found = re.search(r"got multiple values for keyword argument '(\w+)'", str(error))
    return found[1] if found and isinstance(error, TypeError) else None


def _classes_with(name: str, home: Any) -> str:
    """Specs of the models among the classes of `home` that take the keyword, to be named as a user's own."""
    kinds = [
        kind
        for kind in getattr(home, "__dict__", {}).values()
        if isinstance(kind, type) and issubclass(kind, nn.Module)
    ]
    takers = [kind.__name__ for kind in kinds if {name, "num_classes"} <= set(keyword_names(kind)[0])]
    return f"; a class takes it: {', '.join(f'{home.__name__}:{taker}' for taker in takers)}" if takers else ""


def _nearest_keyword(error: Exception, name: str, home: Any) -> str:
    called = re.match(r"(\w+)(?:\.__init__)?\(\)", str(error))
    taker = getattr(home, called[1], None) if called else None
    return suggestion(name, keyword_names(taker)[0]) if callable(taker) else ""


def reachable(url: str) -> bool:
    """Return within seconds whether a server can be asked; behind a proxy only asking will tell, so True."""
    if {"https", "all"} & set(urllib.request.getproxies()):
        return True
    place = urllib.parse.urlsplit(url)
    try:
        port = place.port or (80 if place.scheme == "http" else 443)
        socket.create_connection((place.hostname or "", port), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def fetching(spec: str, wanted: str, by_hand: str) -> Generator[None, None, None]:
    """Turn a failed download of what is `wanted` into a FileNotFoundError that says how to supply it `by_hand`."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _CLIENTS:
            raise
        reason = str(error).strip().splitlines()
        text = (
            f"model `{spec}`: {wanted} is not at hand and could not be fetched ({(reason or ['no reason given'])[0]})"
        )
        raise FileNotFoundError(f"{text}. Without a network: {by_hand}") from error


@contextlib.contextmanager
def hugging_face() -> Generator[None, None, None]:
    """Within this, what Hugging Face's client has stored is used at once where its server cannot be reached.

    By itself the client tries again and again, and with each file that a library asks for.
    """
    constants: Any = importlib.import_module("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
