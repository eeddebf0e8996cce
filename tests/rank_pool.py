"""Real processes that form a process group (gloo, on the CPU): started once, and given many things to do.

`RankPool().run(function, ranks, *args)` calls `function(rank, group, *args)` in each of the first `ranks` processes.
The function is found by its module and name, so it stands at the top of a test module; what it returns is pickled.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SIZES = (1, 2, 4)
_PATIENCE = timedelta(seconds=120)  # how long a rank waits for another one


def _work(rank: int, store: str, tasks: Any, results: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    world = SIZES[-1]
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=_PATIENCE)
    groups = {size: dist.new_group(list(range(size)), timeout=_PATIENCE) for size in SIZES}
    while True:
        function, ranks, args = pickle.loads(tasks.get())
        try:
            results.put((rank, pickle.dumps(function(rank, groups[ranks], *args)), ""))
        except BaseException:
            results.put((rank, b"", traceback.format_exc()))


class RankPool:
    """Four processes at most, which wait for work; after a failure they are replaced, for some may hang."""

    def __init__(self) -> None:
        self._processes: list[SpawnProcess] = []

    def run(self, function: Callable[..., Any], ranks: int, *args: Any) -> list[Any]:
        """What the function returns in each process, by rank; an error in any of them fails the test."""
        if not self._processes:
            self._start()
        for tasks in self._tasks[:ranks]:
            tasks.put(pickle.dumps((function, ranks, args)))  # else all ranks would share the memory of tensors
        got: dict[int, Any] = {}
        for _ in range(ranks):
            rank, result, error = self._results.get(timeout=2 * _PATIENCE.total_seconds())
            if error:
                self.close()
                raise AssertionError(f"rank {rank} of {ranks}:\n{error}")
            got[rank] = pickle.loads(result)
        return [got[rank] for rank in range(ranks)]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        if self._processes:
            self._folder.cleanup()
        self._processes = []

    def _start(self) -> None:
        context = mp.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        self._results = context.Queue()
        self._tasks = [context.Queue() for _ in range(SIZES[-1])]
        store = str(Path(self._folder.name) / "store")
        self._processes = [
            context.Process(target=_work, args=(rank, store, tasks, self._results), daemon=True)
            for rank, tasks in enumerate(self._tasks)
        ]
        for process in self._processes:
            process.start()
