"""The parts of `benchmarks/gpu.py`; each writes what it found to NAME.json in the folder."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from gpu_checks import VARIANTS, Found, equality, synchronisation, tests
from official_loop import FULL, QUICK, OfficialLoop, Size, our_config, pace_of_trainer, stored

from dotkd import Trainer
from dotkd.bench import MEASURES, Conditions
from dotkd.provenance import provenance
from dotkd.stepper import Stepper

EPOCHS, GOAL_MINUTES, GOAL_RATIO = 240, 10, 5


def machine(size: Size, device: torch.device, found: Found) -> None:
    """What this ran on."""
    names = ("torch", "numpy", "pydantic", "safetensors", "pytest", "triton", "timm", "torchvision", "transformers")
    versions: dict[str, str] = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    found |= {**provenance(device), "packages": versions}


def bench(size: Size, device: torch.device, found: Found) -> None:
    """`dotkd bench` on this device."""
    conditions = Conditions(device, rounds=2) if size is QUICK else Conditions(device, seconds=8.0)
    for name, measure in MEASURES.items():
        if size is QUICK and name in ("exact_step", "peak_memory", "low_memory", "cached_over_online", "loader_wait"):
            continue  # of their own size, which takes a CPU minutes: `dotkd bench` is for that
        with found.trying(name):
            one = measure(conditions)
            found[name] = one.as_json()
            if one.reached is False:
                found["missed"].append(f"{name} {one.ratio.median:.3f}, goal {one.goal:g}")


def pace(size: Size, device: torch.device, found: Found) -> None:
    """Images a second of both loops, and how long 240 epochs of 50,000 images would take."""
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
            with found.trying(name):
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


def profile(size: Size, device: torch.device, found: Found) -> None:
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
    (found.folder / "profile.txt").write_text(averages.table(sort_by=order, row_limit=40), encoding="utf-8")
    wall = times[1] - times[0]
    busy = sum(event.self_device_time_total for event in averages if event.device_type.name == "CUDA") / 1e6
    steps = last - first + 1
    found |= {"steps": steps, "ms a step": 1000 * wall / steps, "device busy, share": busy / wall}


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
    found = Found(args.out, args.part)
    PARTS[args.part](QUICK if args.quick else FULL, args.device, found)
    found.save()


if __name__ == "__main__":
    main()
