"""Where runs go: how many fit the machine, and which of its GPUs each worker process is to see.

Every worker sees one GPU, by CUDA_VISIBLE_DEVICES, and they are spread evenly: with 3 GPUs and `--jobs 6`, two on each.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dotkd.config import Config

VISIBLE = "CUDA_VISIBLE_DEVICES"


def places(configs: Sequence[Config], gpus: int) -> list[dict[str, str]]:
    """The environment variables of the places that workers are spread over; gpus: how many this process sees.

    One place without any where there is at most one GPU or none is used, or where a configuration names one by its
    number, which only a process that sees all of them can find.
    """
    used = {config.device for config in configs}
    if gpus < 2 or used == {"cpu"} or any(":" in device for device in used):
        return [{}]
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return [{VISIBLE: name} for name in (named or [str(number) for number in range(gpus)])[:gpus]]


def default_workers(configs: Sequence[Config], gpus: int) -> int:
    """How many runs fit the machine: the cores by the threads of a run, or one for each GPU where they use them."""
    if gpus and any(config.device != "cpu" for config in configs):
        return len(places(configs, gpus))
    return max(1, cores() // max(config.threads or 1 for config in configs))


def gpus_at_hand() -> int:
    """How many GPUs torch sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def cores() -> int:
    """The cores this process may use; in a container that is less than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)
    found = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    limit = Path("/sys/fs/cgroup/cpu.max")
    if limit.is_file():
        quota, _, period = limit.read_text().partition(" ")
        if quota.isdigit() and period.strip().isdigit():
            found = min(found, max(1, int(quota) // int(period)))
    return found
