"""The checks of `benchmarks/gpu.py`: the tests that need a GPU, fast paths against the plain one, waits of the host."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import traceback
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from official_loop import Size, our_config, stored

from dotkd import Trainer
from dotkd.assembly import Batching
from dotkd.config import ConfigError
from dotkd.stepper import Stepper


class Found(dict[str, Any]):
    """What a part found, kept in NAME.json of `folder` as it comes in: a part may run out of time."""

    def __init__(self, folder: Path, part: str) -> None:
        super().__init__(missed=[])
        self.folder, self._file = folder, folder / f"{part}.json"

    def save(self) -> None:
        self._file.write_text(json.dumps(self), encoding="utf-8")

    @contextlib.contextmanager
    def trying(self, name: str) -> Generator[None, None, None]:
        """What one variant raises is noted under its name, and the part goes on with the next."""
        try:
            yield
        except ConfigError as error:
            self[name] = f"not run: {error}"
        except Exception as error:
            self[name] = f"failed: {error!r} {traceback.format_exc()[-1500:]}"
            self["missed"].append(f"{name} failed")
        self.save()


# What the machine may be asked for. The plain path is what the others must equal, to rounding.
PLAIN = ("precision=fp32", "channels_last=false", "compile=false")
# With 16 bits on CUDA `channels_last=auto` is yes; on a CPU it is refused.
VARIANTS: dict[str, tuple[str, ...]] = {
    "defaults": (),
    "fp32, plain": PLAIN,
    "bf16": ("precision=bf16", "channels_last=auto", "compile=false"),
    "bf16, compiled": ("precision=bf16", "channels_last=auto", "compile=true"),
}
# Relative difference of the mean losses of the first steps: rounding, grown by a few updates.
TOLERANCES = {"fp32, compiled": 0.01, "bf16": 0.05, "bf16, compiled": 0.05}


def tests(size: Size, device: torch.device, found: Found) -> None:
    """The tests that need a GPU: those that are skipped elsewhere for want of one."""
    try:
        import pytest
    except ImportError:
        found["not run"] = "pytest is not installed here"
        return

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
    (found.folder / "tests.txt").write_text(said.getvalue(), encoding="utf-8")
    last = said.getvalue().strip().splitlines()[-1]
    found |= {"files": len(files), "result": last}
    if code not in (0, 5):  # all passed, or there was none
        found["missed"].append(f"tests: {last}")


def equality(size: Size, device: torch.device, found: Found) -> None:
    """The losses of the first steps of every fast path, beside the plain one's."""
    small = size._replace(images=20 * size.batch, test_images=100, epochs=1)
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
            with found.trying(name):
                losses = first_losses(name, overrides)
                off = max(abs(mine - theirs) / abs(theirs) for mine, theirs in zip(losses, plain, strict=True))
                found[name] = {"off by": off, "tolerance": TOLERANCES[name]}
                if not off <= TOLERANCES[name]:
                    found["missed"].append(f"{name}: off by {off:.2g}, more than {TOLERANCES[name]}")


def synchronisation(size: Size, device: torch.device, found: Found) -> None:
    """Steps and the making of batches, with every wait of the host made an error."""
    if device.type != "cuda":
        found["not run"] = "torch looks for waits on CUDA alone"
        return
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
            with found.trying(name):
                Stepper.step, Batching.batches = watched_step, watched_batches
                try:
                    Trainer(our_config(Path(folder), short, device, *overrides), Path(folder) / name).fit()
                finally:
                    Stepper.step, Batching.batches = step, batches
                found[name] = "no wait in 55 steps and their batches"


@contextlib.contextmanager
def _waits_refused() -> Generator[None, None, None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
