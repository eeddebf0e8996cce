"""The most memory that a piece of work held at once."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dotkd.bench.recording import recorded

_CPU = 0  # torch's number for the device type, as it stands in a trace


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors on `device` that `work` held at once; what was there before is not counted.

    On CUDA this is the allocator's own maximum. On a CPU it is the largest running sum over the allocations and
    releases that torch's profiler records; scratch memory that a kernel library takes from the system is not in it.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        kept = work()
        peak = torch.cuda.max_memory_allocated(device) - before
        del kept
        return peak
    # What `work` returns lives to the end, so that nothing is released early.
    with recorded(profile_memory=True) as profiler:
        kept = work()
    del kept
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events: list[dict[str, Any]] = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = [e for e in events if e.get("name") == "[memory]" and e["args"]["Device Type"] == _CPU]
    held = peak = 0
    # Events of one instant keep the order in which they were recorded.
    for event in sorted(changes, key=lambda e: (e["ts"], e["args"]["Ev Idx"])):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak
