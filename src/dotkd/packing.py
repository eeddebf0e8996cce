"""Nested state as JSON and safetensors, without pickle and without loss.

`encode` splits a tree of dict, list, tuple, Tensor, None, bool, int, float and str into tensors and a skeleton for
JSON; `decode` puts it together again. Types must be exactly these, since a subclass (a NamedTuple, a NumPy float)
would come back as another type; kinds of dict (OrderedDict, Counter) are let through and come back as dict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from safetensors.torch import load as read_safetensors
from safetensors.torch import save as write_safetensors
from torch import Tensor

# What safetensors both writes and reads; complex128, quantised and sub-byte types are refused rather than cast.
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
_SIGNED = (torch.int64, torch.int32, torch.int16, torch.int8)
_UNSIGNED = (torch.uint64, torch.uint32, torch.uint16, torch.uint8)
_DTYPES = frozenset((*_FLOATS, *_SIGNED, *_UNSIGNED, torch.bool, torch.complex64))


def pack_tensors(tensors: Mapping[str, Tensor], where: str) -> bytes:
    """The bytes of a safetensors file; tensors that share memory are stored each on its own.

    Raises TypeError for what is no tensor, or one that safetensors cannot hold; `where` begins the message.
    """
    packed: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{where}: expected a tensor under {name!r}, got {type(tensor).__name__}")
        if tensor.layout is not torch.strided or tensor.dtype not in _DTYPES or tensor.is_meta:
            kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise TypeError(f"{where}: {name!r} is not a tensor that safetensors can hold ({kind})")
        if name == "__metadata__":
            raise ValueError(f"{where}: '__metadata__' is a reserved name in safetensors files")
        dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        storage = dense.untyped_storage()
        if storage.nbytes() != dense.nbytes or storage.data_ptr() in storages:
            dense = dense.clone()  # a view or a tied tensor: safetensors refuses memory that is shared
        storages.add(dense.untyped_storage().data_ptr())
        packed[name] = dense
    return write_safetensors(packed, metadata={"format": "pt"})


def unpack_tensors(data: bytes) -> dict[str, Tensor]:
    """The tensors in the bytes of a safetensors file, on the CPU.

    Raises SafetensorError, or KeyError for a dtype unknown here.
    """
    # The clone moves each tensor into memory aligned as torch does it: kernels may round differently elsewhere.
    return {name: tensor.clone() for name, tensor in read_safetensors(data).items()}


def encode(value: object, where: str, tensors: dict[str, Tensor]) -> object:
    """`value` for JSON, its tensors put into `tensors`; what JSON lacks becomes an object with one key, `$...`.

    Raises TypeError for any other kind of value; `where` is the path that its message names.
    """
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int:  # JSON readers elsewhere, and Python's own decimal parser, have limits; hex has none
        return value if abs(value) < 2**63 else {"$int": hex(value)}
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, Tensor):
        name = f"{len(tensors)}:{where}".encode("ascii", "backslashreplace").decode()  # the number: unique
        tensors[name] = value
        return {"$tensor": name}
    if type(value) in (list, tuple):
        sequence = cast("Iterable[object]", value)
        items = [encode(item, f"{where}/{index}", tensors) for index, item in enumerate(sequence)]
        return items if type(value) is list else {"$tuple": items}
    if isinstance(value, dict):
        mapping = cast("dict[object, object]", value)
        pairs = [(key, encode(item, f"{where}/{key}", tensors)) for key, item in mapping.items()]
        if all(type(key) is str and not key.startswith("$") for key, _ in pairs):
            return dict(pairs)
        return {"$dict": [[encode(key, f"{where} (key)", tensors), item] for key, item in pairs]}
    raise TypeError(
        f"{where}: expected dict, list, tuple, Tensor, None, bool, int, float or str exactly, "
        f"got {type(value).__module__}.{type(value).__qualname__}"
    )


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `encode` was given. Raises ValueError, LookupError or TypeError for what `encode` does not make."""
    if isinstance(value, list):
        return [decode(item, tensors) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    mapping = cast("dict[str, Any]", value)
    if len(mapping) != 1 or not next(iter(mapping)).startswith("$"):
        return {key: decode(item, tensors) for key, item in mapping.items()}
    ((tag, content),) = mapping.items()
    match tag:
        case "$tensor":
            return tensors[content]
        case "$tuple":
            return tuple(decode(item, tensors) for item in content)
        case "$dict":
            return {decode(key, tensors): decode(item, tensors) for key, item in content}
        case "$int":
            return int(content, 16)
        case "$float":
            return float(content)
        case _:
            raise ValueError(f"unknown tag {tag!r}")
