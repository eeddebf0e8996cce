"""Reading a model's weights from a file, without ever running what is in it."""

from __future__ import annotations

import difflib
import pickle
import re
import struct
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dotkd.models.transformers_models import by_current_names, is_transformers

_RUN_FILE = "student.safetensors"
_HUB_FILES = ("config.json", "model.safetensors")
_TORCH_SUFFIXES = (".pt", ".pth")
_WRAPPERS = ("state_dict", "model_state_dict", "model")

# What the unpickler meets in bytes that are no pickle at all; which of them is a matter of chance.
_DAMAGE = (
    RuntimeError,
    OSError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy weights into `model`, all of them or none.

    Accepted are a `.safetensors` file; a `.pt` or `.pth` file of tensors only, a state dict or one under the
    key `state_dict`, `model_state_dict` or `model`; the folder of a run, for its `student.safetensors`; and one
    that transformers wrote, for its `model.safetensors`. Files older than BatchNorm's `num_batches_tracked` may
    lack it: the model's stays.
    The prefixes of wrappers (`module.` and `_orig_mod.`, from data-parallel and compiled models) may be on
    the file's names, on the model's, or on both. Floating-point weights are cast to the model's dtype. The weight
    (C, D, 1, 1) of a 1x1 convolution fits a linear layer's (C, D): both compute the same from pooled features.

    Raises:
        FileNotFoundError: nothing at `path` (with the nearest name that exists).
        ValueError: a file of another kind, a damaged one, one that holds more than tensors, or one whose
            names or shapes differ from the model's (all of them listed). The model has not been changed.
    """
    file = _find_file(Path(path).expanduser())
    read = _read(file)
    stored = {name: read[key] for key, name in _plain_names(read).items()}
    # keep_vars: tied weights then show as one object under several names.
    held = model.state_dict(keep_vars=True)
    key_of = {name: key for key, name in _plain_names(held).items() if isinstance(held[key], Tensor)}
    wanted: dict[str, Tensor] = {name: held[key] for name, key in key_of.items()}
    linear = _linear_weights(model)
    stored = _as_linear(stored, wanted, [name for name, key in key_of.items() if key in linear])
    problems = _differences(stored, wanted)
    if problems and is_transformers(model):
        # Files of transformers have the names of its first versions, whatever the modules are called by now.
        stored = by_current_names(model, stored)
        problems = _differences(stored, wanted)
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(
            f"the weights in {file} do not fit this model "
            f"({len(problems)} entries differ, nothing was loaded):\n  {listed}"
        )
    # Not strict, since a file may name tied weights once; every other difference has been refused above.
    model.load_state_dict({key_of[name]: value for name, value in stored.items()}, strict=False)


def _find_file(path: Path) -> Path:
    if path.is_dir():
        if (path / _RUN_FILE).is_file():
            return path / _RUN_FILE
        if all((path / name).is_file() for name in _HUB_FILES):
            return path / _HUB_FILES[1]
        weights = sorted(entry.name for entry in path.iterdir() if _is_weights(entry))
        held = f"; it holds {', '.join(weights)}: name the file" if weights else ""
        raise FileNotFoundError(f"no {_RUN_FILE} in the folder {path}, so it is no finished run{held}")
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}{_nearest_entry(path)}")
    if not _is_weights(path):
        raise ValueError(f"expected weights as a .safetensors, .pt or .pth file or as the folder of a run, got {path}")
    return path


def _is_weights(path: Path) -> bool:
    return path.suffix in (".safetensors", *_TORCH_SUFFIXES)


def _nearest_entry(path: Path) -> str:
    """Say which existing entry is closest to `path`'s first missing part."""
    while not path.parent.exists():
        path = path.parent
    if not path.parent.is_dir():
        return f": {path.parent} is a file"
    names = [entry.name for entry in path.parent.iterdir()]
    close = difflib.get_close_matches(path.name, names, n=1)
    near = f"; did you mean {path.parent / close[0]}?" if close else ""
    return f": {path.parent} has no `{path.name}`{near}"


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(file)  # pyright: ignore[reportUnknownMemberType]
        except safetensors.SafetensorError as error:
            raise ValueError(f"{file} is damaged, or no safetensors file: {error}") from error
    return _unwrap(file, _read_torch(file))


def _read_torch(file: Path) -> object:
    # Opened here, so that an OSError from within torch can only be its way of stumbling over the content.
    with file.open("rb") as stream:
        return _read_stream(file, stream)


def _read_stream(file: Path, stream: IO[bytes]) -> object:
    try:
        with warnings.catch_warnings():
            # torch warns of odd formats just before it refuses them.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]*\w)", str(error))
        raise ValueError(_refusal(file, f"`{named.group(1)}`" if named else "something else, or damage")) from error
    except _DAMAGE as error:
        if "TorchScript" in str(error):
            raise ValueError(_refusal(file, "a TorchScript program")) from error
        raise ValueError(f"{file} is damaged, or no file that torch.save wrote") from error


def _refusal(file: Path, holds: str) -> str:
    target = file.with_suffix(".safetensors").name
    return (
        f"{file} is refused: it should hold tensors alone and holds {holds}, and loading more than tensors "
        f"could run any code. If you trust whoever made it, convert it once where it was made: "
        f'safetensors.torch.save_file(model.state_dict(), "{target}"), or torch.save(model.state_dict(), ...)'
    )


def _unwrap(file: Path, content: object) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise ValueError(f"expected {file} to hold a state dict (names to tensors), got {kind}")
    entries = cast("Mapping[object, object]", content)
    inner = next((entries[key] for key in _WRAPPERS if isinstance(entries.get(key), Mapping)), entries)
    entries = cast("Mapping[object, object]", inner)
    others = [str(name) for name, value in entries.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if others:
        accepted = ", ".join(f"`{key}`" for key in _WRAPPERS)
        raise ValueError(
            f"expected {file} to hold a state dict (names to tensors), itself or under {accepted}; "
            f"these entries are none: {', '.join(others)}"
        )
    return cast("dict[str, Tensor]", dict(entries))


def _plain_names(keys: Iterable[str]) -> dict[str, str]:
    """Map each key to its name without what torch's wrappers add: `_orig_mod` and a leading `module`."""
    # `_orig_mod` is torch's alone, but `module` may be the user's own name for a part. So every key must
    # start with it; and as this is done to the file's keys and to the model's, such a part's name goes from
    # both.
    names = {key: ".".join(part for part in key.split(".") if part != "_orig_mod") for key in keys}
    while names and all(name.startswith("module.") for name in names.values()):
        names = {key: name.removeprefix("module.") for key, name in names.items()}
    return names


def _differences(stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    filled = {id(wanted[name]) for name in stored if name in wanted}
    missing = [
        name
        for name, tensor in wanted.items()
        if name not in stored and id(tensor) not in filled and _sibling_of_counter(name) not in stored
    ]
    problems = [f"missing from the file: {name} {tuple(wanted[name].shape)}" for name in missing]
    for name, value in stored.items():
        if name not in wanted:
            problems.append(f"unknown to the model: {name} {tuple(value.shape)}")
        elif value.shape != wanted[name].shape:
            shapes = f"{tuple(value.shape)} in the file, {tuple(wanted[name].shape)} in the model"
            problems.append(f"other shape: {name} {shapes}")
        elif _kind(value) != _kind(wanted[name]):
            kinds = f"{value.dtype} in the file, {wanted[name].dtype} in the model"
            problems.append(f"other kind of number: {name} {kinds}")
    return problems


def _linear_weights(model: nn.Module) -> set[str]:
    layers = (path for path, module in model.named_modules(remove_duplicate=False) if isinstance(module, nn.Linear))
    return {f"{path}.weight" if path else "weight" for path in layers}


def _as_linear(stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor], linear: Iterable[str]) -> dict[str, Tensor]:
    """`stored` with the weights of 1x1 convolutions brought to the shape of the `linear` ones that they stand for."""
    fitting = [name for name in linear if name in stored and stored[name].shape == (*wanted[name].shape, 1, 1)]
    return {**stored, **{name: stored[name].flatten(1) for name in fitting}}


def _sibling_of_counter(name: str) -> str:
    """The statistic that BatchNorm keeps beside its counter of batches; "" for other names."""
    module, counter, rest = name.rpartition("num_batches_tracked")
    return f"{module}running_mean" if counter and not rest else ""


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    return "real" if tensor.is_floating_point() else "whole"
