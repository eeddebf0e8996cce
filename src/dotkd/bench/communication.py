"""What a step of DOT sends between processes, counted in two of them."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from dotkd import losses, models
from dotkd.bench.measure import Measure, compared
from dotkd.bench.recording import recorded
from dotkd.bench.rounds import Conditions
from dotkd.bench.student_step import CLASSES, DELTA, LR, MOMENTUM, SHAPE, STUDENT, WEIGHT_DECAY
from dotkd.optim import DOT

_PROCESSES, _BATCH = 2, 4  # gradients are as large for any batch
_WIDTHS = {"float": 4, "double": 8, "c10::Half": 2, "c10::BFloat16": 2, "long int": 8, "int": 4, "unsigned char": 1}


def ddp_bytes(conditions: Conditions) -> Measure:
    """The bytes that a step of DOT hands to collectives over those of the same model's under plain DDP.

    Two processes on this machine, gloo, whatever the device of the other measures; the step counted is the third. Both
    include the batch statistics that DDP sends along. Bytes repeat exactly: n is 1.
    """
    del conditions
    with tempfile.TemporaryDirectory() as folder:
        spawn(_take_part, (folder,), nprocs=_PROCESSES)
        sent = json.loads((Path(folder) / "sent.json").read_text(encoding="utf-8"))
    return compared(
        [sent["dot"]],
        [sent["plain"]],
        unit="bytes",
        what=f"handed to collectives in a step with DOT.distribute / with DistributedDataParallel and torch.optim.SGD; "
        f"{STUDENT}, {CLASSES} classes, {_PROCESSES} processes, gloo",
        goal=1.0,
        limit=1.0,
    )


def _take_part(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    # A file rather than a port: nothing to be in use.
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=_PROCESSES)
    try:
        sent = {kind: _sent_in_a_step(dot=kind == "dot") for kind in ("dot", "plain")}
    finally:
        dist.destroy_process_group()
    if rank == 0:
        (Path(folder) / "sent.json").write_text(json.dumps(sent), encoding="utf-8")


def _sent_in_a_step(*, dot: bool) -> int:
    student = DistributedDataParallel(models.build(STUDENT, num_classes=CLASSES, input_shape=SHAPE))
    if dot:
        optimizer = DOT(student.parameters(), lr=LR, momentum=MOMENTUM, delta=DELTA, weight_decay=WEIGHT_DECAY)
        optimizer.distribute(student)
    else:
        optimizer = torch.optim.SGD(student.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    inputs, targets = torch.randn(_BATCH, *SHAPE), torch.randint(CLASSES, (_BATCH,))
    teacher_logits = torch.randn(_BATCH, CLASSES)

    def step() -> None:
        logits = student(inputs)
        task = 0.1 * F.cross_entropy(logits, targets)
        distill = 0.9 * losses.kd(logits, teacher_logits, temperature=4.0)
        if isinstance(optimizer, DOT):
            optimizer.backward(task=task, distill=distill)
        else:
            (task + distill).backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):  # DDP forms its buckets anew after the first
        step()
    with recorded(record_shapes=True) as profiler:
        step()
        dist.barrier()  # what is still on its way belongs to this step
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events: list[dict[str, Any]] = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    sizes = [
        _bytes_of(e["args"]) for e in events if str(e.get("name")).startswith("gloo:") and "Input Dims" in e["args"]
    ]
    if not sum(sizes):
        raise RuntimeError("torch's profiler recorded no collective: the bytes of a step cannot be counted here")
    return sum(sizes)


def _bytes_of(inputs: dict[str, Any]) -> int:
    return sum(
        math.prod(shape) * _WIDTHS[kind] for shape, kind in zip(inputs["Input Dims"], inputs["Input type"], strict=True)
    )
