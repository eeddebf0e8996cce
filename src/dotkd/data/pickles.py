"""Pickles of numpy arrays, lists and dictionaries, read without running what they name.

A pickle is a program: it may name any function and have it called. Here it gets, for the five names that a numpy array
needs, stand-ins that only write down what they are called with; any other name is refused before anything is called.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import Any


class PickledArray:
    """What a pickled numpy array says of itself.

    kind: of its numbers, such as u1 for uint8. content: its bytes, in C order.
    """

    def __init__(self, *_: object) -> None:
        self.kind = ""
        self.shape: tuple[Any, ...] = ()
        self.content = b""

    def __setstate__(self, state: object) -> None:
        # (version, shape, type, whether in Fortran order, bytes)
        match state:
            case (_, tuple() as shape, _Kind() as kind, False | 0, bytes() as content):
                self.kind, self.shape, self.content = kind.name, shape, content
            case _:
                raise ValueError("expected a plain array of numbers in C order")
        sizes = [size for size in self.shape if isinstance(size, int) and size >= 0]
        width = self.kind[1:]
        if len(sizes) != len(self.shape) or not width.isdecimal() or math.prod(sizes) * int(width) != len(self.content):
            raise ValueError(
                f"expected as many bytes as {self.kind} of shape {self.shape} has, got {len(self.content)}"
            )


class _Kind:
    """The type of a numpy array by its name."""

    def __init__(self, name: object = "", *_: object) -> None:
        self.name = text_of(name)

    def __setstate__(self, _: object) -> None:
        """Byte order and alignment, which bytes do not have."""


def _encode(text: str, *_: object) -> bytes:
    return text.encode("latin-1")  # how Python 3 stores bytes in the old protocols


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): PickledArray,
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of that name."""
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which data has no use for; nothing was run")
        return _STAND_INS[module, name]


def unpickle(content: bytes, name: str) -> dict[str, Any]:
    """The dictionary in a pickle, its keys as text and its arrays as PickledArray; texts of Python 2 are bytes.

    Raises ValueError, with `name`, for damaged pickles and for those that ask for anything else.
    """
    try:
        loaded = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"cannot read {name}: {error}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"cannot read {name}: expected a dictionary, got {type(loaded).__name__}")
    return {text_of(key): value for key, value in loaded.items()}


def text_of(value: object) -> str:
    """`value` as text, bytes of Python 2 decoded."""
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
