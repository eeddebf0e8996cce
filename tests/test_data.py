"""The data pipeline, images apart (test_images.py, and test_data_*.py for benchmarks and augmentation). Its contract:

- `load` gives three splits that are disjoint, cover the source, hold out the same share of every class, and do not
  depend on any seed or on the state of the global generators, which it leaves as they were. With `validation` 0 nothing
  is held out.
- `batches` is a function of (seed, epoch, batch number): starting at batch k gives the tail of the epoch, bit for bit.
- A batch is what a literal loop over its images gives: scaled, cropped and mirrored, then normalised.
- Wrong labels, types, shapes, files and options are refused, with the rule, the value and the nearest valid name.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dotkd import data
from dotkd.data.augment import PADDING, VIEWS, crop_flip, draw_views
from dotkd.data.dataset import Split, assemble, channel_statistics, hold_out

EMBEDDED = ["mnist1d", "digits"]
SPLITS = ("train", "val", "test")


def made(inputs: Tensor, classes: int = 3) -> data.Dataset:
    """`inputs` as all three splits, labels in turn."""
    split = Split(inputs, torch.arange(len(inputs)) % classes)
    names = [str(label) for label in range(classes)]
    return assemble("made", {"train": split, "val": split, "test": split}, class_names=names, fingerprint="0" * 64)


def grey(count: int = 30, channels: int = 3, height: int = 6, width: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def saved(path: Path, **arrays: object) -> str:
    np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})
    return f"arrays:{path}"


# --- embedded sources ---


@pytest.mark.parametrize(
    ("spec", "shape", "stored", "test"),
    [
        ("mnist1d", (1, 40), 4000, 1000),
        ("mnist1d:5010", (1, 40), 4000, 1010),
        ("digits", (1, 8, 8), 1438, 359),
    ],
)
def test_embedded_sources(spec: str, shape: tuple[int, ...], stored: int, test: int) -> None:
    dataset = data.load(spec)
    assert len(dataset.test.targets) == test
    assert len(dataset.train.targets) + len(dataset.val.targets) == stored
    assert len(dataset.val.targets) == pytest.approx(stored / 10, abs=2)
    assert dataset.input_shape == shape
    assert dataset.num_classes == 10
    assert dataset.class_names == tuple("0123456789")
    assert dataset.train.inputs.dtype == torch.float32
    assert dataset.train.targets.dtype == torch.int64


def test_mnist1d_is_the_published_set() -> None:
    package = pytest.importorskip("mnist1d.data")
    state = random.getstate(), np.random.get_state()
    published = package.make_dataset(package.get_dataset_args())
    random.setstate(state[0])
    np.random.set_state(state[1])
    dataset = data.load("mnist1d")
    assert isinstance(dataset.test.inputs, Tensor)
    np.testing.assert_array_equal(dataset.test.inputs[:, 0].numpy(), published["x_test"].astype(np.float32))
    np.testing.assert_array_equal(dataset.test.targets.numpy(), published["y_test"])


def test_digits_are_pixels_from_0_to_1() -> None:
    inputs = data.load("digits").train.inputs
    assert isinstance(inputs, Tensor)
    assert (inputs.min(), inputs.max()) == (0, 1)
    assert torch.equal(inputs * 16, (inputs * 16).round())


@pytest.mark.parametrize("spec", EMBEDDED)
def test_loading_neither_uses_nor_changes_the_global_generators(spec: str) -> None:
    from dotkd.data import mnist1d

    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    found = [data.load(spec)]
    mnist1d._generate.cache_clear()
    expected: list[tuple[float, float, float]] = []
    for load in (False, True):
        for generator in (random.seed, np.random.seed, torch.manual_seed):
            generator(7)
        if load:
            found.append(data.load(spec))
        expected.append(draws())
    assert expected[0] == expected[1]
    assert found[0].fingerprint == found[1].fingerprint
    for title in SPLITS:
        first, second = (getattr(dataset, title) for dataset in found)
        assert torch.equal(first.inputs, second.inputs)
        assert torch.equal(first.targets, second.targets)


@pytest.mark.parametrize("spec", EMBEDDED)
def test_splits_are_disjoint(spec: str) -> None:
    dataset = data.load(spec)
    # Every sample of these sets is unique, so that bytes identify it.
    seen = [row.numpy().tobytes() for title in SPLITS for row in getattr(dataset, title).inputs]
    assert len(set(seen)) == len(seen)


def test_fingerprints_do_not_change() -> None:
    # digits only: that of MNIST-1D names the version of its package.
    assert data.load("digits").fingerprint == "14059c26c9e3b5435ff2dc263f248600e8b5a5ac2e1207811f355f83faf49ac0"


def test_fingerprint_tells_data_and_splits_apart() -> None:
    specs = [("mnist1d", 0.1), ("mnist1d", 0.2), ("mnist1d:5010", 0.1), ("digits", 0.1), ("digits", 0.2)]
    prints = [data.load(spec, validation=share).fingerprint for spec, share in specs]
    assert len(set(prints)) == len(prints)
    assert all(re.fullmatch("[0-9a-f]{64}", found) for found in prints)


# --- splitting ---


def test_hold_out_takes_the_share_of_every_class() -> None:
    targets = torch.tensor([0] * 50 + [1] * 20 + [2] * 2)[
        torch.randperm(72, generator=torch.Generator().manual_seed(0))
    ]
    kept, held = hold_out(targets, 0.1, class_names=["a", "b", "c"])
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(72))
    assert targets[held].bincount().tolist() == [5, 2, 1]  # one of the smallest class at least
    assert kept.tolist() == sorted(kept.tolist())
    again = hold_out(targets, 0.1, class_names=["a", "b", "c"])
    assert torch.equal(again[1], held)


def test_hold_out_never_empties_a_class() -> None:
    kept, held = hold_out(torch.tensor([0, 0, 1, 1]), 0.99, class_names=["a", "b"])
    assert (len(kept), len(held)) == (2, 2)


def test_hold_out_refuses_a_class_of_one() -> None:
    with pytest.raises(ValueError, match=r"cannot hold out 10% of class 'b': expected at least 2 samples, 1 left"):
        hold_out(torch.tensor([0, 0, 1]), 0.1, class_names=["a", "b"])


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_test_and_validation_get_the_same_share_of_undivided_data(tmp_path: Path, share: float) -> None:
    inputs = np.arange(400, dtype=np.float32)[:, None]
    dataset = data.load(saved(tmp_path / "whole.npz", x=inputs, y=np.arange(400) % 4), validation=share)
    sizes = [len(split.targets) for split in (dataset.train, dataset.val, dataset.test)]
    assert sizes == [400 - 2 * round(400 * share), round(400 * share), round(400 * share)]
    for split in (dataset.val, dataset.test):
        assert split.targets.bincount().tolist() == [round(100 * share)] * 4
    values = [float(value) for title in SPLITS for value in getattr(dataset, title).inputs[:, 0]]
    assert sorted(values) == list(range(400))


@pytest.mark.parametrize("spec", EMBEDDED)
def test_without_validation_everything_that_is_not_for_testing_is_for_training(spec: str) -> None:
    whole, divided = data.load(spec, validation=0), data.load(spec, validation=0.25)
    assert whole.val is None
    assert divided.val is not None
    assert torch.equal(whole.test.inputs, divided.test.inputs)
    assert len(whole.train.targets) == len(divided.train.targets) + len(divided.val.targets)
    assert whole.fingerprint != divided.fingerprint
    with pytest.raises(ValueError, match=f"{spec} has no val split: it was loaded with validation=0"):
        data.batches(whole, "val", batch_size=2)


def test_without_validation_a_stored_split_stays(tmp_path: Path) -> None:
    spec = saved(tmp_path / "a.npz", **four(x_val=grey(2).numpy(), y_val=[0, 1]))
    dataset = data.load(spec, validation=0)
    assert dataset.val is not None
    assert torch.equal(dataset.val.inputs, grey(2))


def test_without_validation_a_test_split_is_needed(tmp_path: Path) -> None:
    spec = saved(tmp_path / "a.npz", x=grey(8).numpy(), y=[0, 1] * 4)
    with pytest.raises(ValueError, match="expected `validation` above 0, the share that the missing test split gets"):
        data.load(spec, validation=0)


# --- statistics ---


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_statistics_match_numpy(offset: float) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(700, 2, 9, generator=generator) * torch.tensor([[1.0], [5.0]]) + offset
    mean, std = channel_statistics(inputs)
    exact = inputs.numpy().astype(np.float64)
    np.testing.assert_allclose(mean.numpy(), exact.mean((0, 2)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(std.numpy(), exact.std((0, 2)), rtol=1e-6)
    assert mean.dtype == std.dtype == torch.float32


def test_statistics_of_bytes_are_those_of_the_unit_range() -> None:
    mean, std = channel_statistics(grey(40))
    exact = grey(40).numpy() / 255.0
    np.testing.assert_allclose(mean.numpy(), exact.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std.numpy(), exact.std((0, 2, 3)), rtol=1e-6)


def test_statistics_of_many_samples_come_from_some_spread_evenly() -> None:
    inputs = torch.arange(10_000.0)[:, None]
    mean, _ = channel_statistics(inputs)
    assert abs(float(mean) - 4999.5) < 3
    assert float(mean) != 4999.5


@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678])
def test_a_constant_channel_has_deviation_one(value: float) -> None:
    channel = torch.full((600,), value)
    channel[::2] = channel[0].nextafter(torch.tensor(0.0))  # still constant, as far as float32 can tell
    dataset = made(torch.stack([channel, torch.arange(600.0)], dim=1))
    assert dataset.std[0] == 1
    batch = next(data.batches(dataset, "train", batch_size=600))
    assert batch.inputs[:, 0].abs().max() <= 1e-3


# --- batches ---


def reference_view(image: Tensor, view: int) -> Tensor:
    """One image (C, H, W), pixel by pixel."""
    mirrored, corner = divmod(view, 81)
    top, left = divmod(corner, 9)
    channels, height, width = image.shape
    out = torch.zeros_like(image)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                row, column = y + top - 4, x + left - 4
                inside = 0 <= row < height and 0 <= column < width
                out[c, y, width - 1 - x if mirrored else x] = image[c, row, column] if inside else 0
    return out


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize("size", [(3, 6, 5), (1, 3, 2)])  # the second smaller than the padding
def test_crop_flip_equals_the_literal_loop(kind: torch.dtype, size: tuple[int, int, int]) -> None:
    images = grey(VIEWS, *size).to(kind)
    out = crop_flip(images, torch.arange(VIEWS))
    assert out.dtype == kind
    for view in range(VIEWS):
        assert torch.equal(out[view], reference_view(images[view], view)), view


def test_the_middle_view_is_the_image_itself() -> None:
    images = grey(2)
    middle = PADDING * (2 * PADDING + 1) + PADDING
    assert torch.equal(crop_flip(images, torch.tensor([middle, middle])), images)


def test_views_are_all_drawn_about_equally_often() -> None:
    counts = draw_views(162 * 400, seed=0, epoch=0, batch=0).bincount(minlength=VIEWS)
    # chi-squared with 161 degrees of freedom: mean 161, deviation 18
    assert 100 < float(((counts - 400.0) ** 2 / 400).sum()) < 230


def test_a_batch_equals_the_literal_one() -> None:
    dataset = made(grey())
    mean, std = dataset.mean.view(3, 1, 1), dataset.std.view(3, 1, 1)
    options = {"batch_size": 8, "epoch": 3, "seed": 5}
    found = list(data.batches(dataset, "train", **options, shuffle=True, augment="crop-flip"))
    assert [len(batch.index) for batch in found] == [8, 8, 8, 6]
    assert sorted(int(place) for batch in found for place in batch.index) == list(range(30))
    for number, batch in enumerate(found):
        views = draw_views(len(batch.index), seed=5, epoch=3, batch=number).tolist()
        for row, place in enumerate(batch.index.tolist()):
            image = reference_view(dataset.train.inputs[place], views[row])
            torch.testing.assert_close(batch.inputs[row], (image.float() / 255 - mean) / std)
            assert batch.targets[row] == dataset.train.targets[place]
        assert batch.inputs.dtype == torch.float32
        assert batch.index.device.type == "cpu"


def test_without_shuffling_the_order_is_that_of_the_split() -> None:
    index = torch.cat([batch.index for batch in data.batches(made(grey()), "val", batch_size=7, epoch=4, seed=9)])
    assert index.tolist() == list(range(30))


def test_all_inputs_together_are_normalised() -> None:
    inputs = torch.cat([batch.inputs for batch in data.batches(made(grey()), "train", batch_size=7)])
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(inputs.std((0, 2, 3), correction=0), torch.ones(3))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_starting_late_gives_the_tail_bit_for_bit(augment: str, drop_last: bool) -> None:
    dataset = made(grey())
    options = {
        "batch_size": 8,
        "shuffle": True,
        "drop_last": drop_last,
        "augment": augment,
        "seed": 3,
        "epoch": 2,
    }
    torch.manual_seed(0)
    whole = list(data.batches(dataset, "train", **options))
    assert len(whole) == data.batch_count(dataset, "train", batch_size=8, drop_last=drop_last) == 4 - drop_last
    for start in range(len(whole) + 1):
        torch.manual_seed(start)  # which must not matter
        tail = list(data.batches(dataset, "train", **options, start=start))
        assert len(tail) == len(whole) - start
        for found, expected in zip(tail, whole[start:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(found[:3], expected[:3], strict=True))


def test_seeds_epochs_and_batches_differ() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        batch = next(data.batches(made(grey()), "train", batch_size=30, shuffle=True, seed=seed, epoch=epoch))
        return tuple(batch.index.tolist())

    keys = [(seed, epoch) for seed in (0, 1, 2**32, 2**40) for epoch in (0, 1, 2)]
    assert len({order(*key) for key in keys}) == len(keys)
    views = {
        tuple(draw_views(30, seed=seed, epoch=epoch, batch=batch).tolist())
        for seed, epoch in keys
        for batch in (0, 1, 2)
    }
    assert len(views) == len(keys) * 3


def test_order_is_pinned() -> None:
    # A change of this order changes every published number: it must not come unnoticed.
    found = next(data.batches(made(grey()), "train", batch_size=6, shuffle=True, seed=1, epoch=2)).index.tolist()
    assert found == [3, 23, 16, 19, 0, 6]
    assert draw_views(6, seed=1, epoch=2, batch=3).tolist() == [20, 50, 76, 42, 83, 0]


@pytest.mark.parametrize(("size", "drop_last", "count"), [(7, False, 5), (7, True, 4), (30, True, 1), (31, False, 1)])
def test_batch_count(size: int, drop_last: bool, count: int) -> None:
    dataset = made(grey())
    assert data.batch_count(dataset, "train", batch_size=size, drop_last=drop_last) == count
    assert len(list(data.batches(dataset, "train", batch_size=size, drop_last=drop_last))) == count


def test_batches_leave_the_data_alone() -> None:
    dataset = made(torch.rand(12, 3, 6, 5, generator=torch.Generator().manual_seed(0)))
    assert isinstance(dataset.train.inputs, Tensor)
    before = dataset.train.inputs.clone()
    for batch in data.batches(dataset, "train", batch_size=12, augment="crop-flip"):
        batch.inputs.zero_()
        batch.targets.zero_()
    assert torch.equal(dataset.train.inputs, before)
    assert dataset.train.targets.tolist() == [0, 1, 2] * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_equal_those_on_the_cpu() -> None:
    options = {"batch_size": 8, "shuffle": True, "augment": "crop-flip"}
    pairs = zip(
        data.batches(made(grey()), "train", **options),
        data.batches(made(grey()), "train", **options, device="cuda"),
        strict=True,
    )
    for ours, theirs in pairs:
        assert theirs.inputs.is_cuda
        assert theirs.targets.is_cuda
        torch.testing.assert_close(theirs.inputs.cpu(), ours.inputs)
        assert torch.equal(theirs.targets.cpu(), ours.targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "expected `batch_size` of at least 1, got 0"),
        (
            {"batch_size": 31, "drop_last": True},
            "no batch left: the train split of made has 30 samples, fewer than",
        ),
        ({"start": 5}, "expected `start` in 0..4, the number of batches, got 5"),
        ({"start": -1}, "expected `start` in 0..4, the number of batches, got -1"),
        ({"seed": -1}, "expected `seed` of at least 0, got -1"),
        ({"mix": "cut-mix"}, "expected `mix` to be 'none', 'mixup' or 'cutmix', got 'cut-mix'; did you mean 'cutmix'?"),
        ({"mix_alpha": 0.0}, "expected `mix_alpha` above 0, got 0.0"),
        ({"mix_alpha": math.inf}, "expected `mix_alpha` above 0, got inf"),
        ({"epoch": -1}, "expected `epoch` of at least 0, got -1"),
        (
            {"augment": "crop_flip"},
            "expected `augment` to be 'none', 'crop-flip', 'rotate-flip' or 'resized-crop-flip', got 'crop_flip'; did "
            "you mean 'crop-flip'?",
        ),
    ],
)
def test_batches_refuses_at_the_call(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        data.batches(made(grey()), "train", **{"batch_size": 8, **options})


def test_batches_refuses_an_unknown_split() -> None:
    with pytest.raises(ValueError, match="expected `split` to be one of train, val, test, got 'valid'"):
        data.batches(made(grey()), "valid", batch_size=8)


def test_crop_flip_refuses_what_is_not_an_image() -> None:
    with pytest.raises(ValueError, match=r"augment 'crop-flip' needs inputs \(C, H, W\), made has \(40,\)"):
        data.batches(made(torch.rand(9, 40)), "train", batch_size=3, augment="crop-flip")


# --- Dataset ---


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (Split(grey(3), torch.tensor([0, 3, 1])), "expected labels in 0..2, got 3 at position 1 of test"),
        (Split(grey(3), torch.tensor([0, 1, -1])), "expected labels in 0..2, got -1 at position 2 of test"),
        (
            Split(grey(3), torch.tensor([0.0, 1, 2])),
            "expected int64 labels of shape (N,) in test, got torch.float32",
        ),
        (
            Split(grey(3), torch.tensor([[0, 1, 2]])),
            "expected int64 labels of shape (N,) in test, got torch.int64 of shape",
        ),
        (
            Split(grey(3), torch.tensor([0])),
            "expected inputs of shape (1, 3, 6, 5) in test, got (3, 3, 6, 5)",
        ),
        (Split(grey(0), torch.tensor([], dtype=torch.int64)), "the test split has no samples"),
        (
            Split(grey(1, 1), torch.tensor([0])),
            "expected inputs of shape (1, 3, 6, 5) in test, got (1, 1, 6, 5)",
        ),
    ],
)
def test_dataset_refuses(split: Split, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"made: {message}")):
        replace(made(grey()), test=split)


def test_dataset_refuses_one_class() -> None:
    with pytest.raises(ValueError, match="expected at least 2 classes and a name for each, got 1 classes and 1 names"):
        made(grey(), classes=1)


# --- arrays ---


def four(**changes: object) -> dict[str, object]:
    """Arrays as a user would save them: uint8 images, two classes."""
    arrays = {
        "x_train": grey(8).numpy(),
        "y_train": [0, 1] * 4,
        "x_test": grey(4).numpy(),
        "y_test": [0, 1] * 2,
    }
    return {name: array for name, array in {**arrays, **changes}.items() if array is not None}


def test_arrays_as_named(tmp_path: Path) -> None:
    spec = saved(tmp_path / "a.npz", **four(x_val=grey(5).numpy(), y_val=np.array([1, 0, 1, 0, 1], dtype=np.uint8)))
    dataset = data.load(spec)
    assert torch.equal(dataset.train.inputs, grey(8))
    assert torch.equal(dataset.val.inputs, grey(5))
    assert torch.equal(dataset.test.inputs, grey(4))
    assert dataset.val.targets.tolist() == [1, 0, 1, 0, 1]
    assert (dataset.num_classes, dataset.class_names, dataset.input_shape) == (2, ("0", "1"), (3, 6, 5))
    assert dataset.name == spec


def test_arrays_without_validation_hold_it_out_of_train(tmp_path: Path) -> None:
    dataset = data.load(saved(tmp_path / "a.npz", **four()), validation=0.25)
    assert [len(split.targets) for split in (dataset.train, dataset.val, dataset.test)] == [6, 2, 4]
    assert torch.equal(dataset.test.inputs, grey(4))


def test_safetensors_and_npz_are_the_same_data(tmp_path: Path) -> None:
    save_file(
        {name: torch.as_tensor(np.asarray(array)) for name, array in four().items()},
        tmp_path / "a.safetensors",
    )
    ours, theirs = (
        data.load(f"arrays:{tmp_path}/a.safetensors"),
        data.load(saved(tmp_path / "a.npz", **four())),
    )
    assert torch.equal(ours.train.inputs, theirs.train.inputs)
    assert ours.fingerprint == theirs.fingerprint


@pytest.mark.parametrize(
    ("array", "shape", "kind"),
    [
        (np.ones((8, 4), np.float64), (4,), torch.float32),
        (np.ones((8, 4, 5), np.float16), (4, 5), torch.float32),
        (np.ones((8, 4, 5), np.uint8), (1, 4, 5), torch.uint8),  # grey images
        (np.ones((8, 2, 4, 5), ">f4"), (2, 4, 5), torch.float32),  # of a machine with another byte order
        (np.ones((8, 4), np.uint8), (4,), torch.uint8),
    ],
)
def test_shapes_and_types_of_arrays(tmp_path: Path, array: object, shape: tuple[int, ...], kind: torch.dtype) -> None:
    dataset = data.load(saved(tmp_path / "a.npz", x=array, y=[0, 1] * 4))
    assert dataset.input_shape == shape
    assert isinstance(dataset.train.inputs, Tensor)
    assert dataset.train.inputs.dtype == kind
    expected = 1 / 255 if kind == torch.uint8 else 1
    torch.testing.assert_close(dataset.mean, torch.full_like(dataset.mean, expected))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            four(y_train=[0, 1, 2, 3, 9, 1, 2, 3]),
            "labels in 0..4, since y_train has 5 different ones, got 9 at y_train[4]",
        ),
        (
            four(y_test=[0, 1, -1, 0]),
            "expected labels in 0..1, since y_train has 2 different ones, got -1 at y_test[2]",
        ),
        (
            four(y_test=[0, 1, 1, 2]),
            "expected labels in 0..1, since y_train has 2 different ones, got 2 at y_test[3]",
        ),
        (four(y_train=[0.0, 1] * 4), "expected integer labels in y_train, got torch.float64"),
        (four(y_train=[False, True] * 4), "expected integer labels in y_train, got torch.bool"),
        (four(y_train=[[0, 1]] * 4), "expected y_train of shape (8,), one label a sample, got (4, 2)"),
        (four(y_test=[0, 1]), "expected y_test of shape (4,), one label a sample, got (2,)"),
        (
            four(x_test=np.ones((4, 3, 6, 6), np.uint8)),
            "x_test is uint8 (4, 3, 6, 6), x_train is uint8 (8, 3, 6, 5)",
        ),
        (four(x_test=np.ones((4, 3, 6, 5))), "x_test is float32 (4, 3, 6, 5), x_train is uint8 (8, 3, 6, 5)"),
        (
            four(x_train=np.ones((8, 32, 32, 3), np.uint8)),
            "has its channels last; save x.transpose(0, 3, 1, 2)",
        ),
        (
            four(x_train=np.ones(8)),
            "expected x_train of shape (N, D), (N, C, L), (N, H, W) in uint8 or (N, C, H, W)",
        ),
        (four(x_train=np.ones((0, 4))), "no size 0, got (0, 4)"),
        (
            four(x_train=np.ones((8, 4), np.int32)),
            "expected x_train in uint8 or floating point, got torch.int32",
        ),
        (
            four(x_train=np.array([[0, 1], [np.nan, 0]] * 4)),
            "expected finite inputs, got nan at x_train[1, 0]",
        ),
        (four(x_test=np.array([[0, 1], [1, 1e39]])), "expected finite inputs, got inf at x_test[1, 1]"),
        (four(x_train=["a"] * 8), "expected numbers in x_train, got <U1"),
        (four(y_test=None), "expected x_train, y_train, x_test, y_test (and x_val, y_val), or x and y; "),
        (four(x_val=grey(2).numpy()), "or x and y; "),
        (four(x=grey(2).numpy(), y=[0, 1]), "or x and y; "),
        (four(x_tset=[0]), "unknown array 'x_tset': expected x_train"),
        (four(x_tset=[0]), "did you mean 'x_test'?"),
        ({}, "has no array"),
    ],
)
def test_arrays_refuses(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    spec = saved(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=re.escape(message)):
        data.load(spec)


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    spec = saved(tmp_path / "a.npz", **four(x_train=np.array([{}] * 8)))
    with pytest.raises(
        ValueError, match=r"cannot read .*a\.npz: Object arrays cannot be loaded when allow_pickle=False"
    ):
        data.load(spec)


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not an archive at all", b"PK\x03\x04 cut"])
def test_damaged_array_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"cannot read .*{re.escape(name)}: "):
        data.load(f"arrays:{tmp_path / name}")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_truncated_and_altered_npz(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.npz"
    spec = saved(path, **four())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"cannot read .*a\.npz"):
        data.load(spec)
    # One bit of the pixels, which only the archive's checksum shows.
    place = content.index(grey(8).numpy().tobytes()) + 100
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(ValueError, match=r"cannot read .*a\.npz: Bad CRC-32"):
        data.load(spec)


# --- what is asked for ---


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (
            "mnist1",
            {},
            "unknown data 'mnist1': expected mnist1d or mnist1d:NUMBER, digits, imagefolder:PATH, arrays:",
        ),
        ("mnist1", {}, "did you mean 'mnist1d'?"),
        ("image_folder:x", {}, "did you mean 'imagefolder'?"),
        (
            "",
            {},
            "unknown data '': expected mnist1d or mnist1d:NUMBER, digits, imagefolder:PATH, arrays:PATH, "
            "cifar10[:PATH], cifar100[:PATH], tiny-imagenet:PATH, imagenet:PATH, hf:NAME_OR_PATH",
        ),
        ("digits:8", {}, "expected digits with nothing after it, got digits:8"),
        ("mnist1d:4000", {}, "expected mnist1d:NUMBER with a multiple of 10 above 4000, got mnist1d:4000"),
        ("mnist1d:5001", {}, "expected mnist1d:NUMBER with a multiple of 10 above 4000, got mnist1d:5001"),
        ("mnist1d:many", {}, "expected mnist1d:NUMBER with a multiple of 10 above 4000, got mnist1d:many"),
        ("digits", {"validation": -0.1}, "expected `validation` in [0, 0.5), got -0.1"),
        ("digits", {"validation": 0.5}, "expected `validation` in [0, 0.5), got 0.5"),
        (
            "digits",
            {"image_size": 16},
            "`image_size` is for imagefolder, cifar10, cifar100, tiny-imagenet, imagenet, hf, got 16 with digits",
        ),
        ("arrays:x.npz", {"image_size": 16}, "got 16 with arrays:x.npz"),
        ("cifar_100", {}, "did you mean 'cifar100'?"),
        ("imagefolder:x", {"image_size": 0}, "expected `image_size` of at least 1 pixel, got 0"),
        ("arrays:", {}, "expected arrays:PATH, where PATH is an .npz or .safetensors file; got no path"),
    ],
)
def test_load_refuses(spec: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        data.load(spec, **options)


def test_a_bare_path_is_pointed_to_its_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"did you mean 'imagefolder:{tmp_path}'?")):
        data.load(str(tmp_path))
    spec = saved(tmp_path / "a.npz", x=[0])
    with pytest.raises(ValueError, match=re.escape(f"did you mean '{spec}'?")):
        data.load(spec.removeprefix("arrays:"))


def test_a_missing_file_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    saved(tmp_path / "cifar.npz", x=[0])
    with pytest.raises(FileNotFoundError, match=re.escape(f"did you mean {tmp_path / 'cifar.npz'}?")):
        data.load(f"arrays:{tmp_path / 'cifer.npz'}")
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path} has no 'qqq'")):
        data.load(f"arrays:{tmp_path / 'qqq' / 'cifar.npz'}")
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path / 'cifar.npz'} is a file")):
        data.load(f"arrays:{tmp_path / 'cifar.npz' / 'x'}")


def test_another_ending_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    with pytest.raises(ValueError, match=r"expected arrays:PATH to end in .npz or .safetensors, got .*a\.csv"):
        data.load(f"arrays:{tmp_path / 'a.csv'}")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for module, package, spec, hint in [
        ("dotkd.data.imagefolder", "PIL", "imagefolder:x", "pip install pillow"),
        ("dotkd.data.digits", "sklearn.datasets", "digits", "pip install scikit-learn"),
        ("dotkd.data.hf", "datasets", "hf:x", "data 'hf' needs the package datasets: pip install 'dotkd[hf]'"),
        ("dotkd.data.mnist1d", "mnist1d.data", "mnist1d", "pip install mnist1d"),
    ]:
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, module, raising=False)
            patch.delitem(sys.modules, "dotkd.data.images", raising=False)
            patch.setitem(sys.modules, package, None)
            with pytest.raises(ImportError, match=re.escape(hint)):
                data.load(spec)
