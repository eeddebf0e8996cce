"""What has to be settled before a run begins: whether its folder is free, and whether its processes fit together."""

from __future__ import annotations

from pathlib import Path

from dotkd import distributed
from dotkd.config import Config

# What a run leaves in its folder: where one of these is, another run has been.
_PARTS = ("config.yaml", "metrics.jsonl", "summary.json", "checkpoints", "student.safetensors", "teacher")


class RunExists(ValueError):
    """The output folder holds another run."""


def check_processes(config: Config) -> None:
    """Raises ValueError where the processes are no group, have different configs, or cannot share a batch."""
    if distributed.launched() and distributed.size() == 1:
        raise ValueError(
            "this is one of several processes, which do not know of each other: open "
            "`with dotkd.distributed.process_group():` around the Trainer"
        )
    if distributed.size() == 1:
        return
    held = [Config(**values) for values in distributed.gathered(config.model_dump())]
    for number, other in enumerate(held):
        changed = [key for key, value in held[0].model_dump().items() if getattr(other, key) != value]
        if changed:
            listed = "; ".join(f"{key}: {getattr(held[0], key)!r} and {getattr(other, key)!r}" for key in changed)
            raise ValueError(f"expected one config in all processes, but those of 0 and {number} differ: {listed}")
    if config.low_memory:
        raise ValueError(
            f"low_memory: expected false in {distributed.size()} processes, which average gradients, got true; "
            "parallel=fsdp spreads gradients and momenta over them"
        )
    step = distributed.size() * config.accumulate
    if config.batch_size % step:
        below = config.batch_size // step * step
        fitting = f"{below} or {below + step}" if below else f"{step}"
        raise ValueError(
            f"batch_size: expected a multiple of {distributed.size()} processes x accumulate {config.accumulate} = "
            f"{step}, got {config.batch_size}; nearest: {fitting}"
        )


def refuse_other_run(out: Path, config: Config) -> None:
    """Raises RunExists where there is a run in ``out``, unless torchrun may have started this very one before."""
    if not any((out / name).exists() for name in _PARTS):
        return
    held = out / "config.yaml"
    if distributed.restartable() and held.is_file() and Config.from_sources(held) == config:
        return
    raise RunExists(f"{out} already holds a run: `dotkd resume` continues it, or choose another folder")
