"""Folders of images. The contract:

- Four layouts are read: train/val, train/[val/]test, one folder of class folders, Tiny-ImageNet. Classes are sorted,
  hidden files are not looked at, and whatever a path is made of (spaces, unicode, links, `~`), it works.
- Every mode that Pillow knows becomes 8-bit RGB; `image_size` resizes and crops the centre.
- Images kept in memory and images decoded batch by batch give the same batches.
- What cannot be used is refused with the path: damaged files, unequal sizes, empty classes, classes unknown to train.
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
from dotkd.data import images
from dotkd.data.images import Images, read_image


def draw(path: Path, *, seed: int = 0, size: tuple[int, int] = (5, 4), mode: str = "RGB") -> Path:
    """A file of noise, `size` = (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def fill(folder: Path, *, classes: str = "ab", count: int = 4, seed: int = 0) -> Path:
    """`count` PNGs for each class; their names leave their order to sorting."""
    for label, name in enumerate(classes):
        for number in range(count):
            draw(folder / name / f"{number}.png", seed=1000 * seed + 100 * label + number)
    return folder


def tiny(root: Path, *, classes: tuple[str, ...] = ("n01", "n02"), train: int = 4, val: int = 2) -> Path:
    """The layout of Tiny-ImageNet, with its boxes, word lists and unlabelled test images."""
    lines: list[str] = []
    for label, name in enumerate(classes):
        for number in range(train):
            draw(
                root / "train" / name / "images" / f"{name}_{number}.JPEG",
                seed=10 * label + number,
                size=(8, 8),
            )
        (root / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t5\t5\n")
        for number in range(val):
            file = f"val_{len(lines)}.JPEG"
            draw(root / "val" / "images" / file, seed=500 + 10 * label + number, size=(8, 8))
            lines.append(f"{file}\t{name}\t0\t0\t5\t5\n")
    (root / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    (root / "wnids.txt").write_text("\n".join(reversed(classes)))
    draw(root / "test" / "images" / "test_0.JPEG", size=(8, 8))
    return root


def sizes(dataset: data.Dataset) -> list[int]:
    return [len(split.targets) for split in (dataset.train, dataset.val, dataset.test)]


def pixels(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.as_tensor(np.array(image.convert("RGB"))).permute(2, 0, 1)


# --- layouts ---


def test_val_is_the_test_split_where_there_is_no_other(tmp_path: Path) -> None:
    fill(tmp_path / "train", count=10)
    fill(tmp_path / "val", count=3, seed=1)
    dataset = data.load(f"imagefolder:{tmp_path}", validation=0.2)
    assert sizes(dataset) == [16, 4, 6]
    assert dataset.class_names == ("a", "b")
    assert dataset.input_shape == (3, 4, 5)
    assert dataset.name == f"imagefolder:{tmp_path}"
    assert dataset.test.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.val.targets.tolist() == [0, 0, 1, 1]
    assert torch.equal(dataset.test.inputs[torch.tensor([4])][0], pixels(tmp_path / "val" / "b" / "1.png"))
    # Together, training and validation hold every image of train once.
    held = {row.numpy().tobytes() for split in (dataset.train, dataset.val) for row in split.inputs}
    assert held == {pixels(path).numpy().tobytes() for path in (tmp_path / "train").rglob("*.png")}


def test_three_folders_are_taken_as_named(tmp_path: Path) -> None:
    for number, (name, count) in enumerate([("train", 5), ("val", 3), ("test", 2)]):
        fill(tmp_path / name, count=count, seed=number)
    dataset = data.load(f"imagefolder:{tmp_path}")
    assert sizes(dataset) == [10, 6, 4]
    assert torch.equal(dataset.val.inputs[torch.tensor([0])][0], pixels(tmp_path / "val" / "a" / "0.png"))


def test_train_and_test_leave_validation_to_be_held_out(tmp_path: Path) -> None:
    fill(tmp_path / "train", count=10)
    fill(tmp_path / "test", count=3)
    assert sizes(data.load(f"imagefolder:{tmp_path}")) == [18, 2, 6]


def test_one_folder_is_split_in_three(tmp_path: Path) -> None:
    dataset = data.load(f"imagefolder:{fill(tmp_path, count=20)}")
    assert sizes(dataset) == [32, 4, 4]
    for split in (dataset.val, dataset.test):
        assert split.targets.tolist() == [0, 0, 1, 1]
    rows = [row.numpy().tobytes() for split in (dataset.train, dataset.val, dataset.test) for row in split.inputs]
    assert len(set(rows)) == 40


def test_tiny_imagenet(tmp_path: Path) -> None:
    dataset = data.load(f"imagefolder:{tiny(tmp_path)}", validation=0.25)
    assert sizes(dataset) == [6, 2, 4]
    assert dataset.class_names == ("n01", "n02")
    assert dataset.test.targets.tolist() == [0, 0, 1, 1]
    assert torch.equal(dataset.test.inputs[torch.tensor([2])][0], pixels(tmp_path / "val" / "images" / "val_2.JPEG"))


def test_a_part_of_tiny_imagenet_with_its_complete_lists(tmp_path: Path) -> None:
    annotations = tiny(tmp_path) / "val" / "val_annotations.txt"
    annotations.write_text(annotations.read_text() + "val_9.JPEG\tn99\t0\t0\t1\t1\n\n")
    assert sizes(data.load(f"imagefolder:{tmp_path}", validation=0.25)) == [6, 2, 4]


def test_tiny_imagenet_sorted_into_class_folders(tmp_path: Path) -> None:
    """As many scripts do, which leave the list where it was."""
    shutil.rmtree(tiny(tmp_path) / "val" / "images")
    shutil.rmtree(tmp_path / "test")
    for name in ("n01", "n02"):
        draw(tmp_path / "val" / name / "images" / "x.JPEG", size=(8, 8))
    assert sizes(data.load(f"imagefolder:{tmp_path}", validation=0.25)) == [6, 2, 2]


def test_hidden_files_and_other_files_are_ignored(tmp_path: Path) -> None:
    before = data.load(f"imagefolder:{fill(tmp_path, count=5)}")
    (tmp_path / "a" / "._0.png").write_bytes(b"resource fork")
    (tmp_path / "a" / ".thumbnails").mkdir()
    (tmp_path / "a" / ".thumbnails" / "0.png").write_bytes(b"")
    (tmp_path / ".git").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("cats")
    (tmp_path / "LICENSE").write_text("MIT")
    after = data.load(f"imagefolder:{tmp_path}")
    assert after.class_names == ("a", "b")
    assert after.fingerprint == before.fingerprint


def test_images_are_found_at_any_depth_and_in_any_case(tmp_path: Path) -> None:
    fill(tmp_path, count=5)
    draw(tmp_path / "a" / "deep" / "er" / "x.PNG")
    draw(tmp_path / "b" / "y.Jpeg")
    assert sum(sizes(data.load(f"imagefolder:{tmp_path}"))) == 12


@pytest.mark.parametrize("name", ["with space", "日本 ñandú é", "colon:ed", "~tilde", "100%"])
def test_paths_of_every_kind(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path / name / "set ü", classes="äz", count=5)
    plain = data.load(f"imagefolder:{root}")
    assert plain.class_names == ("z", "ä")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / name)
    for path in (f"~/{name}/set ü", "set ü", f"./../{name}/set ü/"):
        assert data.load(f"imagefolder:{path}").fingerprint == plain.fingerprint


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    fill(tmp_path / "real", count=5)
    draw(tmp_path / "real" / "b" / "deep" / "x.png")
    plain = data.load(f"imagefolder:{tmp_path / 'real'}")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "a").symlink_to(tmp_path / "real" / "a")
    (linked / "b").mkdir()
    for path in (tmp_path / "real" / "b").iterdir():
        (linked / "b" / path.name).symlink_to(path)
    (tmp_path / "root").symlink_to(linked)
    found = data.load(f"imagefolder:{tmp_path / 'root'}")
    assert found.fingerprint == plain.fingerprint
    assert torch.equal(found.train.inputs[torch.arange(6)], plain.train.inputs[torch.arange(6)])


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    fill(tmp_path, count=5)
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    assert sum(sizes(data.load(f"imagefolder:{tmp_path}"))) == 10


# --- pixels ---


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        ("L", "png"),
        ("1", "png"),
        ("P", "gif"),
        ("LA", "png"),
        ("RGBA", "png"),
        ("CMYK", "tiff"),
        ("YCbCr", "jpg"),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, ending: str) -> None:
    path = draw(tmp_path / f"x.{ending}", mode=mode)
    found = read_image(path, image_size=None)
    assert (found.dtype, found.shape) == (np.uint8, (3, 4, 5))
    np.testing.assert_array_equal(found, pixels(path).numpy())


def test_transparency_is_dropped(tmp_path: Path) -> None:
    rgba = np.random.RandomState(0).randint(0, 256, (4, 5, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png", image_size=None), rgba[..., :3].transpose(2, 0, 1))


def test_a_palette_with_transparency_gives_no_warning(tmp_path: Path) -> None:
    palette = Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5) % 3).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "x.png", transparency=bytes([0, 128, 255]))
    assert read_image(tmp_path / "x.png", image_size=None)[:, 0, 1].tolist() == [255, 0, 0]


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    for ending in ("png", "tiff"):
        Image.fromarray(deep).save(tmp_path / f"x.{ending}")
        found = read_image(tmp_path / f"x.{ending}", image_size=None)
        np.testing.assert_array_equal(found, np.broadcast_to(np.arange(256).reshape(16, 16), (3, 16, 16)))


def test_images_without_a_fixed_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 5), np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(
        ValueError, match=r"cannot read the image .*x\.tiff: expected 8 or 16 bits a channel, got mode F"
    ):
        read_image(tmp_path / "x.tiff", image_size=None)


@pytest.mark.parametrize("size", [(30, 20), (20, 30), (21, 20), (8, 10)])
def test_resizing_keeps_the_proportions_and_the_centre(tmp_path: Path, size: tuple[int, int]) -> None:
    """A smooth picture resized and then cropped, in that order, is the same to within rounding."""
    width, height = size
    ramp = (
        np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 3)) * np.linspace(0.2, 1, height)[:, None, None]
    )
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "x.png")
    found = read_image(tmp_path / "x.png", image_size=10)
    side = min(size)
    larger = Image.open(tmp_path / "x.png").resize((round(width * 10 / side), round(height * 10 / side)), 2)
    left, top = (larger.width - 10) / 2, (larger.height - 10) / 2
    expected = np.asarray(larger.transform((10, 10), Image.Transform.AFFINE, (1, 0, left, 0, 1, top), 2)).transpose(
        2, 0, 1
    )
    assert found.shape == (3, 10, 10)
    assert np.abs(found.astype(int) - expected)[:, 1:-1, 1:-1].max() <= 8


def test_resizing_to_its_own_size_changes_nothing(tmp_path: Path) -> None:
    path = draw(tmp_path / "x.png", size=(6, 6))
    np.testing.assert_array_equal(read_image(path, image_size=6), read_image(path, image_size=None))


def test_image_size_makes_unequal_images_equal(tmp_path: Path) -> None:
    fill(tmp_path, count=5)
    draw(tmp_path / "a" / "wide.png", size=(40, 9))
    dataset = data.load(f"imagefolder:{tmp_path}", image_size=7)
    assert dataset.input_shape == (3, 7, 7)
    assert dataset.fingerprint != data.load(f"imagefolder:{tmp_path}", image_size=8).fingerprint


# --- in memory or decoded on demand ---


def test_decoding_on_demand_gives_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, count=30)
    kept = data.load(f"imagefolder:{tmp_path}")
    monkeypatch.setattr(images, "MEMORY_CAP", 60 * 3 * 4 * 5 - 1)
    lazy = data.load(f"imagefolder:{tmp_path}")
    assert isinstance(kept.train.inputs, Tensor)
    assert isinstance(lazy.train.inputs, Images)
    assert lazy.fingerprint == kept.fingerprint
    assert torch.equal(lazy.mean, kept.mean)
    assert torch.equal(lazy.std, kept.std)
    options = {"batch_size": 7, "shuffle": True, "augment": "crop-flip", "seed": 2, "epoch": 1}
    expected = list(data.batches(kept, "train", **options))
    for start in (0, 3, len(expected)):
        found = list(data.batches(lazy, "train", **options, start=start))
        assert len(found) == len(expected) - start
        for ours, theirs in zip(found, expected[start:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True))


def test_the_memory_cap_is_inclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MEMORY_CAP", 60 * 3 * 4 * 5)
    assert isinstance(data.load(f"imagefolder:{fill(tmp_path, count=30)}").val.inputs, Tensor)


def test_images_take_any_index(tmp_path: Path) -> None:
    files = [draw(tmp_path / f"{number}.png", seed=number) for number in range(20)]
    found = Images(files, image_size=None)
    assert len(found) == 20
    assert found.shape == (20, 3, 4, 5)
    for index in ([], [3], [19, 0, 0, 7], list(range(20))):
        batch = found[torch.tensor(index, dtype=torch.int64)]
        assert batch.shape == (len(index), 3, 4, 5)
        for row, place in zip(batch, index, strict=True):
            assert torch.equal(row, pixels(files[place]))


# --- what is refused ---


def damaged(path: Path, kind: str) -> Path:
    draw(path, size=(64, 64))
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "other": b"<html>404</html>", "empty": b""}[kind])
    return path


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "bmp", "webp"])
@pytest.mark.parametrize("kind", ["cut", "other", "empty"])
def test_a_damaged_image_is_named(tmp_path: Path, ending: str, kind: str) -> None:
    path = damaged(tmp_path / f"x.{ending}", kind)
    with pytest.raises(ValueError, match=re.escape(f"cannot read the image {path}: ")):
        read_image(path, image_size=None)


def test_an_error_of_a_decoder_library_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Image.Image) -> Image.Image:
        raise RuntimeError("Failed to decode frame 0")  # as the AVIF decoder does

    monkeypatch.setattr(images, "_to_rgb", fail)
    path = draw(tmp_path / "x.png")
    with pytest.raises(ValueError, match=re.escape(f"{path}: Failed to decode frame 0 (RuntimeError)")):
        read_image(path, image_size=None)


def test_damage_is_found_on_loading(tmp_path: Path) -> None:
    path = damaged(fill(tmp_path, count=5) / "b" / "3.png", "other")
    with pytest.raises(
        ValueError, match=re.escape(f"{path}: its content is in none of the formats that Pillow decodes")
    ):
        data.load(f"imagefolder:{tmp_path}")


def test_damage_is_found_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MEMORY_CAP", 0)
    dataset = data.load(f"imagefolder:{fill(tmp_path, count=30)}")
    for path in tmp_path.rglob("?7.png"):
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"cannot read the image .*7\.png: .*truncated"):
        list(data.batches(dataset, "train", batch_size=10))


def test_a_failed_read_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = draw(tmp_path / "x.png")
    original, failures = Path.read_bytes, [2]

    def unreliable(self: Path) -> bytes:
        failures[0] -= 1
        if failures[0] >= 0:
            raise OSError("stale file handle")
        return original(self)

    monkeypatch.setattr(Path, "read_bytes", unreliable)
    monkeypatch.setattr(images, "_READ_PAUSES", (0.0, 0.0))
    assert read_image(path, image_size=None).shape == (3, 4, 5)
    failures[0] = 3
    with pytest.raises(ValueError, match=re.escape(f"cannot read the image {path}: stale file handle (OSError)")):
        read_image(path, image_size=None)


def test_unequal_sizes_name_both_files(tmp_path: Path) -> None:
    odd = draw(fill(tmp_path, count=9) / "b" / "4.png", size=(6, 3))
    message = f"images differ in size: {odd} is 6x3, {tmp_path}/a/"
    with pytest.raises(ValueError, match=re.escape(message) + r"\d\.png is 5x4; give image_size= to resize and crop"):
        data.load(f"imagefolder:{tmp_path}")


def test_a_dangling_link_is_named(tmp_path: Path) -> None:
    link = fill(tmp_path, count=5) / "a" / "9.png"
    link.symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=re.escape(f"cannot read the image {link}: ")):
        data.load(f"imagefolder:{tmp_path}", image_size=8)
    (tmp_path / "root").symlink_to(tmp_path / "gone")
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"the link points to {tmp_path / 'gone'}, which does not exist")
    ):
        data.load(f"imagefolder:{tmp_path / 'root'}")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ([], "expected class folders with images in {root}, found nothing of the kind"),
        (["x.png"], "expected class folders with images in {root}, found 1 images directly in it"),
        (["a/", "b/x.png"], "{root} has class folders without images: a"),
        (["train/a/x.png", "train/b/", "val/a/x.png"], "{root}/train has class folders without images: b"),
        (
            ["train/a/x.png", "val/a/x.png", "val/b/x.png"],
            "{root}/val has classes that {root}/train lacks: b",
        ),
        (["train/a/x.png", "test/c/x.png"], "{root}/test has classes that {root}/train lacks: c"),
        (
            ["train/a/x.png", "valid/a/x.png"],
            "has a train folder but neither val nor test, only valid; to split one folder",
        ),
        (["train/a/x.png"], "neither val nor test; to split one folder, give imagefolder:{root}/train"),
        (["val/a/x.png", "test/a/x.png"], "{root} has test and val but no train folder"),
        (
            ["a/x.png", "b/x.png"],
            "cannot hold out 10% of class 'a': expected at least 2 samples, 1 left in the training",
        ),
        (
            ["a/x.png", "a/y.png", "a/z.png"],
            "expected at least 2 classes and a name for each, got 1 classes and 1 names",
        ),
        (
            [f"train/{n}/x.png" for n in "ab"] + [f"val/{n:02}/x.png" for n in range(12)],
            "lacks: 00, 01, 02, 03, 04, 05, 06",
        ),
        ([f"train/{n}/x.png" for n in "ab"] + [f"val/{n:02}/x.png" for n in range(12)], ", 09 and 2 more"),
    ],
)
def test_folders_are_refused(tmp_path: Path, folders: list[str], message: str) -> None:
    for name in folders:
        if name.endswith("/"):
            (tmp_path / name).mkdir(parents=True)
        else:
            draw(tmp_path / name)
    with pytest.raises(ValueError, match=re.escape(message.format(root=tmp_path))):
        data.load(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("val_9.JPEG\tn01\t0\n", "names images that are not in {root}/val/images: val_9.JPEG"),
        (
            "val_9.JPEG n01\n",
            "expected 'NAME<tab>CLASS' in line 5 of {root}/val/val_annotations.txt, got 'val_9.JPEG n01'",
        ),
    ],
)
def test_annotations_of_tiny_imagenet_are_checked(tmp_path: Path, line: str, message: str) -> None:
    annotations = tiny(tmp_path) / "val" / "val_annotations.txt"
    annotations.write_text(annotations.read_text() + line)
    with pytest.raises(ValueError, match=re.escape(message.format(root=tmp_path))):
        data.load(f"imagefolder:{tmp_path}")


def test_validation_images_of_tiny_imagenet_need_a_known_class(tmp_path: Path) -> None:
    annotations = tiny(tmp_path) / "val" / "val_annotations.txt"
    annotations.write_text(annotations.read_text().replace("val_3.JPEG", "val_4.JPEG"))
    with pytest.raises(ValueError, match=r"names images that are not in .*: val_4\.JPEG"):
        data.load(f"imagefolder:{tmp_path}")
    annotations.write_text(annotations.read_text().replace("val_4.JPEG\tn02", "val_3.JPEG\tn07"))
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/val has classes that {tmp_path}/train lacks: n07")):
        data.load(f"imagefolder:{tmp_path}")
    draw(tmp_path / "val" / "images" / "stray.JPEG", size=(8, 8))
    with pytest.raises(ValueError, match=r"val_annotations\.txt gives no class for: stray\.JPEG"):
        data.load(f"imagefolder:{tmp_path}")


def test_a_missing_folder_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    fill(tmp_path / "flowers")
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"there is no {tmp_path}/flower; did you mean {tmp_path}/flowers?")
    ):
        data.load(f"imagefolder:{tmp_path}/flower")
    with pytest.raises(
        ValueError, match="expected imagefolder:PATH, where PATH is a folder of class folders; got no path"
    ):
        data.load("imagefolder:")


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    path = draw(tmp_path / "x.png")
    with pytest.raises(ValueError, match=re.escape(f"expected a folder of class folders, got the file {path}")):
        data.load(f"imagefolder:{path}")


# --- fingerprint ---


def test_fingerprint_changes_with_names_sizes_and_splits_only(tmp_path: Path) -> None:
    fill(tmp_path / "one", count=10)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    first = data.load(f"imagefolder:{tmp_path}/one").fingerprint
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert data.load(f"imagefolder:{tmp_path}/two").fingerprint == first
    assert data.load(f"imagefolder:{tmp_path}/two", validation=0.3).fingerprint != first
    (tmp_path / "two" / "a" / "9.png").rename(tmp_path / "two" / "a" / "99.png")
    renamed = data.load(f"imagefolder:{tmp_path}/two").fingerprint
    assert renamed != first
    draw(tmp_path / "two" / "a" / "99.png", mode="L")
    assert data.load(f"imagefolder:{tmp_path}/two").fingerprint not in (first, renamed)
