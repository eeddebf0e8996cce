"""Images in the form of Hugging Face's `datasets`: from its hub, or from what lies on disk.

    hf:NAME        a data set of the hub, such as hf:uoft-cs/cifar100, where the hub can be reached or has been
    hf:FOLDER      Parquet files (train-*.parquet, test-*.parquet, ...), a copy of a hub's repository, or what
                   `save_to_disk` wrote
    hf:FILE        one Parquet file, from which test and validation are held out

after which options may follow, as in `hf:NAME?label=coarse_label&revision=v1`: image and label, the columns; train,
val and test, the splits by their names there; config and revision, of the hub. Otherwise the image column is the one of
type Image, or else of bytes with a usual name; the label column the one of type ClassLabel, or of a usual name. Splits
are called train, validation and test there; without test, validation is the test split, and one without labels is left
out.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dotkd.data import paths
from dotkd.data.arguments import hint
from dotkd.data.dataset import Dataset, Split, assemble, complete
from dotkd.data.images import open_images

_datasets: Any = importlib.import_module("datasets")
_compute: Any = importlib.import_module("pyarrow.compute")

_OPTIONS = ("image", "label", "train", "val", "test", "config", "revision")
_IMAGES = ("image", "img", "pixels")
_LABELS = ("label", "labels", "fine_label")
_SPLITS = {"train": ("train",), "val": ("validation", "val", "valid", "dev"), "test": ("test",)}


class Row:
    """The encoded image in one row of a column; named by split and row number, from 0."""

    __slots__ = ("_column", "_position", "_title")

    def __init__(self, column: Any, position: int, title: str) -> None:
        self._column, self._position, self._title = column, position, title

    def __str__(self) -> str:
        return f"in row {self._position} of {self._title}"

    def read_bytes(self) -> bytes:
        """The encoded image. Raises OSError where the row has none."""
        value = self._column[self._position].as_py()
        if isinstance(value, dict):
            if value.get("bytes") is None and value.get("path"):
                return Path(value["path"]).read_bytes()
            value = value.get("bytes")
        if value is None:
            raise OSError("the row is empty")
        return value


def load(argument: str, *, validation: float, image_size: int | None) -> Dataset:
    """inputs uint8 (N, 3, H, W), decoded now where they fit in memory, else on demand.

    Raises FileNotFoundError (no such path, or a hub that cannot be reached), ValueError (unknown options, columns that
    are not there or could be several, images that cannot be read or differ in size while `image_size` is None).
    """
    name, options = _parse(argument)
    tables = _load_splits(name, options)
    features: Mapping[str, Any] = tables["train"].features.to_dict()
    image = _image_column(features, options.get("image"), name)
    label = _label_column(features, options.get("label"), name)
    values = {title: _column(table, label, name).to_numpy() for title, table in tables.items()}
    for title in [title for title, found in values.items() if title != "train" and _unlabelled(found)]:
        del values[title], tables[title]
    if "test" not in tables and "val" in tables:
        tables["test"], values["test"] = tables.pop("val"), values.pop("val")
    classes, targets = _targets(values, features[label], f"hf:{name}: column {label}")
    parts = complete(
        {title: torch.as_tensor(found) for title, found in targets.items()}, validation, class_names=classes
    )
    rows = {title: _rows(_column(table, image, name), title) for title, table in tables.items()}
    where = f"hf:{name}: column {image}"
    sizes = {title: _sizes(_column(table, image, name), where) for title, table in tables.items()}
    files: dict[str, list[Row]] = {}
    labels: dict[str, npt.NDArray[np.int64]] = {}
    digest = hashlib.sha256(f"{image_size}\n".encode())
    for title in (title for title in ("train", "val", "test") if title in parts):
        source, index = parts[title]
        files[title] = [rows[source][position] for position in index.tolist()]
        labels[title] = targets[source][index.numpy()]
        # By sizes: reading all images takes too long.
        digest.update(title.encode() + labels[title].tobytes() + sizes[source][index.numpy()].tobytes())
    inputs = open_images(files, image_size=image_size)
    return assemble(
        f"hf:{argument}",
        {title: Split(inputs[title], torch.as_tensor(labels[title])) for title in files},
        class_names=classes,
        fingerprint=digest.hexdigest(),
    )


def _parse(argument: str) -> tuple[str, dict[str, str]]:
    name, _, query = argument.partition("?")
    if not name:
        raise ValueError("expected hf:NAME or hf:PATH, a data set of the hub or Parquet files; got neither")
    options: dict[str, str] = {}
    for key, value in urllib.parse.parse_qsl(query, keep_blank_values=True):
        if key not in _OPTIONS:
            listed = ", ".join(_OPTIONS)
            raise ValueError(f"hf:{name}: unknown option '{key}', expected {listed}{hint(key, _OPTIONS)}")
        if key in options:
            raise ValueError(f"hf:{name}: expected the option {key} once, got '{options[key]}' and '{value}'")
        options[key] = value
    return name, options


def _load_splits(name: str, options: Mapping[str, str]) -> dict[str, Any]:
    """Ours -> the table of that split, for those that are there; "train" is."""
    path = Path(os.path.expanduser(name))
    if name.startswith(("/", "./", "../", "~")):  # no name of the hub
        paths.existing(name, spec="hf:PATH", wanted="a Parquet file, or a folder with some")
    saved = any((path / file).is_file() for file in ("dataset_dict.json", "state.json"))
    single = path.is_file() or saved
    for key in ("config", "revision"):
        if key in options and (single or (path.is_dir() and key == "revision")):
            raise ValueError(f"hf:{name}: the option {key} is for data sets of the hub, got '{options[key]}'")
    hub = {"revision": options["revision"]} if "revision" in options else {}
    try:
        if path.is_file():
            found = _datasets.load_dataset("parquet", data_files=str(path))
        elif saved:
            found = _datasets.load_from_disk(str(path))
            found = {"train": found} if isinstance(found, _datasets.Dataset) else found
        elif path.is_dir():
            found = _datasets.load_dataset(str(path), options.get("config"))
        else:
            found = _datasets.load_dataset(name, options.get("config"), **hub)
    except (OSError, ValueError, RuntimeError, _datasets.exceptions.DatasetsError) as error:
        if path.exists():
            raise ValueError(f"hf:{name}: cannot read {path}: {error}") from error
        raise FileNotFoundError(
            f"hf:{name}: there is no such path, and the hub did not give a data set of that name ({error}); "
            "without a network, download its Parquet files elsewhere and give hf:FOLDER"
        ) from error
    tables: dict[str, Any] = {}
    for title, usual in _SPLITS.items():
        names = (options[title],) if title in options else usual
        present = [split for split in names if split in found]
        if present:
            tables[title] = found[present[0]]
        elif title in options or title == "train":
            raise ValueError(
                f"hf:{name}: expected a split {names[0]}, found {', '.join(found)}; name it with ?{title}="
            )
    return tables


def _image_column(features: Mapping[str, Any], wanted: str | None, name: str) -> str:
    candidates = [column for column, feature in features.items() if _type(feature) == "Image"]
    if not candidates:
        candidates = [column for column in _IMAGES if _encoded(features.get(column))]
    return _chosen("image", candidates, _IMAGES, features, wanted, name)


def _label_column(features: Mapping[str, Any], wanted: str | None, name: str) -> str:
    candidates = [column for column, feature in features.items() if _type(feature) == "ClassLabel"]
    if not candidates:
        candidates = [column for column in _LABELS if _type(features.get(column)) == "Value"]
    return _chosen("label", candidates, _LABELS, features, wanted, name)


def _chosen(
    kind: str,
    candidates: Sequence[str],
    usual: Sequence[str],
    features: Mapping[str, Any],
    wanted: str | None,
    name: str,
) -> str:
    if wanted is not None:
        if wanted in features:
            return wanted
        listed = ", ".join(features)
        raise ValueError(f"hf:{name}: expected {kind}= to be one of {listed}, got '{wanted}'{hint(wanted, features)}")
    if len(candidates) > 1:
        candidates = [column for column in candidates if column in usual]
    if len(candidates) == 1:
        return candidates[0]
    raise ValueError(
        f"hf:{name}: cannot tell the {kind} column among {', '.join(features)}; name it, as in hf:{name}?{kind}=COLUMN"
    )


def _type(feature: Any) -> str:
    return feature.get("_type", "") if isinstance(feature, Mapping) else ""


def _encoded(feature: Any) -> bool:
    """Whether a column without a type of its own holds bytes, as Parquet files that others wrote do."""
    if _type(feature) == "Value":
        return feature.get("dtype") in ("binary", "large_binary")
    return isinstance(feature, Mapping) and "bytes" in feature


def _column(table: Any, column: str, name: str) -> Any:
    if column not in table.column_names:
        raise ValueError(
            f"hf:{name}: expected the column {column} in every split, found {', '.join(table.column_names)}"
        )
    return table.data.column(column) if table._indices is None else table.flatten_indices().data.column(column)


def _rows(column: Any, title: str) -> list[Row]:
    return [Row(column, position, title) for position in range(len(column))]


def _sizes(column: Any, where: str) -> npt.NDArray[np.int64]:
    """(N,) bytes of each image; -1 where the column has only a path. Raises ValueError for columns of anything else."""
    kind = str(column.type)
    try:
        encoded = _compute.struct_field(column, "bytes") if kind.startswith("struct") else column
        if str(encoded.type) == "null":  # paths alone
            return np.full(len(column), -1, dtype=np.int64)
        if str(encoded.type) not in ("binary", "large_binary"):
            raise ValueError(f"got {encoded.type}")
    except ValueError as error:  # pyarrow's own is one
        raise ValueError(f"{where}: expected encoded images, binary or struct<bytes, path>, got {kind}") from error
    return _compute.fill_null(_compute.binary_length(encoded), -1).to_numpy().astype(np.int64)


def _unlabelled(values: npt.NDArray[Any]) -> bool:
    return values.dtype.kind in "if" and bool((np.isnan(values) | (values < 0)).all())


def _targets(
    values: Mapping[str, npt.NDArray[Any]], feature: Any, where: str
) -> tuple[list[str], dict[str, npt.NDArray[np.int64]]]:
    """Class names, and int64 labels of each split: those of a ClassLabel, else by the sorted values of train."""
    for title, found in values.items():
        other = next((value for value in found if not isinstance(value, str)), "") if found.dtype.kind == "O" else ""
        if found.dtype.kind not in "iuO" or not isinstance(other, str):
            got = found.dtype if found.dtype.kind != "O" else f"{other!r} ({type(other).__name__})"
            raise ValueError(f"{where}: expected whole numbers or text in {title}, got {got}")
    names = feature.get("names") if _type(feature) == "ClassLabel" else None
    if names:
        return list(names), {title: found.astype(np.int64) for title, found in values.items()}
    classes = np.unique(values["train"])
    targets: dict[str, npt.NDArray[np.int64]] = {}
    for title, found in values.items():
        unknown = sorted({str(value) for value in np.setdiff1d(found, classes)})
        if unknown:
            raise ValueError(f"{where}: {title} has classes that train lacks: {', '.join(unknown[:10])}")
        targets[title] = np.searchsorted(classes, found).astype(np.int64)
    return [str(value) for value in classes], targets
