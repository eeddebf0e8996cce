"""The contract of `module:attr`, the models of the user's own.

The module is imported from the working directory, which does not stay on the path. A class or function gets
the arguments that its signature takes; a ready model is copied, so that no two builds share parameters. What
cannot be found, imported, called or used as a model is refused, with the nearest name where a name was wrong.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dotkd import models

MODULE = """
import math
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, input_shape, hidden=3):
        super().__init__()
        self.first = nn.Linear(math.prod(input_shape), hidden)
        self.second = nn.Linear(hidden, num_classes)

    def forward(self, x):
        return self.second(self.first(x.flatten(1)))

def by_classes(num_classes):
    return nn.Linear(4, num_classes)

def passes_on(*, scale=1, **others):
    model = nn.Linear(scale, others["num_classes"])
    model.others = others
    return model

def needs(num_classes, hidden, other):
    return nn.Linear(hidden, num_classes)

def imports_late(num_classes):
    import late_part
    return late_part.make(num_classes)

class Inner:
    make = by_classes

ready = nn.Linear(4, 2)
uncopiable = nn.Linear(4, 2)
uncopiable.trace = uncopiable.weight * 2
number = 3

def returns_number():
    return 3
"""


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in a folder with the user's modules, and forget what was imported from there."""
    (tmp_path / "my_nets.py").write_text(MODULE)
    (tmp_path / "late_part.py").write_text("from torch import nn\ndef make(n):\n    return nn.Linear(1, n)\n")
    (tmp_path / "lacks.py").write_text("import a_package_that_nobody_has\n")
    (tmp_path / "broken.py").write_text("def broken(:\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "teachers.py").touch()
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def build(spec: str, **options: Any) -> nn.Module:
    return models.build(spec, num_classes=6, input_shape=(2, 3), options=options)


def weight(model: nn.Module) -> torch.Tensor:
    return model.get_parameter("weight")


def test_a_class_gets_what_it_names() -> None:
    model = build("my_nets:Net", hidden=7)
    assert type(model).__name__ == "Net"
    assert model.get_parameter("first.weight").shape == (7, 6)
    assert model(torch.zeros(4, 2, 3)).shape == (4, 6)


def test_a_function_gets_what_its_signature_takes() -> None:
    assert weight(build("my_nets:by_classes")).shape == (6, 4)
    assert weight(build("my_nets:Inner.make")).shape == (6, 4)
    passed = build("my_nets:passes_on", scale=5, extra=1)
    assert weight(passed).shape == (6, 5)
    # `**kwargs` are most often passed on to a library's factory, which knows `num_classes` alone.
    assert passed.others == {"num_classes": 6, "extra": 1}


def test_a_ready_model_is_copied_for_each_build() -> None:
    first, second = build("my_nets:ready"), build("my_nets:ready")
    assert torch.equal(weight(first), weight(second))
    with torch.no_grad():
        weight(first).zero_()
    assert weight(second).abs().max() > 0
    assert torch.equal(weight(build("my_nets:ready")), weight(second))


def test_the_working_directory_is_importable_only_while_building() -> None:
    before = list(sys.path)
    assert weight(build("my_nets:imports_late")).shape == (6, 1)
    with pytest.raises(ValueError, match="has no"):
        build("my_nets:Nothing")
    assert sys.path == before


REFUSED = [
    (
        "my_nets:Nett",
        {},
        ValueError,
        "model `my_nets:Nett`: module `my_nets` has no `Nett`, did you mean `Net`?",
    ),
    ("my_nets:Inner.mak", {}, ValueError, "`Inner` has no `mak`, did you mean `make`?"),
    ("my_nets:number", {}, TypeError, "`my_nets:number` to be a torch.nn.Module or to return one, got int"),
    (
        "my_nets:returns_number",
        {},
        TypeError,
        "`my_nets:returns_number` to return a torch.nn.Module, got int",
    ),
    ("my_nets:Net", {"hiden": 1}, ValueError, "`hiden`, did you mean `hidden`? (its options: hidden)"),
    ("my_nets:by_classes", {"a": 1}, ValueError, "unknown option `a` (its options: none)"),
    ("my_nets:Net", {"input_shape": 1}, ValueError, "`input_shape` follows from the data and is no option"),
    (
        "my_nets:needs",
        {},
        ValueError,
        "`my_nets:needs` needs `hidden`, `other`, given as an option of that name",
    ),
    ("my_nets:ready", {"a": 1}, ValueError, "`my_nets:ready` is a ready model and takes no options, got `a`"),
    ("my_nets:uncopiable", {}, ValueError, "name a function that returns it"),
    ("my_nets:", {}, ValueError, "expected a model of your own as `module:attr`, got `my_nets:`"),
    (":Net", {}, ValueError, "expected a model of your own as `module:attr`, got `:Net`"),
    ("my_nets:a:b", {}, ValueError, "expected a model of your own as `module:attr`, got `my_nets:a:b`"),
    (
        "my/nets.py:Net",
        {},
        ValueError,
        "as `module:attr` (a dotted module name, not a path), got `my/nets.py:Net`",
    ),
    ("my_netz:Net", {}, ValueError, "among the installed packages, did you mean `my_nets`?"),
    ("nowhere_at_all:Net", {}, ValueError, "model `nowhere_at_all:Net`: no module `nowhere_at_all` in "),
    ("packag.teachers:Net", {}, ValueError, "among the installed packages, did you mean `package`?"),
    ("package.teacher:Net", {}, ValueError, "among the installed packages, did you mean `teachers`?"),
    ("my_nets.py:Net", {}, ValueError, "model `my_nets.py:Net`: no module `my_nets.py` in"),
    ("lacks:Net", {}, ValueError, "importing `lacks` failed: No module named 'a_package_that_nobody_has'"),
    ("broken:Net", {}, ValueError, "model `broken:Net`: importing `broken` failed: "),
]


@pytest.mark.parametrize(("spec", "options", "kind", "text"), REFUSED)
def test_what_is_no_model_is_refused(spec: str, options: dict[str, object], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=re.escape(text)):
        build(spec, **options)


def test_errors_name_the_folder_that_was_searched_and_the_line_that_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"no module `absent` in {tmp_path} or among")):
        build("absent:Net")
    with pytest.raises(ValueError, match=r"broken\.py, line 1"):
        build("broken:Net")


def test_a_module_written_after_a_failed_attempt_is_found(tmp_path: Path) -> None:
    before = tmp_path.stat()
    with pytest.raises(ValueError, match="no module `written_later`"):
        build("written_later:make")
    (tmp_path / "written_later.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(1, 1)\n")
    # On a file system with coarse times the folder looks unchanged.
    os.utime(tmp_path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weight(build("written_later:make")).shape == (1, 1)
