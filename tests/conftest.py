"""Fixtures that several files share; what they hand out is made by `tiny_runs`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torchvision_stubs

# In this process, and in those that tests start.
torchvision_stubs.install()
STUBS = str(Path(torchvision_stubs.__file__).parent)
if STUBS not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (STUBS, os.environ.get("PYTHONPATH"))))


@pytest.fixture
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def ranks():
    from rank_pool import RankPool

    pool = RankPool()
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def teacher(home):
    from tiny_runs import trained_teacher

    return trained_teacher(home)


@pytest.fixture(scope="module")
def pictures(home):
    from tiny_runs import pictures_run

    return pictures_run(home)
