"""How samples reach the device without anybody waiting for them. None of it changes a bit of a batch.

    in memory, on a CPU       cut out and augmented when asked for: at most two hundredths of a step of the smallest
                              models, so that a thread for it would not pay
    in memory, CUDA           the split is copied to the device once, as it is stored (uint8), where it takes no more
                              than `SHARE` of what is free there, and is indexed and augmented there; else batch by
                              batch from pinned memory
    decoded on demand         several batches ahead, straight into pinned memory, in threads

Threads and not worker processes: Pillow lets go of the interpreter lock while it decodes and resizes. A 500x375 JPEG
brought to 224 pixels takes 2.0 to 2.6 ms of a core and 0.17 to 0.28 ms of the lock, so that about ten cores are kept
busy; two were by two threads (736 images/s) no worse than by two processes (574), which have to hand every image over,
and may die on their own.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dotkd.data.dataset import Dataset, Split, SplitName

T = TypeVar("T")

# Of the free memory of a device, what one split may take: models and activations are still to come.
SHARE = 0.25

DEPTH = 4  # batches that are being decoded or wait to be taken

_copies: WeakKeyDictionary[Dataset, dict[tuple[SplitName, torch.device], Split]] = WeakKeyDictionary()


def on_device(dataset: Dataset, name: SplitName, samples: Split, device: torch.device) -> Split:
    """`samples`, the split `name` of `dataset`, where batches for `device` are best cut from it.

    The answer is settled by the first call, and kept as long as the data set.
    """
    free = _free_bytes(device)
    if free is None or not isinstance(samples.inputs, Tensor):
        return samples
    copies = _copies.setdefault(dataset, {})
    key = (name, device)
    if key not in copies:
        size = samples.inputs.nbytes + samples.targets.nbytes
        fits = size <= SHARE * free
        copies[key] = Split(samples.inputs.to(device), samples.targets.to(device)) if fits else samples
    return copies[key]


def decoded_ahead(
    begin: Callable[[int], tuple[T, Sequence[Callable[[], None]]]], numbers: Iterable[int], *, threads: int
) -> Iterator[T]:
    """For each number what `begin` made of it, once all that `begin` left to do has been done.

    begin: gives what to yield, and the calls that complete it, which run in `threads` threads at any time and in any
    order. Order and errors are those of doing everything in turn: an error surfaces where its batch would have come.
    When the iterator ends, or is closed, no thread is left.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        waiting: deque[tuple[T, list[Future[None]]]] = deque()
        rest = iter(numbers)
        try:
            while True:
                for number in islice(rest, DEPTH - len(waiting)):
                    made, calls = begin(number)
                    waiting.append((made, [pool.submit(call) for call in calls]))
                if not waiting:
                    return
                made, parts = waiting.popleft()
                for part in parts:
                    part.result()
                yield made
        finally:
            pool.shutdown(cancel_futures=True)


def decoding_threads() -> int:
    """How many threads decode: one for each core that this process may use, and no more than keep busy.

    Where a launcher runs several processes on this machine (LOCAL_WORLD_SIZE), they share its cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _free_bytes(device: torch.device) -> int | None:
    """What is free on `device`; None where its memory is the host's."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
