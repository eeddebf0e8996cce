"""Where the runs of a comparison go.

The contract:
- with several GPUs each is a place, named as CUDA_VISIBLE_DEVICES names it for the command itself;
- with one GPU, with none, on the CPU, or with a configuration that names a GPU by its number, nothing is assigned;
- runs at a time: one for each GPU where they are used, else as many as the cores hold.
"""

from __future__ import annotations

import pytest

from dotkd.cli import places as module
from dotkd.cli.places import VISIBLE, default_workers, places
from dotkd.config import Config

AUTO, CPU, CUDA, SECOND = (Config(device=name, threads=1) for name in ("auto", "cpu", "cuda", "cuda:1"))


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "cores", lambda: 4)
    monkeypatch.delenv(VISIBLE, raising=False)


def test_each_of_several_gpus_is_a_place():
    expected = [{VISIBLE: "0"}, {VISIBLE: "1"}, {VISIBLE: "2"}]
    assert places([AUTO], 3) == places([CPU, CUDA], 3) == expected
    assert default_workers([AUTO], 3) == 3


@pytest.mark.parametrize(("visible", "gpus"), [("2,5", 2), ("GPU-8a, GPU-9b", 2), ("3,1,0", 3)])
def test_the_commands_own_devices_are_shared_out(monkeypatch: pytest.MonkeyPatch, visible: str, gpus: int):
    monkeypatch.setenv(VISIBLE, visible)
    names = [name.strip() for name in visible.split(",")]
    assert places([AUTO], gpus) == [{VISIBLE: name} for name in names]


def test_what_torch_does_not_see_is_not_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VISIBLE, "0,1,7")  # torch stops at the first that is not there
    assert places([AUTO], 2) == [{VISIBLE: "0"}, {VISIBLE: "1"}]


@pytest.mark.parametrize(
    ("configs", "gpus", "workers"),
    [([AUTO], 1, 1), ([AUTO], 0, 4), ([CPU], 8, 4), ([SECOND], 8, 1), ([AUTO, SECOND], 8, 1)],
)
def test_nothing_is_assigned_where_there_is_nothing_to_choose(configs: list[Config], gpus: int, workers: int):
    assert places(configs, gpus) == [{}]
    assert default_workers(configs, gpus) == workers


def test_threads_share_the_cores():
    assert default_workers([CPU.replace(threads=2)], 0) == 2
    assert default_workers([CPU.replace(threads=2), CPU], 0) == 2
    assert default_workers([CPU.replace(threads=16)], 0) == 1
