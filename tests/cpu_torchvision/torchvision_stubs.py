"""Lets `import torchvision` work where its compiled operators are of no use to the torch that is installed.

A torchvision built for CUDA cannot load its compiled library beside a CPU build of torch; it then fails to import, as
it describes operators (such as `torchvision::nms`) that were never registered. Models, transforms and data sets need
none of them. `install` waits for the moment when torchvision has tried to load its library, and, where that failed,
declares the operators without an implementation. Calling one still fails, in torchvision's own words.

Nothing is imported before that moment, and nothing is changed where torchvision is whole.
"""

from __future__ import annotations

import re
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

# torchvision's `__init__` imports `extension`, which loads the library, and then this.
_DESCRIBES_OPERATORS = "torchvision._meta_registrations"


class OperatorStubs(MetaPathFinder):
    """Finds no module itself; what it sees being looked for tells it that the moment has come."""

    def __init__(self) -> None:
        self.library: Any = None  # torch forgets the operators when it goes

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        extension: Any = sys.modules.get("torchvision.extension")
        if fullname == _DESCRIBES_OPERATORS and self.library is None and extension and not extension._has_ops():
            import torch

            text = Path(extension.__file__).with_name("_meta_registrations.py").read_text(encoding="utf-8")
            self.library = torch.library.Library("torchvision", "DEF")
            for name in sorted(set(re.findall(r"torchvision::(\w+)", text))):
                self.library.define(f"{name}() -> ()")


def install() -> None:
    """Watch the imports of this process, once."""
    if not any(type(finder).__name__ == OperatorStubs.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, OperatorStubs())
