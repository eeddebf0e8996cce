"""Where a result comes from: versions, commit, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import dotkd


def provenance(device: torch.device) -> dict[str, Any]:
    """What a figure must carry to be checked later; ``commit`` is None outside a git checkout."""
    return {
        "versions": {"dotkd": dotkd.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "commit": _commit(),
        "hardware": _hardware(device),
        "threads": torch.get_num_threads(),
    }


def _commit() -> str | None:
    """The commit of this very source tree, with '+' where it has uncommitted changes."""
    here = Path(__file__).parent
    try:
        tracked = subprocess.run(
            ["git", "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name],
            capture_output=True,
            timeout=10,
        )
        if tracked.returncode:
            return None  # installed somewhere inside a checkout that is not ours
        args = ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(args, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores"
