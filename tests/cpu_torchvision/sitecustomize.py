"""Python runs this when it starts with this folder on PYTHONPATH: `torchvision_stubs` for a whole command.

A `sitecustomize` that the machine has already, hidden by this one, is run too and takes its place.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import torchvision_stubs

torchvision_stubs.install()

_here = Path(__file__).resolve().parent
_others = [entry for entry in sys.path if Path(entry).resolve() != _here]
_hidden = importlib.machinery.PathFinder.find_spec("sitecustomize", _others)
if _hidden is not None and _hidden.loader is not None:
    _module = importlib.util.module_from_spec(_hidden)
    sys.modules["sitecustomize"] = _module
    _hidden.loader.exec_module(_module)
