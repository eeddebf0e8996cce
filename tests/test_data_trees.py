"""Tiny-ImageNet and ImageNet from their official trees. The contract:

- The validation images are the test split; classes are in the order of their identifiers and have their names; mean and
  std are the published ones; a part of the classes is a smaller data set.
- ImageNet's images are decoded on demand: the central square for evaluation, boxes of the whole file for training.
- What is missing or does not fit is named.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dotkd import data
from dotkd.data.images import Images

WNIDS = ("n02", "n01", "n03")


def draw(path: Path, *, seed: int, size: tuple[int, int]) -> Path:
    """A JPEG of smooth noise, `size` = (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path, quality=95)
    return path


def tiny(root: Path, train: int = 4) -> Path:
    lines: list[str] = []
    for label, name in enumerate(WNIDS):
        for number in range(train):
            draw(root / "train" / name / "images" / f"{name}_{number}.JPEG", seed=10 * label + number, size=(64, 64))
        for number in range(2):
            lines.append(f"val_{label}{number}.JPEG\t{name}\t0\t0\t5\t5\n")
            draw(root / "val" / "images" / f"val_{label}{number}.JPEG", seed=500 + len(lines), size=(64, 64))
    (root / "val" / "val_annotations.txt").write_text("".join(reversed(lines)) + "val_999.JPEG\tn99\t0\t0\t1\t1\n")
    (root / "wnids.txt").write_text("\n".join([*WNIDS, "n99"]))
    (root / "words.txt").write_text("n01\tfish, goldfish\nn02\tfrog\nn77\tnone of these\n")
    draw(root / "test" / "images" / "test_0.JPEG", seed=0, size=(64, 64))
    return root


def sizes(dataset: data.Dataset) -> list[int]:
    return [0 if split is None else len(split.targets) for split in (dataset.train, dataset.val, dataset.test)]


def pixels(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.as_tensor(np.array(image)).permute(2, 0, 1)


# --- Tiny-ImageNet ---


def test_tiny_imagenet(tmp_path: Path) -> None:
    dataset = data.load(f"tiny-imagenet:{tiny(tmp_path)}", validation=0.25)
    assert sizes(dataset) == [9, 3, 6]
    assert dataset.class_names == ("fish, goldfish", "frog", "n03")
    assert dataset.input_shape == (3, 64, 64)
    assert dataset.test.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.mean.tolist() == pytest.approx([0.4802, 0.4481, 0.3975])
    assert dataset.std.tolist() == pytest.approx([0.2302, 0.2265, 0.2262])
    # Label 1 is n02, whose images were made first.
    assert torch.equal(dataset.test.inputs[torch.tensor([2])][0], pixels(tmp_path / "val" / "images" / "val_00.JPEG"))
    # The same images, splits and order as an image folder of it.
    plain = data.load(f"imagefolder:{tmp_path}", validation=0.25)
    assert dataset.fingerprint == plain.fingerprint
    assert torch.equal(dataset.train.inputs[torch.arange(9)], plain.train.inputs[torch.arange(9)])


def test_tiny_imagenet_as_a_whole_and_in_another_size(tmp_path: Path) -> None:
    dataset = data.load(f"tiny-imagenet:{tiny(tmp_path)}", validation=0, image_size=32)
    assert sizes(dataset) == [12, 0, 6]
    assert dataset.input_shape == (3, 32, 32)


def test_a_part_of_tiny_imagenet(tmp_path: Path) -> None:
    root = tiny(tmp_path)
    shutil.rmtree(root / "train" / "n03")
    for path in (root / "val" / "images").glob("val_2?.JPEG"):
        path.unlink()
    dataset = data.load(f"tiny-imagenet:{root}", validation=0)
    assert sizes(dataset) == [8, 0, 4]
    assert dataset.class_names == ("fish, goldfish", "frog")


@pytest.mark.parametrize("missing", ["wnids.txt", "train", "val/val_annotations.txt", "val/images"])
def test_a_tree_that_lacks_a_part_is_refused(tmp_path: Path, missing: str) -> None:
    root = tiny(tmp_path)
    (root / missing).rename(tmp_path / "away")
    with pytest.raises(ValueError, match=re.escape(f"with train, val and wnids.txt, but {root} has no {missing}")):
        data.load(f"tiny-imagenet:{root}")


def test_classes_that_are_not_official_are_refused(tmp_path: Path) -> None:
    draw(tiny(tmp_path) / "train" / "cats" / "images" / "x.JPEG", seed=0, size=(64, 64))
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/train has classes that wnids.txt lacks: cats")):
        data.load(f"tiny-imagenet:{tmp_path}")


# --- ImageNet ---


def imagenet(root: Path, layout: str) -> Path:
    """Images of several sizes; validation in class folders, flat with its list, or as unpacked."""
    inner = root / "ILSVRC" / "Data" / "CLS-LOC" if layout == "unpacked" else root
    rows = ["ImageId,PredictionString"]
    for label, name in enumerate(WNIDS):
        for number in range(3):
            draw(inner / "train" / name / f"{name}_{number}.JPEG", seed=10 * label + number, size=(90 + number, 70))
        for number in range(2):
            folder = inner / "val" / name if layout == "folders" else inner / "val"
            file = f"ILSVRC2012_val_{label}{number}"
            draw(folder / f"{file}.JPEG", seed=500 + 10 * label + number, size=(60, 80))
            rows.append(f"{file},{name} 1 1 5 5 {name} 2 2 9 9")
    if layout != "folders":
        (root / "LOC_val_solution.csv").write_text("\n".join([rows[0], *reversed(rows[1:])]) + "\n")
        (root / "LOC_synset_mapping.txt").write_text("n01 fish, goldfish\nn02 frog\nn03 newt\n")
    return root


@pytest.mark.parametrize("layout", ["folders", "flat", "unpacked"])
def test_imagenet(tmp_path: Path, layout: str) -> None:
    dataset = data.load(f"imagenet:{imagenet(tmp_path, layout)}", validation=0)
    assert sizes(dataset) == [9, 0, 6]
    assert dataset.input_shape == (3, 224, 224)
    assert dataset.test.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.class_names == names_of(layout)
    assert dataset.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert dataset.std.tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert isinstance(dataset.train.inputs, Images)
    assert isinstance(dataset.test.inputs, Images)


def names_of(layout: str) -> tuple[str, ...]:
    return ("n01", "n02", "n03") if layout == "folders" else ("fish, goldfish", "frog", "newt")


def test_imagenet_is_evaluated_on_its_central_square(tmp_path: Path) -> None:
    """Resized to 8/7 of the size and then cropped, as published, a smooth picture is the same to within rounding."""
    root = imagenet(tmp_path, "folders")
    dataset = data.load(f"imagenet:{root}", validation=0, image_size=56)
    batch = next(data.batches(dataset, "test", batch_size=1))
    mean, std = dataset.mean.view(3, 1, 1), dataset.std.view(3, 1, 1)
    with Image.open(root / "val" / "n01" / "ILSVRC2012_val_10.JPEG") as image:
        larger = image.resize((64, round(64 * 80 / 60)), Image.Resampling.BILINEAR)
    top, left = (larger.height - 56) // 2, (larger.width - 56) // 2
    expected = np.asarray(larger.crop((left, top, left + 56, top + 56))).transpose(2, 0, 1) / 255.0
    difference = (batch.inputs[0] * std + mean).numpy() - expected
    assert np.abs(difference).mean() < 0.02


def test_imagenet_is_trained_on_boxes(tmp_path: Path) -> None:
    dataset = data.load(f"imagenet:{imagenet(tmp_path, 'flat')}", validation=0.34, image_size=24)
    assert sizes(dataset) == [6, 3, 6]
    options = {"batch_size": 4, "shuffle": True, "augment": "resized-crop-flip", "strong": True, "mix": "cutmix"}
    found = list(data.batches(dataset, "train", **options))
    assert [batch.inputs.shape for batch in found] == [(4, 3, 24, 24), (2, 3, 24, 24)]
    tail = list(data.batches(dataset, "train", **options, start=1))
    assert torch.equal(tail[0].inputs, found[1].inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.rmtree(root / "val"), "{root} has no val folder"),
        (lambda root: shutil.rmtree(root / "train"), "{root} has no train folder"),
        (
            lambda root: (root / "LOC_val_solution.csv").unlink(),
            "expected class folders in {root}/val, or {root}/LOC_val_solution.csv; found neither",
        ),
        (
            lambda root: (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nx,n01,3\n"),
            "expected 'IMAGE,WNID ...' in line 2 of {root}/LOC_val_solution.csv, got 'x,n01,3'",
        ),
        (
            lambda root: (root / "val" / "ILSVRC2012_val_00.JPEG").unlink(),
            "{root}/LOC_val_solution.csv names images that are not in {root}/val: ILSVRC2012_val_00.JPEG",
        ),
        (
            lambda root: draw(root / "val" / "stray.JPEG", seed=0, size=(9, 9)),
            "{root}/LOC_val_solution.csv gives no class for: stray.JPEG",
        ),
        (
            lambda root: (
                [path.unlink() for path in (root / "val").iterdir()]
                + [(root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n")]
            ),
            "expected the images that {root}/LOC_val_solution.csv names in {root}/val, found none",
        ),
        (
            lambda root: (root / "LOC_val_solution.csv").write_text("ILSVRC2012_val_10,n02 1\nILSVRC2012_val_10,n02 1"),
            "{root}/LOC_val_solution.csv names images more than once: ILSVRC2012_val_10.JPEG",
        ),
        (
            lambda root: (root / "LOC_val_solution.csv").write_bytes(b"\xff\xfe"),
            "expected {root}/LOC_val_solution.csv to be text in UTF-8: ",
        ),
        (lambda root: shutil.rmtree(root / "train" / "n03"), "{root}/val has classes that {root}/train lacks: n03"),
    ],
)
def test_imagenet_refuses(tmp_path: Path, change: object, message: str) -> None:
    root = imagenet(tmp_path, "flat")
    assert callable(change)
    change(root)
    with pytest.raises(ValueError, match=re.escape(message.format(root=root))):
        data.load(f"imagenet:{root}")


def test_a_damaged_image_is_named_when_its_turn_comes(tmp_path: Path) -> None:
    path = imagenet(tmp_path, "folders") / "val" / "n01" / "ILSVRC2012_val_11.JPEG"
    dataset = data.load(f"imagenet:{tmp_path}", image_size=16, validation=0)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=re.escape(f"cannot read the image {path}: ")):
        list(data.batches(dataset, "test", batch_size=6))
