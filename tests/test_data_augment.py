"""Augmentation by crops and rotations. The contract:

- Boxes of random resized crops follow the published rule, sample for sample against a literal loop, and in distribution
  against an independent sampler; what is shown is the box cut out and enlarged.
- Rotations are Pillow's, uniform within 20 degrees.
- A batch is a function of (seed, epoch, batch): it is the same wherever the iteration starts, whatever is asked for.
- Images on disk are cropped from the whole file, and decoded once for two views.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import stats
from torch import Tensor

from dotkd import data
from dotkd.data import augment, crops, draws
from dotkd.data.dataset import Split, assemble
from dotkd.data.images import Images


def noise(count: int = 12, height: int = 6, width: int = 5, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def made(inputs: Tensor | Images) -> data.Dataset:
    split = Split(inputs, torch.arange(len(inputs)) % 3)
    return assemble("made", {"train": split, "test": split}, class_names=["a", "b", "c"], fingerprint="0" * 64)


def box_by_the_rule(numbers: list[float], height: int, width: int) -> tuple[int, int, int, int]:
    """torchvision's rule, one image at a time: top, left, height, width."""
    for area, aspect in zip(numbers[:10], numbers[10:20], strict=True):
        target = height * width * (0.08 + 0.92 * area)
        ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * aspect)
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(numbers[20] * (height - h + 1)), int(numbers[21] * (width - w + 1)), h, w
    h, w = height, width
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * (4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


# --- boxes ---


@pytest.mark.parametrize("size", [(64, 64), (375, 500), (7, 3), (1, 1), (2, 40), (40, 2), (1, 300), (224, 100)])
def test_boxes_equal_the_literal_loop(size: tuple[int, int]) -> None:
    numbers = augment.draw_crops(300, seed=3, epoch=1, batch=2)
    found = crops.crop_boxes(numbers, *size)
    assert found.tolist() == [list(box_by_the_rule(row, *size)) for row in numbers.tolist()]
    top, left, height, width = found.T
    assert (found >= 0).all()
    assert (height > 0).all()
    assert (width > 0).all()
    assert (top + height <= size[0]).all()
    assert (left + width <= size[1]).all()


def test_boxes_of_images_of_different_sizes() -> None:
    numbers = augment.draw_crops(5, seed=0, epoch=0, batch=0)
    sizes = np.array([[10, 20], [64, 64], [3, 90], [90, 3], [1, 1]])
    together = crops.crop_boxes(numbers, sizes[:, 0], sizes[:, 1])
    apart = [crops.crop_boxes(numbers[row : row + 1], *sizes[row])[0] for row in range(5)]
    np.testing.assert_array_equal(together, np.stack(apart))


def test_where_no_box_fits_it_is_the_central_one_within_the_ratio() -> None:
    numbers = torch.zeros(1, crops.NUMBERS, dtype=torch.float64)
    numbers[:, :10] = 0.99  # too large an area for a long image
    assert crops.crop_boxes(numbers, 30, 300).tolist() == [[0, 130, 30, 40]]
    assert crops.crop_boxes(numbers, 300, 30).tolist() == [[130, 0, 40, 30]]


def test_boxes_are_distributed_as_those_of_an_independent_sampler() -> None:
    height, width, count = 300, 400, 4000
    random = np.random.RandomState(0)
    expected = np.array([box_by_the_rule(random.rand(23).tolist(), height, width) for _ in range(count)])
    found = crops.crop_boxes(augment.draw_crops(count, seed=1, epoch=0, batch=0), height, width)
    for read in (
        lambda boxes: boxes[:, 2] * boxes[:, 3],
        lambda boxes: boxes[:, 3] / boxes[:, 2],
        lambda boxes: boxes[:, 0] / (height - boxes[:, 2] + 1),
        lambda boxes: boxes[:, 1] / (width - boxes[:, 3] + 1),
    ):
        assert stats.ks_2samp(read(found), read(expected)).pvalue > 0.01


def test_boxes_are_distributed_as_torchvisions() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    image = torch.zeros(3, 300, 400)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)]
    found = crops.crop_boxes(augment.draw_crops(2000, seed=1, epoch=0, batch=0), 300, 400)
    for ours, theirs in zip(found.T, np.array(drawn).T, strict=True):
        assert stats.ks_2samp(ours, theirs).pvalue > 0.01


def test_draws_are_uniform_and_mirror_half() -> None:
    numbers = augment.draw_crops(3000, seed=5, epoch=0, batch=0)
    for column in numbers.T:
        assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-3
    assert abs(float((numbers[:, -1] < 0.5).double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(3000)


@pytest.mark.parametrize("size", [(12, 10), (9, 9), (1, 7), (3, 1)])
def test_crops_are_enlarged_as_if_cut_out_first(size: tuple[int, int]) -> None:
    images = noise(40, *size).float() / 255
    boxes = crops.crop_boxes(augment.draw_crops(40, seed=0, epoch=0, batch=0), *size)
    found = crops.crop_resize(images, boxes)
    for image, (top, left, height, width), shown in zip(images, boxes.tolist(), found, strict=True):
        part = image[None, :, top : top + height, left : left + width]
        expected = F.interpolate(part, size, mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(shown, expected, atol=1e-5, rtol=0)


def test_crops_of_bytes_are_rounded() -> None:
    images = noise(20, 9, 9)
    boxes = crops.crop_boxes(augment.draw_crops(20, seed=0, epoch=0, batch=0), 9, 9)
    found = crops.crop_resize(images, boxes)
    assert found.dtype == torch.uint8
    assert (found.float() - crops.crop_resize(images.float(), boxes)).abs().max() <= 0.5 + 1e-4
    whole = np.array([[0, 0, 9, 9]] * 20)
    assert torch.equal(crops.crop_resize(images, whole), images)


# --- rotations ---


@pytest.mark.parametrize("size", [(16, 16), (11, 14)])
def test_rotations_are_pillows(size: tuple[int, int]) -> None:
    images = noise(60, *size)
    numbers = augment.draw_rotations(60, seed=0, epoch=0, batch=0)
    found = augment.rotate_flip(images, numbers)
    wrong = 0.0
    for image, (angle, mirrored), shown in zip(images, numbers.tolist(), found, strict=True):
        turned = Image.fromarray(image.permute(1, 2, 0).numpy()).rotate((2 * angle - 1) * 20)
        expected = np.asarray(turned)[:, ::-1] if mirrored < 0.5 else np.asarray(turned)
        wrong += float((shown.permute(1, 2, 0).numpy() != expected).mean()) / 60
    assert wrong < 1e-3  # Pillow counts in 16 binary places: a pixel on the edge between two may differ


def test_no_rotation_leaves_the_image() -> None:
    middle = torch.full((4, 2), 0.5, dtype=torch.float64)
    assert torch.equal(augment.rotate_flip(noise(4), middle), noise(4))
    middle[:, 1] = 0.49
    assert torch.equal(augment.rotate_flip(noise(4), middle), noise(4).flip(3))


# --- batches ---

OPTIONS = [
    {"augment": "rotate-flip"},
    {"augment": "resized-crop-flip"},
    {"augment": "crop-flip", "strong": True},
    {"augment": "resized-crop-flip", "strong": True, "mix": "mixup", "mix_alpha": 0.4},
    {"strong": True, "mix": "cutmix"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_starting_late_gives_the_tail_bit_for_bit(options: dict[str, object]) -> None:
    fixed = {"batch_size": 5, "shuffle": True, "seed": 3, "epoch": 2, **options}
    whole = list(data.batches(made(noise()), "train", **fixed))
    assert len(whole) == 3
    for start in range(4):
        torch.manual_seed(start)  # which must not matter
        np.random.seed(start)
        tail = list(data.batches(made(noise()), "train", **fixed, start=start))
        assert len(tail) == 3 - start
        for found, expected in zip(tail, whole[start:], strict=True):
            for a, b in zip(found, expected, strict=True):
                assert torch.equal(a, b) if a is not None else b is None


@pytest.mark.parametrize("name", ["crop-flip", "rotate-flip", "resized-crop-flip"])
def test_a_batch_is_the_augmentation_applied_to_its_draws(name: str) -> None:
    dataset = made(noise())
    found = list(data.batches(dataset, "train", batch_size=5, augment=name, seed=4, epoch=1, strong=True))
    mean, std = dataset.mean.view(3, 1, 1), dataset.std.view(3, 1, 1)
    for number, batch in enumerate(found):
        numbers = augment.AUGMENTATIONS[name].draw(len(batch.index), seed=4, epoch=1, batch=number)
        shown = augment.AUGMENTATIONS[name].apply(noise()[batch.index], numbers)
        torch.testing.assert_close(batch.inputs, (shown.float() / 255 - mean) / std)
        assert batch.strong is not None
        assert batch.strong.shape == batch.inputs.shape
        assert not torch.equal(batch.strong, batch.inputs)


def test_both_views_are_drawn_apart() -> None:
    for draw in (augmentation.draw for augmentation in augment.AUGMENTATIONS.values()):
        key = {"seed": 1, "epoch": 0, "batch": 0}
        assert not torch.equal(draw(20, **key), draw(20, **key, purpose=draws.STRONG_VIEWS))


def test_chunks_divide_every_part() -> None:
    (batch,) = data.batches(made(noise(10)), "train", batch_size=10, strong=True)
    parts = batch.chunks(3)
    assert [len(part.targets) for part in parts] == [4, 4, 2]
    for position in range(4):
        whole = batch[position]
        assert whole is not None
        assert torch.equal(torch.cat([part[position] for part in parts]), whole)
    (plain,) = data.batches(made(noise(10)), "train", batch_size=10)
    assert [part.strong for part in plain.chunks(3)] == [None, None, None]


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (torch.rand(9, 40), {"augment": "rotate-flip"}, "augment 'rotate-flip' needs inputs (C, H, W), made has (40,)"),
        (torch.rand(9, 1, 40), {"augment": "resized-crop-flip"}, "augment 'resized-crop-flip' needs inputs (C, H, W)"),
        (torch.rand(9, 40), {"mix": "cutmix"}, "mix 'cutmix' needs inputs (C, H, W), made has (40,)"),
        (
            torch.rand(9, 3, 4, 4),
            {"strong": True},
            "a second, strongly augmented view needs uint8 images of 1 or 3 channels, made has float32 (3, 4, 4)",
        ),
        (noise(9, channels=2), {"strong": True}, "of 1 or 3 channels, made has uint8 (2, 6, 5)"),
        (noise(9)[:, :, 0], {"strong": True}, "of 1 or 3 channels, made has uint8 (3, 5)"),
    ],
)
def test_what_is_no_image_is_refused(inputs: Tensor, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        data.batches(made(inputs), "train", batch_size=3, **options)


# --- images on disk ---


def files(folder: Path, sizes: list[tuple[int, int]]) -> list[Path]:
    """PNGs of noise, `sizes` as (width, height)."""
    random = np.random.RandomState(0)
    for number, (width, height) in enumerate(sizes):
        pixels = random.randint(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return [folder / f"{number}.png" for number in range(len(sizes))]


def test_images_on_disk_are_cropped_from_the_whole_file(tmp_path: Path) -> None:
    paths = files(tmp_path, [(40, 30), (9, 60), (8, 8), (3, 2)])
    dataset = made(Images(paths, image_size=8))
    (batch,) = data.batches(dataset, "train", batch_size=4, augment="resized-crop-flip", seed=2, strong=True)
    numbers = augment.draw_crops(4, seed=2, epoch=0, batch=0)
    mean, std = dataset.mean.view(3, 1, 1), dataset.std.view(3, 1, 1)
    for path, row, shown in zip(paths, numbers.tolist(), batch.inputs, strict=True):
        with Image.open(path) as image:
            top, left, height, width = box_by_the_rule(row, image.height, image.width)
            part = image.crop((left, top, left + width, top + height)).resize((8, 8), Image.Resampling.BILINEAR)
        expected = torch.as_tensor(np.array(part)).permute(2, 0, 1).float() / 255
        expected = expected.flip(2) if row[-1] < 0.5 else expected
        torch.testing.assert_close(shown, (expected - mean) / std)


def test_a_file_is_read_once_for_two_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = made(Images(files(tmp_path, [(12, 9)] * 6), image_size=8))
    read: list[str] = []
    original = Path.read_bytes

    def recorded(self: Path) -> bytes:
        read.append(self.name)
        return original(self)

    monkeypatch.setattr(Path, "read_bytes", recorded)
    found = list(data.batches(dataset, "train", batch_size=4, augment="resized-crop-flip", strong=True))
    assert sorted(read) == [f"{number}.png" for number in range(6)]
    assert [len(batch.index) for batch in found] == [4, 2]


def test_a_damaged_file_is_named_when_it_is_cropped(tmp_path: Path) -> None:
    paths = files(tmp_path, [(12, 9)] * 4)
    dataset = made(Images(paths, image_size=8))
    paths[2].write_bytes(paths[2].read_bytes()[:50])
    with pytest.raises(ValueError, match=re.escape(f"cannot read the image {paths[2]}: ")):
        list(data.batches(dataset, "train", batch_size=4, augment="resized-crop-flip"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", OPTIONS)
def test_batches_on_a_gpu_equal_those_on_the_cpu(options: dict[str, object]) -> None:
    fixed = {"batch_size": 8, "shuffle": True, **options}
    dataset = made(noise(16, 16, 16))
    pairs = zip(
        data.batches(dataset, "train", **fixed), data.batches(dataset, "train", **fixed, device="cuda"), strict=True
    )
    for ours, theirs in pairs:
        for a, b in zip(ours, theirs, strict=True):
            if a is not None and b is not None:
                # A product rounded the other way may fetch a neighbouring pixel.
                assert ((a - b.cpu()).abs() > 0.05).float().mean() < 5e-3
