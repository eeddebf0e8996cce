"""The parts of `benchmarks/gpu.py`; each writes what it found to NAME.json in the folder."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import math
import tempfile
import time
import traceback
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from official_loop import FULL, QUICK, OfficialLoop, Size, our_config, pace_of_trainer, stored

from dotkd import Trainer
from dotkd.assembly import Batching
from dotkd.bench import MEASURES, Conditions
from dotkd.config import ConfigError
from dotkd.provenance import provenance
from dotkd.stepper import Stepper

Found = dict[str, Any]

# What the machine may be asked for. The plain path is what the others must equal, to rounding.
PLAIN = ("precision=fp32", "channels_last=false", "compile=false")
VARIANTS: dict[str, tuple[str, ...]] = {
    "defaults": (),
    "fp32, plain": PLAIN,
    "bf16, channels_last": ("precision=bf16", "channels_last=true", "compile=false"),
    "bf16, channels_last, compiled": ("precision=bf16", "channels_last=true", "compile=true"),
}
# Relative difference of the mean losses of the first steps: rounding, grown by a few updates.
TOLERANCES = {"fp32, compiled": 0.01, "bf16, channels_last": 0.05, "bf16, channels_last, compiled": 0.05}
EPOCHS, GOAL_MINUTES, GOAL_RATIO = 240, 10, 5


def machine(size: Size, device: torch.device, out: Path) -> Found:
    """What this ran on."""
    names = ("torch", "numpy", "pydantic", "safetensors", "pytest", "triton", "timm", "torchvision", "transformers")
    versions: Found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {**provenance(device), "packages": versions}


def tests(size: Size, device: torch.device, out: Path) -> Found:
    """The tests that need a GPU: those that are skipped elsewhere for want of one."""
    try:
        import pytest
    except ImportError:
        return {"not run": "pytest is not installed here"}

    class OnlyThose:
        def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
            items[:] = [
                item
                for item in items
                if any("GPU" in str(mark.kwargs.get("reason")) for mark in item.iter_markers("skipif"))
            ]

    root = Path(__file__).parent.parent
    files = [str(file) for file in sorted((root / "tests").glob("test_*.py")) if "needs a GPU" in file.read_text()]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        # Warnings are errors with the pinned versions; these are others.
        code = pytest.main(["-q", "-rA", "-W", "default", f"--rootdir={root}", *files], plugins=[OnlyThose()])
    (out / "tests.txt").write_text(said.getvalue(), encoding="utf-8")
    last = said.getvalue().strip().splitlines()[-1]
    return {"files": len(files), "result": last, "missed": [] if code in (0, 5) else [f"tests: {last}"]}


def equality(size: Size, device: torch.device, out: Path) -> Found:
    """The losses of the first steps of every fast path, beside the plain one's."""
    small = size._replace(images=20 * size.batch, test_images=100, epochs=1)
    found: Found = {"missed": []}
    with tempfile.TemporaryDirectory() as folder:
        stored(Path(folder), small)

        def first_losses(name: str, overrides: tuple[str, ...]) -> tuple[float, float]:
            config = our_config(Path(folder), small, device, *overrides, "log_every=10", "lr=0.01")
            Trainer(config, Path(folder) / name).fit()
            record = json.loads((Path(folder) / name / "metrics.jsonl").read_text().splitlines()[0])
            return record["task_loss"], record["distill_loss"]

        plain = first_losses("plain", PLAIN)
        found["plain losses"] = {"task": plain[0], "distill": plain[1]}
        for name, overrides in {"fp32, compiled": (*PLAIN[:2], "compile=true"), **VARIANTS}.items():
            if name not in TOLERANCES:
                continue
            with _recorded_failure(found, name):
                losses = first_losses(name, overrides)
                off = max(abs(mine - theirs) / abs(theirs) for mine, theirs in zip(losses, plain, strict=True))
                found[name] = {"off by": off, "tolerance": TOLERANCES[name]}
                if not off <= TOLERANCES[name]:
                    found["missed"].append(f"{name}: off by {off:.2g}, more than {TOLERANCES[name]}")
    return found


def synchronisation(size: Size, device: torch.device, out: Path) -> Found:
    """Steps and the making of batches, with every wait of the host made an error."""
    if device.type != "cuda":
        return {"not run": "torch looks for waits on CUDA alone"}
    found: Found = {"missed": []}
    step, batches = Stepper.step, Batching.batches

    def watched_step(self: Stepper, *args: Any, **options: Any) -> None:
        # The first steps build: kernels are chosen, graphs are compiled, buffers are made.
        with _waits_refused() if args[1] >= 5 else contextlib.nullcontext():
            step(self, *args, **options)

    def watched_batches(self: Batching, *args: Any, **options: Any) -> Iterator[Any]:
        source = batches(self, *args, **options)
        for number in range(10**9):
            with _waits_refused() if number >= 5 else contextlib.nullcontext():
                batch = next(source, None)
            if batch is None:
                return
            yield batch

    short = size._replace(images=60 * size.batch, test_images=100, epochs=1)
    with tempfile.TemporaryDirectory() as folder:
        stored(Path(folder), short)
        for name, overrides in VARIANTS.items():
            with _recorded_failure(found, name):
                Stepper.step, Batching.batches = watched_step, watched_batches
                try:
                    Trainer(our_config(Path(folder), short, device, *overrides), Path(folder) / name).fit()
                finally:
                    Stepper.step, Batching.batches = step, batches
                found[name] = "no wait in 55 steps and their batches"
    found["missed"] = [name for name in VARIANTS if "no wait" not in str(found.get(name))]
    return found


def bench(size: Size, device: torch.device, out: Path) -> Found:
    """`dotkd bench` on this device."""
    found: Found = {"missed": []}
    conditions = Conditions(device, rounds=2) if size is QUICK else Conditions(device, seconds=8.0)
    for name, measure in MEASURES.items():
        if size is QUICK and name in ("exact_step", "peak_memory", "cached_over_online", "loader_wait"):
            continue  # of their own size, which takes a CPU minutes: `dotkd bench` is for that
        with _recorded_failure(found, name):
            one = measure(conditions)
            found[name] = one.as_json()
            if one.reached is False:
                found["missed"].append(f"{name} {one.ratio.median:.3f}, goal {one.goal:g}")
    return found


def pace(size: Size, device: torch.device, out: Path) -> Found:
    """Images a second of both loops, and how long 240 epochs of 50,000 images would take."""
    found: Found = {"missed": []}
    torch.backends.cudnn.benchmark = True  # as published
    official = OfficialLoop(size, device).images_per_second(size.steps)
    found["official images/s"] = official
    torch.backends.cudnn.benchmark = False
    best = 0.0
    with tempfile.TemporaryDirectory() as folder:
        stored(Path(folder), size)
        cached = ("views=1", f"cache={folder}/cache")  # a view of its own per image: known after the first epoch
        runs = {**VARIANTS, "defaults, teacher cached": cached}
        for name, overrides in runs.items():
            with _recorded_failure(found, name):
                config = our_config(Path(folder), size, device, *overrides)
                ours = pace_of_trainer(config, Path(folder) / name, images=size.images)
                found[name] = {
                    "images/s": ours.images_per_second,
                    "over official": ours.images_per_second / official,
                    "steps timed": ours.steps,
                    "epoch, s": ours.epoch_seconds,
                    f"{EPOCHS} epochs of {size.images} images, min": ours.seconds_of(EPOCHS) / 60,
                }
                if "cached" not in name:
                    best = max(best, ours.images_per_second / official)
    minutes = found.get("defaults", {}).get(f"{EPOCHS} epochs of {size.images} images, min", math.inf)
    if size is FULL and best < GOAL_RATIO:
        found["missed"].append(f"images/s over the published loop {best:.2f}, goal {GOAL_RATIO}")
    if size is FULL and minutes > GOAL_MINUTES:
        found["missed"].append(f"{EPOCHS} epochs in {minutes:.1f} minutes, goal {GOAL_MINUTES}")
    return found


def profile(size: Size, device: torch.device, out: Path) -> Found:
    """Twenty steps of our loop at its defaults: what the device does, and how much of the time it does something."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    profiler = torch.profiler.profile(activities=kinds)
    step, times = Stepper.step, list[float]()
    first, last = (10, 29) if size is FULL else (2, 5)

    def profiled(self: Stepper, batch: Any, number: int) -> None:
        if number == first:
            _settle(device)
            profiler.start()
            times.append(time.perf_counter())
        step(self, batch, number)
        if number == last:
            _settle(device)
            times.append(time.perf_counter())
            profiler.stop()

    short = size._replace(images=(last + 5) * size.batch, test_images=100, epochs=1)
    with tempfile.TemporaryDirectory() as folder:
        stored(Path(folder), short._replace(images=max(short.images, 100)))
        Stepper.step = profiled
        try:
            Trainer(our_config(Path(folder), short, device), Path(folder) / "run").fit()
        finally:
            Stepper.step = step
    averages = profiler.key_averages()
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    (out / "profile.txt").write_text(averages.table(sort_by=order, row_limit=40), encoding="utf-8")
    wall = times[1] - times[0]
    busy = sum(event.self_device_time_total for event in averages if event.device_type.name == "CUDA") / 1e6
    return {"steps": last - first + 1, "ms a step": 1000 * wall / (last - first + 1), "device busy, share": busy / wall}


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def _waits_refused() -> Generator[None, None, None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextlib.contextmanager
def _recorded_failure(found: Found, name: str) -> Generator[None, None, None]:
    """What one variant raises is noted, and the next one is tried: a report without it would say nothing of it."""
    try:
        yield
    except ConfigError as error:
        found[name] = f"not run: {error}"
    except Exception as error:
        found[name] = f"failed: {error!r} {traceback.format_exc()[-1500:]}"
        found.setdefault("missed", []).append(f"{name} failed")


PARTS = {
    "machine": machine,
    "tests": tests,
    "equality": equality,
    "synchronisation": synchronisation,
    "bench": bench,
    "pace": pace,
    "profile": profile,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", type=torch.device, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    found = PARTS[args.part](QUICK if args.quick else FULL, args.device, args.out)
    (args.out / f"{args.part}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
