"""How batches reach the device. The contract:

- Where a split is copied to the device, its batches are those from the host, bit by bit, whatever is done to them. It
  is copied once, where it takes no more than a share of the free memory, and goes with the data set.
- Images decoded on demand come in order, some batches ahead and no more; starting late gives the same bits.
- An image that cannot be read is named when its batch is due, and not before; whatever ends a thread ends the
  iteration.
- When an iteration ends, early or not, no thread is left, and nothing more is decoded.
- On a GPU nothing waits for a batch.
"""

from __future__ import annotations

import gc
import importlib
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dotkd import data
from dotkd.data import images, pipeline
from dotkd.data.batches import Batch
from dotkd.data.dataset import Dataset, Split
from dotkd.data.images import Images
from dotkd.data.resized import Resized

batching = importlib.import_module("dotkd.data.batches")  # the package has a function of that name

KINDS = {
    "plain": {},
    "crops": {"augment": "crop-flip", "shuffle": True},
    "turns": {"augment": "rotate-flip", "shuffle": True, "drop_last": True},
    "boxes and mixup": {"augment": "resized-crop-flip", "mix": "mixup", "shuffle": True},
    "a strong view and cutmix": {"augment": "crop-flip", "strong": True, "mix": "cutmix", "shuffle": True},
    "two views, half a batch": {"augment": "crop-flip", "views": 2, "part": (1, 2), "drop_last": True},
}


def made(size: int = 10) -> Dataset:
    """`size` random pictures (3, 8, 8) of 3 classes, for training and for testing."""
    source = torch.Generator().manual_seed(0)

    def split() -> Split:
        pixels = torch.randint(256, (size, 3, 8, 8), dtype=torch.uint8, generator=source)
        return Split(pixels, torch.randint(3, (size,), generator=source))

    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    return Dataset("made", split(), None, split(), 3, (3, 8, 8), ("a", "b", "c"), mean, std, "0" * 64)


def same(found: Iterator[Batch], expected: Iterator[Batch]) -> None:
    count = 0
    for ours, theirs in zip(found, expected, strict=True):
        count += 1
        for value, other in zip(ours, theirs, strict=True):
            assert (value is None) == (other is None)
            if value is not None:
                torch.testing.assert_close(value.cpu(), other, rtol=0, atol=0)
    assert count > 0


# --- copies on the device


class Copies:
    """Stands for a device with `free` bytes of its own, though it is the CPU; `splits` are what was cut from."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        self.free, self.splits = free, []
        original: Callable[..., Split] = pipeline.on_device

        def noted(*args: object) -> Split:
            split = original(*args)
            self.splits.append(split.inputs)
            return split

        monkeypatch.setattr(batching, "on_device", noted)
        monkeypatch.setattr(pipeline, "_free_bytes", lambda _: self.free)
        moved = Tensor.to

        def copied(tensor: Tensor, *where: object, **options: object) -> Tensor:
            """A tensor is always there already, and would be handed back as it is."""
            there = moved(tensor, *where, **options)
            return there.clone() if there is tensor else there

        monkeypatch.setattr(Tensor, "to", copied)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_on_the_device_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    dataset = made()
    options = {"batch_size": 4, "seed": 3, "epoch": 2, **KINDS[kind]}
    expected = list(data.batches(dataset, "train", **options))
    copies = Copies(monkeypatch, free=2**30)
    found = list(data.batches(dataset, "train", **options))
    monkeypatch.undo()
    same(iter(found), iter(expected))
    assert copies.splits[0] is not dataset.train.inputs


def test_a_split_is_copied_once_and_goes_with_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, copies = made(), Copies(monkeypatch, free=2**30)
    for split in ("train", "test", "train", "test"):
        list(data.batches(dataset, split, batch_size=4))
    first, second = copies.splits[:2]
    assert first is copies.splits[2]
    assert second is copies.splits[3]
    assert torch.equal(first, dataset.train.inputs)
    assert torch.equal(second, dataset.test.inputs)
    held = weakref.ref(first)
    del first, dataset
    copies.splits.clear()
    gc.collect()
    assert held() is None


def test_a_split_that_takes_too_much_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 10 * (3 * 8 * 8 + 8)  # pixels and labels
    for free, fits in ((4 * size, True), (4 * size - 1, False)):
        dataset = made()
        with monkeypatch.context() as patch:
            copies = Copies(patch, free=free)
            list(data.batches(dataset, "train", batch_size=4))
            copies.free = 2**40  # what is free later changes nothing
            list(data.batches(dataset, "train", batch_size=4))
        assert [split is not dataset.train.inputs for split in copies.splits] == [fits, fits]


def test_on_a_cpu_nothing_is_copied() -> None:
    dataset = made()
    assert pipeline.on_device(dataset, "train", dataset.train, torch.device("cpu")) is dataset.train


# --- decoded on demand


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.RandomState(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(40):
            pixels = random.randint(0, 256, (9, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number:02}.png")
    return tmp_path


@pytest.fixture
def on_demand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setattr(images, "MEMORY_CAP", 0)
    return data.load(f"imagefolder:{folder}", image_size=8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 3, 8])
def test_order_and_content_are_those_of_one_after_the_other(
    on_demand: Dataset, monkeypatch: pytest.MonkeyPatch, kind: str, threads: int
) -> None:
    options = {"batch_size": 6, "seed": 1, "epoch": 1, **KINDS[kind]}

    def in_turn(begin: Callable[[int], tuple], numbers: range, threads: int) -> Iterator[object]:
        for number in numbers:
            made, calls = begin(number)
            for call in calls:
                call()
            yield made

    with monkeypatch.context() as patch:
        patch.setattr(batching, "decoded_ahead", in_turn)
        expected = list(data.batches(on_demand, "train", **options))
    monkeypatch.setattr(batching, "decoding_threads", lambda: threads)
    for start in (0, 4, len(expected) - 1):
        same(data.batches(on_demand, "train", **options, start=start), iter(expected[start:]))
    assert list(data.batches(on_demand, "train", **options, start=len(expected))) == []


def test_images_of_another_size_come_in_order_too() -> None:
    dataset = made()
    larger = Split(Resized(dataset.train.inputs, image_size=12), dataset.train.targets)
    mean, std = dataset.mean, dataset.std
    lazy = Dataset("large", larger, None, larger, 3, (3, 12, 12), ("a", "b", "c"), mean, std, "0" * 64)
    kept = Split(larger.inputs[torch.arange(10)], larger.targets)
    ready = Dataset("large", kept, None, kept, 3, (3, 12, 12), ("a", "b", "c"), mean, std, "0" * 64)
    for kind in KINDS.values():
        options = {"batch_size": 4, "seed": 3, **kind}
        same(data.batches(lazy, "train", **options), data.batches(ready, "train", **options))


def test_some_batches_are_decoded_ahead_and_no_more(on_demand: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    original, done = Images.pending, threading.Semaphore(0)

    def noted(self: Images, index: Tensor, *args: object, **options: object) -> object:
        begun.append(int(index[0]))
        batch, calls = original(self, index, *args, **options)
        return batch, [*calls, done.release]

    monkeypatch.setattr(Images, "pending", noted)
    before = set(threading.enumerate())
    found = data.batches(on_demand, "train", batch_size=5)
    assert begun == []
    next(found)
    for _ in range(pipeline.DEPTH):
        assert done.acquire(timeout=10)  # without being asked for
    assert begun == [0, 5, 10, 15]
    next(found)
    assert begun == [0, 5, 10, 15, 20]
    found.close()  # type: ignore[attr-defined]
    assert len(begun) == pipeline.DEPTH + 1
    assert set(threading.enumerate()) <= before


def test_what_waits_is_not_decoded_once_nobody_wants_it() -> None:
    hold, decoded = threading.Event(), []

    def begin(number: int) -> tuple[int, list[Callable[[], None]]]:
        return number, [lambda: decoded.append(number) if number == 0 else (hold.wait(10), decoded.append(number))[0]]

    found = pipeline.decoded_ahead(begin, range(9), threads=1)
    assert next(found) == 0
    threading.Timer(0.05, hold.set).start()
    found.close()
    assert decoded in ([0], [0, 1])  # the one that was being decoded, if any


def test_a_file_that_cannot_be_read_is_named_when_its_batch_is_due(on_demand: Dataset, folder: Path) -> None:
    order = [int(i) for batch in data.batches(on_demand, "train", batch_size=5) for i in batch.index]
    names = [str(file) for file in on_demand.train.inputs._files]
    broken = Path(names[order[11]])
    broken.write_bytes(broken.read_bytes()[:-40])
    before = set(threading.enumerate())
    found = data.batches(on_demand, "train", batch_size=5)
    assert [len(next(found).index) for _ in range(2)] == [5, 5]
    with pytest.raises(ValueError, match=rf"cannot read the image {broken}: .*truncated"):
        next(found)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("death", [SystemExit("gone"), MemoryError("no room"), KeyboardInterrupt()])
def test_whatever_ends_a_thread_ends_the_iteration(death: BaseException) -> None:
    def die() -> None:
        raise death

    def begin(number: int) -> tuple[int, list[Callable[[], None]]]:
        return number, [die] if number == 2 else []

    before = set(threading.enumerate())
    found = pipeline.decoded_ahead(begin, range(6), threads=2)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(type(death)):
        next(found)
    assert set(threading.enumerate()) <= before


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, ranks, threads in ((2, "1", 2), (16, "4", 4), (64, "1", 16), (2, "8", 1)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert pipeline.decoding_threads() == threads


# --- on a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("share", [0.25, 0.0])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_on_a_gpu_are_those_of_the_host_and_wait_for_nothing(
    monkeypatch: pytest.MonkeyPatch, kind: str, share: float
) -> None:
    monkeypatch.setattr(pipeline, "SHARE", share)
    dataset = made(40)
    options = {"batch_size": 4, "seed": 3, **KINDS[kind]}
    expected = list(data.batches(dataset, "train", **options))
    next(data.batches(dataset, "train", **options, device="cuda"))  # the copy itself waits
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = list(data.batches(dataset, "train", **options, device="cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.inputs.is_cuda
        # Kernels of another device round positions between two pixels in their own way.
        near = torch.isclose(ours.inputs.cpu(), theirs.inputs)
        assert near.float().mean() >= (0.97 if kind in ("turns", "boxes and mixup") else 1)
        torch.testing.assert_close(ours.targets.cpu(), theirs.targets)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_decoded_images_cross_to_a_gpu_without_a_wait(on_demand: Dataset) -> None:
    options = {"batch_size": 6, "seed": 1}
    expected = list(data.batches(on_demand, "train", **options))
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = list(data.batches(on_demand, "train", **options, device="cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    same(iter(found), iter(expected))
