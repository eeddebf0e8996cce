"""One run in several processes, as torchrun starts them: who this one is, and what all have to agree on.

The processes are numbered 0 .. n - 1 by *rank*; rank 0 is the *main* one, which alone writes and shows. Where there is
no process group, a process is the only one: `rank()` is 0, `size()` is 1, and every function here gives back what it
was given without any communication.

What waits for another process waits ``DOTKD_TIMEOUT`` seconds (an environment variable; 600 if it is not set), then
the run ends and can be resumed. The main process writes while the others wait.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import pairwise
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

TIMEOUT = "DOTKD_TIMEOUT"
_LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun, and others like it, set
_FROM_ANOTHER = "from_another_process"  # an attribute of errors that were raised elsewhere first
_CHUNK = 25 << 20  # bytes sent at a time, as DDP does


class PeerLost(RuntimeError):
    """Another process of the run ended, or did not answer in time."""


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return all(name in os.environ for name in _LAUNCHER) and int(os.environ["WORLD_SIZE"]) > 1


def restartable() -> bool:
    """Whether torchrun started this process, and so may start it again with the same words."""
    return launched() or "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def process_group() -> Generator[None, None, None]:
    """Within, the processes that a launcher started work together; does nothing where there is one alone.

    They talk by NCCL about what lies on GPUs, by gloo about the rest. A GPU is taken by its local rank.

    Raises:
        ValueError: more processes than GPUs on this machine, or a time-out that is no number of seconds.
        PeerLost: another process was lost meanwhile.
    """
    if not launched() or dist.is_initialized():
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= count:
            raise ValueError(
                f"expected at most {count} processes on this machine, one to a GPU, got number {local + 1}: "
                "start fewer, or hide the GPUs by CUDA_VISIBLE_DEVICES= to compute on the CPU"
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    timeout = _timeout()
    store, own_rank, count = next(dist.rendezvous("env://", timeout=timeout))
    store = _of_this_start(store, own_rank, count, timeout)
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=count, timeout=timeout)
    try:
        yield
    except RuntimeError as error:
        # What gloo has to say comes as a plain RuntimeError.
        if isinstance(error, dist.DistError) or "/gloo/" in str(error):
            reason = str(error).splitlines()[0].partition(" This is typically")[0]
            raise PeerLost(
                f"another process of this run ended or did not answer for {timeout.total_seconds():.0f} s "
                f"({TIMEOUT} sets that): {reason}"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def _of_this_start(store: dist.Store, own_rank: int, count: int, timeout: timedelta) -> dist.Store:
    """The part of ``store`` that no earlier start has written to.

    torchrun may keep the store when it starts the processes again, and with it the addresses of those that are gone.
    So every process leaves a note that nobody left before. The main one lists the notes that it finds until all
    processes have answered; a process that finds its own in the list knows that the main one's there is of this start.
    """
    own, deadline = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    store.set(f"dotkd/note/{own_rank}", own)
    others = range(1, count)
    while True:
        if own_rank == 0:
            notes = [own, *(store.get(f"dotkd/note/{k}").decode() for k in others)]
            store.set("dotkd/notes", " ".join(notes))
            answers = [f"dotkd/answer/{k}" for k in others]
            if store.check(answers) and all(store.get(answer).decode() == own for answer in answers):
                return dist.PrefixStore(own, store)
        else:
            notes = store.get("dotkd/notes").decode().split()
            if len(notes) == count and notes[own_rank] == own:
                store.set(f"dotkd/answer/{own_rank}", notes[0])
                return dist.PrefixStore(notes[0], store)
        if time.monotonic() > deadline:
            raise PeerLost(f"the other processes of this run did not start within {timeout.total_seconds():.0f} s")
        time.sleep(0.02)


def _timeout() -> timedelta:
    text = os.environ.get(TIMEOUT, "600")
    seconds = math.nan
    with suppress(ValueError):
        seconds = float(text)
    if not 0 < seconds < math.inf:
        raise ValueError(f"expected {TIMEOUT} to be a number of seconds > 0, got {text!r}")
    return timedelta(seconds=seconds)


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that writes and shows."""
    return rank() == 0


def first_to_fail(error: Exception) -> bool:
    """Whether ``error`` is this process's to tell: it is its own, and no other process has claimed one before."""
    if size() == 1:
        return True
    if getattr(error, _FROM_ANOTHER, False):
        return False
    try:
        return dist.distributed_c10d._get_default_store().add("dotkd/failed", 1) == 1
    except RuntimeError:  # whoever kept the store is gone
        return True


# --- plain values, by way of the host --------------------------------------------------------------------------------


def gathered(value: T) -> list[T]:
    """The values of all processes, by rank. Waits for all."""
    if size() == 1:
        return [value]
    values: list[T | None] = [None] * size()
    dist.all_gather_object(values, value)
    return cast("list[T]", values)


def main_decides(act: Callable[[], T]) -> T:
    """What ``act`` gives in the main process, where alone it runs, in all of them; also what it raises."""
    if size() == 1:
        return act()
    value, failure = None, None
    if is_main():
        try:
            value = act()
        except Exception as error:
            failure = error
    box: list[object] = [value, failure]
    dist.broadcast_object_list(box, src=0)
    if failure is not None:
        raise failure
    if isinstance(box[1], Exception):
        raise _from_another(box[1])
    return cast("T", box[0])


def all_or_none(act: Callable[[], T]) -> T:
    """What ``act`` gives here, unless it fails in any process: then all fail, each by its own error or the first's."""
    if size() == 1:
        return act()
    value, failure = None, None
    try:
        value = act()
    except Exception as error:
        failure = error
    failures = [error for error in gathered(failure) if error is not None]
    if failure is not None:
        raise failure
    if failures:
        raise _from_another(failures[0])
    return cast("T", value)


def _from_another(error: Exception) -> Exception:
    setattr(error, _FROM_ANOTHER, True)
    return error


# --- tensors ---------------------------------------------------------------------------------------------------------


def summed(tensor: Tensor) -> Tensor:
    """The sum over the processes, in a tensor of its own; alone, the tensor itself."""
    if size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def concatenated(tensor: Tensor) -> Tensor:
    """(N, ...) of each process, equally many, one after the other by rank."""
    if size() == 1:
        return tensor
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def shares_of(count: int) -> list[range]:
    """Which of ``count`` things are each process's to do, by rank: neighbours, about equally many to each."""
    bounds = [count * k // size() for k in range(size() + 1)]
    return [range(a, b) for a, b in pairwise(bounds)]


def joined_shares(mine: Tensor, counts: Sequence[int]) -> Tensor:
    """Of tensors (counts[k], C), one from each process, all rows by rank, in every process."""
    if size() == 1:
        return mine
    rows = mine.new_empty(sum(counts), *mine.shape[1:])
    parts = rows.split(list(counts))
    parts[rank()].copy_(mine)
    for source, part in enumerate(parts):
        if len(part):
            dist.broadcast(part, src=source)
    return rows


@torch.no_grad()
def follow_main(tensors: Iterable[Tensor]) -> None:
    """Give the tensors in every process the values that they have in the main one, in a few large messages."""
    if size() == 1:
        return
    by_device: dict[torch.device, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        by_device[tensor.device].append(tensor)
    for found in by_device.values():
        dist._broadcast_coalesced(dist.distributed_c10d._get_default_group(), found, _CHUNK, 0)


def refuse_unequal(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise ValueError naming the tensors whose bits are not the same in all processes."""
    if size() == 1:
        return
    hashes = {name: _hash(tensor) for name, tensor in tensors}
    first, *others = gathered(hashes)
    for other, theirs in enumerate(others, start=1):
        differing = [name for name in first | theirs if first.get(name) != theirs.get(name)]
        if differing:
            raise ValueError(
                f"expected the same weights in all processes, but {len(differing)} tensors of process {other} are not "
                f"those of process 0, `{differing[0]}` the first of them"
            )


def _hash(tensor: Tensor) -> str:
    plain = tensor.detach().cpu().contiguous().view(-1)
    return hashlib.sha256(plain.view(torch.uint8).numpy().tobytes()).hexdigest()
