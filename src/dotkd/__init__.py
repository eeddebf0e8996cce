"""Knowledge distillation with DOT: the distillation loss gets a momentum of its own (arXiv 2307.08436).

The names below are loaded when first used, so that ``import dotkd`` and ``dotkd --help`` do not wait for torch.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dotkd import data, losses, models
    from dotkd.config import Config
    from dotkd.distiller import Distiller, Losses
    from dotkd.optim import DOT, DOTAdamW, StreamSGD
    from dotkd.trainer import Trainer

__version__ = version("dotkd")

__all__ = ["DOT", "Config", "DOTAdamW", "Distiller", "Losses", "StreamSGD", "Trainer", "data", "losses", "models"]

_HOMES = {
    "Config": "config",
    "DOT": "optim",
    "DOTAdamW": "optim",
    "Distiller": "distiller",
    "Losses": "distiller",
    "StreamSGD": "optim",
    "Trainer": "trainer",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"dotkd.{_HOMES[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"dotkd.{name}")
    raise AttributeError(f"module 'dotkd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
