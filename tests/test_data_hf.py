"""Hugging Face's `datasets`. The contract:

- A Parquet file, a folder of them and what `save_to_disk` wrote give the same images, labels and splits.
- Columns are found by type, else by usual names; what could be several is refused with all columns.
- An image that cannot be read is named by split and row; without a network, the message says what to supply by hand.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dotkd import data
from dotkd.data import images

datasets: Any = pytest.importorskip("datasets")
pyarrow: Any = pytest.importorskip("pyarrow")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(seed: int, size: tuple[int, int] = (5, 4)) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def encoded(seed: int, size: tuple[int, int] = (5, 4)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(seed, size)).save(file, "PNG")
    return file.getvalue()


def table(count: int, *, seed: int = 0, image: str = "img", **labels: list[str]) -> Any:
    """`count` images and, for each of `labels`, a ClassLabel column of those names, labels in turn."""
    columns: dict[str, Any] = {image: [{"bytes": encoded(seed + row), "path": None} for row in range(count)]}
    features: dict[str, Any] = {image: datasets.Image()}
    for name, classes in labels.items():
        columns[name] = [row % len(classes) for row in range(count)]
        features[name] = datasets.ClassLabel(names=classes)
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def write(made: Any, path: Path) -> Path:
    """Through pyarrow, without the progress bars of `to_parquet`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(made.data.table, path)
    return path


def plain(path: Path, columns: dict[str, Any]) -> Path:
    """A Parquet file that knows nothing of `datasets`."""
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def folder(root: Path) -> Path:
    write(table(10, label=["cat", "dog"]), root / "data" / "train-00000-of-00001.parquet")
    write(table(6, seed=100, label=["cat", "dog"]), root / "data" / "test-00000-of-00001.parquet")
    return root


def shown(inputs: Any, position: int) -> np.ndarray:
    return inputs[torch.tensor([position])][0].permute(1, 2, 0).numpy()


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    dataset = data.load(f"hf:{folder(tmp_path / 'set')}", validation=0)
    assert dataset.val is None
    assert dataset.class_names == ("cat", "dog")
    assert dataset.input_shape == (3, 4, 5)
    assert dataset.train.targets.tolist() == [0, 1] * 5
    assert dataset.test.targets.tolist() == [0, 1] * 3
    assert np.array_equal(shown(dataset.train.inputs, 3), picture(3))
    assert np.array_equal(shown(dataset.test.inputs, 5), picture(105))
    assert data.load(f"hf:{tmp_path / 'set'}", validation=0, image_size=8).input_shape == (3, 8, 8)


def test_what_was_saved_to_disk_is_the_same(tmp_path: Path) -> None:
    made = {"train": table(10, label=["cat", "dog"]), "test": table(6, seed=100, label=["cat", "dog"])}
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "saved"))
    ours, theirs = (data.load(f"hf:{path}") for path in (folder(tmp_path / "set"), tmp_path / "saved"))
    assert ours.fingerprint == theirs.fingerprint
    assert torch.equal(ours.train.inputs[torch.arange(8)], theirs.train.inputs[torch.arange(8)])


def test_one_split_saved_to_disk_is_split_in_three(tmp_path: Path) -> None:
    table(40, label=["cat", "dog"]).save_to_disk(str(tmp_path / "saved"))
    path = write(table(40, label=["cat", "dog"]), tmp_path / "all.parquet")
    ours, theirs = (data.load(f"hf:{place}", validation=0.25) for place in (tmp_path / "saved", path))
    assert ours.fingerprint == theirs.fingerprint


def test_images_may_be_given_by_their_paths(tmp_path: Path) -> None:
    for row in range(8):
        (tmp_path / f"{row}.png").write_bytes(encoded(row))
    rows = [{"bytes": None, "path": str(tmp_path / f"{row}.png")} for row in range(8)]
    plain(tmp_path / "train.parquet", {"image": rows, "label": [0, 1] * 4})
    dataset = data.load(f"hf:{tmp_path / 'train.parquet'}", validation=0.25)
    assert dataset.val is not None
    held = [row.numpy().tobytes() for split in (dataset.train, dataset.val, dataset.test) for row in split.inputs]
    assert sorted(held) == sorted(picture(row).transpose(2, 0, 1).tobytes() for row in range(8))


def test_one_file_is_split_in_three(tmp_path: Path) -> None:
    path = write(table(40, label=["cat", "dog"]), tmp_path / "all.parquet")
    dataset = data.load(f"hf:{path}", validation=0.25)
    assert dataset.val is not None
    assert [len(split.targets) for split in (dataset.train, dataset.val, dataset.test)] == [20, 10, 10]
    rows = [row.numpy().tobytes() for split in (dataset.train, dataset.val, dataset.test) for row in split.inputs]
    assert set(rows) == {picture(seed).transpose(2, 0, 1).tobytes() for seed in range(40)}
    assert data.load(f"hf:{path}", validation=0.1).fingerprint != dataset.fingerprint
    with pytest.raises(ValueError, match="expected `validation` above 0"):
        data.load(f"hf:{path}", validation=0)


def test_validation_is_the_test_split_where_there_is_no_other(tmp_path: Path) -> None:
    for title, count in (("train", 10), ("validation", 4)):
        write(table(count, label=["cat", "dog"]), tmp_path / "set" / f"{title}-00000-of-00001.parquet")
    unlabelled = datasets.Dataset.from_dict(
        {"img": [{"bytes": encoded(0), "path": None}] * 3, "label": [-1] * 3},
        features=datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}),
    )
    write(unlabelled, tmp_path / "set" / "test-00000-of-00001.parquet")
    dataset = data.load(f"hf:{tmp_path / 'set'}", validation=0)
    assert dataset.val is None
    assert len(dataset.test.targets) == 4


def test_decoding_on_demand_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = f"hf:{folder(tmp_path / 'set')}"
    kept = data.load(spec)
    monkeypatch.setattr(images, "MEMORY_CAP", 0)
    lazy = data.load(spec)
    assert isinstance(kept.train.inputs, Tensor)
    assert isinstance(lazy.train.inputs, images.Images)
    assert torch.equal(lazy.train.inputs[torch.arange(8)], kept.train.inputs)
    batch = next(data.batches(lazy, "train", batch_size=4, augment="resized-crop-flip"))
    assert batch.inputs.shape == (4, 3, 4, 5)


# --- columns ---


def test_the_usual_one_of_several_label_columns(tmp_path: Path) -> None:
    path = write(table(40, coarse_label=["pet", "wild"], fine_label=["cat", "dog"]), tmp_path / "a.parquet")
    assert data.load(f"hf:{path}").class_names == ("cat", "dog")
    assert data.load(f"hf:{path}?label=coarse_label").class_names == ("pet", "wild")


@pytest.mark.parametrize("labels", [[3, 7] * 10, ["cat", "dog"] * 10])
def test_plain_parquet_with_usual_names(tmp_path: Path, labels: list[object]) -> None:
    path = plain(
        tmp_path / "a.parquet", {"image": [encoded(row) for row in range(20)], "label": labels, "id": [0] * 20}
    )
    dataset = data.load(f"hf:{path}")
    assert dataset.class_names == tuple(str(value) for value in labels[:2])
    assert np.array_equal(shown(dataset.train.inputs, 0), picture(int(dataset.train.targets[0] == 1)))
    assert dataset.train.targets.bincount().tolist() == [8, 8]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "cannot tell the label column among img, one, two; name it, as in hf:{path}?label=COLUMN"),
        ("?label=tow", "expected label= to be one of img, one, two, got 'tow'; did you mean 'two'?"),
        ("?image=x", "expected image= to be one of img, one, two, got 'x'"),
        ("?labels=one", "unknown option 'labels', expected image, label, train, val, test, config, revision; did you"),
        ("?train=all", "expected a split all, found train; name it with ?train="),
        ("?test=held", "expected a split held, found train; name it with ?test="),
    ],
)
def test_what_is_not_clear_is_refused(tmp_path: Path, query: str, message: str) -> None:
    path = write(table(20, one=["a", "b"], two=["c", "d"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=re.escape(message.format(path=path))):
        data.load(f"hf:{path}{query}")
    assert data.load(f"hf:{path}?label=two&image=img").class_names == ("c", "d")


@pytest.mark.parametrize(
    ("columns", "query", "message"),
    [
        ({"label": ["a", None] * 10}, "", "column label: expected whole numbers or text in train, got None (NoneType)"),
        ({"label": [b"a", b"b"] * 10}, "", "expected whole numbers or text in train, got b'a' (bytes)"),
        ({"label": [0.5, 1.5] * 10}, "", "column label: expected whole numbers or text in train, got float64"),
        ({"label": [0, 1] * 10}, "?image=label", "column label: expected encoded images, binary or struct<bytes, path"),
        ({"x": [{"a": 1}] * 20, "label": [0, 1] * 10}, "?image=x", "<bytes, path>, got struct<a: int64>"),
        ({"label": [0, 1] * 10}, "?revision=v1", "the option revision is for data sets of the hub, got 'v1'"),
        ({"label": [0, 1] * 10}, "?config=big", "the option config is for data sets of the hub, got 'big'"),
        ({"label": [0, 1] * 10}, "?label=label&label=x", "expected the option label once, got 'label' and 'x'"),
    ],
)
def test_columns_and_options_that_do_not_fit_are_refused(
    tmp_path: Path, columns: dict[str, Any], query: str, message: str
) -> None:
    path = plain(tmp_path / "a.parquet", {"image": [encoded(row) for row in range(20)], **columns})
    with pytest.raises(ValueError, match=re.escape(message)):
        data.load(f"hf:{path}{query}")


def test_several_image_columns_are_refused(tmp_path: Path) -> None:
    path = write(
        table(20, image="left", label=["a", "b"]).add_column(
            "right", [{"bytes": encoded(0), "path": None}] * 20, feature=datasets.Image()
        ),
        tmp_path / "a.parquet",
    )
    with pytest.raises(ValueError, match=r"cannot tell the image column among left, label, right; name it"):
        data.load(f"hf:{path}")
    assert data.load(f"hf:{path}?image=left").num_classes == 2


def test_labels_that_train_lacks_are_refused(tmp_path: Path) -> None:
    for title, labels in (("train", ["a", "b"]), ("test", ["a", "c"])):
        plain(tmp_path / f"{title}-0.parquet", {"image": [encoded(row) for row in range(8)], "label": labels * 4})
    with pytest.raises(ValueError, match="column label: test has classes that train lacks: c"):
        data.load(f"hf:{tmp_path}")


# --- what cannot be read ---


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"<html>", "its content is in none of the formats"), (None, "the row is empty"), (encoded(1)[:50], "")],
)
def test_a_damaged_image_is_named_by_its_row(tmp_path: Path, content: bytes | None, message: str) -> None:
    rows = [encoded(row) for row in range(20)]
    path = plain(tmp_path / "a.parquet", {"image": [*rows[:7], content, *rows[8:]], "label": [0, 1] * 10})
    with pytest.raises(ValueError, match=f"cannot read the image in row 7 of train: {message}"):
        data.load(f"hf:{path}")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=re.escape(f"hf:{tmp_path}/a.parquet: cannot read {tmp_path}/a.parquet: ")):
        data.load(f"hf:{tmp_path}/a.parquet")


def test_without_a_network_the_message_says_what_to_supply(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, *_: object, **options: object) -> None:
        assert options == {"revision": "v1"}
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = (
        "hf:some/thing: there is no such path, and the hub did not give a data set of that name (Couldn't reach "
        "'some/thing' on the Hub); without a network, download its Parquet files elsewhere and give hf:FOLDER"
    )
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        data.load("hf:some/thing?revision=v1")


def test_a_path_that_is_not_there_is_answered_with_the_nearest(tmp_path: Path) -> None:
    write(table(4, label=["a", "b"]), tmp_path / "train.parquet")
    message = f"there is no {tmp_path / 'trian.parquet'}; did you mean {tmp_path / 'train.parquet'}?"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        data.load(f"hf:{tmp_path / 'trian.parquet'}")


def test_no_name_is_refused() -> None:
    with pytest.raises(ValueError, match="expected hf:NAME or hf:PATH, a data set of the hub or Parquet files; got"):
        data.load("hf:")
