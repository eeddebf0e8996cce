"""The contract of examples/.

- The user's own loop has at most 40 lines, and ends with a student that has learned.
- Under Accelerate, with the joined loss, it ends with the same weights, bit for bit.
- Each runs as a script from any folder, without a warning, and prints both losses.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dotkd

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ("own_loop", "own_loop_accelerate")


@pytest.fixture
def loops(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield [importlib.import_module(name) for name in NAMES]
    for name in NAMES:
        sys.modules.pop(name, None)


def test_own_loop_is_short():
    assert len((EXAMPLES / "own_loop.py").read_text(encoding="utf-8").splitlines()) <= 40


def test_both_loops_end_with_the_same_weights(loops):
    plain, accelerated = (loop.main().state_dict() for loop in loops)
    assert plain.keys() == accelerated.keys()
    assert all(torch.equal(plain[name], accelerated[name]) for name in plain)


def test_own_loop_learns(loops):
    student, test = loops[0].main(), dotkd.data.load("digits").test
    assert (student(test.inputs).argmax(1) == test.targets).float().mean() > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_runs_as_a_script(name, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "task loss" in done.stdout
    assert "distillation loss" in done.stdout
