"""Real processes that form a process group (gloo, on the CPU), started once and given many things to do."""

from __future__ import annotations

import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

_SECONDS = 120  # after which a rank that waits for another one gives up


def _work(rank: int, world: int, store: str, tasks: Any, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=_SECONDS)
    )
    pair = dist.new_group([0, 1])
    for function, args in iter(tasks.get, None):
        try:
            results.put((rank, pickle.dumps(function(rank, world, *args)), ""))
        except BaseException:
            results.put((rank, b"", traceback.format_exc()))
    del pair
    dist.destroy_process_group()


class RankPool:
    """`world` processes; `run` calls a function of a test module in each of them and returns what they return."""

    def __init__(self, world: int) -> None:
        context = mp.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        store = str(Path(self._folder.name) / "store")
        self._results = context.Queue()
        self._tasks = [context.Queue() for _ in range(world)]
        self._processes = [
            context.Process(target=_work, args=(rank, world, store, tasks, self._results), daemon=True)
            for rank, tasks in enumerate(self._tasks)
        ]
        for process in self._processes:
            process.start()

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What `function(rank, world, *args)` returns in each process, in the order of the ranks."""
        for tasks in self._tasks:
            tasks.put((function, args))
        got: dict[int, Any] = {}
        for _ in self._processes:
            rank, result, error = self._results.get(timeout=2 * _SECONDS)
            assert not error, f"rank {rank}:\n{error}"
            got[rank] = pickle.loads(result)
        return [got[rank] for rank in range(len(self._processes))]

    def close(self) -> None:
        for tasks in self._tasks:
            tasks.put(None)
        for process in self._processes:
            process.join(timeout=20)
            if process.is_alive():
                process.terminate()
        self._folder.cleanup()
