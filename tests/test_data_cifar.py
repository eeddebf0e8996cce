"""CIFAR-10 and CIFAR-100. The contract:

- The binary form and the pickled one, as an archive, a folder with it, or its folder, give the same data set.
- Nothing in a pickle is run, whatever it asks for; another checksum is refused with both.
- Without a path, `$DOTKD_DATA` is looked in, then the archive is downloaded to it; without a network the message says
  which file to put where.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import pickle
import re
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dotkd import data
from dotkd.data import cifar10, cifar100
from dotkd.data.pickles import unpickle

SOURCES = {"cifar10": cifar10.CIFAR10, "cifar100": cifar100.CIFAR100}
TRAIN, TEST = 4, 2  # images a class


def samples(source: str, title: str) -> tuple[np.ndarray, list[int]]:
    """(N, 3072) bytes and labels, as the archives hold them: in no order of the classes."""
    classes = SOURCES[source].classes
    count = classes * (TRAIN if title == "train" else TEST)
    random = np.random.RandomState(len(title))
    return random.randint(0, 256, (count, 3072), dtype=np.uint8), random.permutation(count).__mod__(classes).tolist()


def names(source: str) -> list[str]:
    return [f"thing_{label}" for label in range(SOURCES[source].classes)]


def contents(source: str, form: Any) -> dict[str, bytes]:
    """File name -> what the official file of that name would hold."""
    made: dict[str, bytes] = {}
    for title, files in (("train", form.train), ("test", (form.test,))):
        images, labels = samples(source, title)
        for file, rows in zip(files, np.array_split(np.arange(len(labels)), len(files)), strict=True):
            if form.labels:
                made[file] = b"".join(
                    bytes([7] * (form.labels - 1) + [labels[row]]) + images[row].tobytes() for row in rows
                )
            else:
                batch = {b"data": images[rows], form.key.encode(): [labels[row] for row in rows], b"filenames": [b"x"]}
                made[file] = pickle.dumps(batch, protocol=2)
    if form.labels:
        made[form.names] = "\n".join(names(source)).encode() + b"\n\n"
    else:
        made[form.names] = pickle.dumps({form.names_key.encode(): [name.encode() for name in names(source)]}, 2)
    return made


def unpacked(folder: Path, source: str, form: Any) -> Path:
    root = folder / form.name
    root.mkdir(parents=True)
    for file, content in contents(source, form).items():
        (root / file).write_bytes(content)
    return root


def archive(folder: Path, source: str, form: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive of synthetic data, whose checksum takes the place of the published one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / form.archive
    with tarfile.open(path, "w:gz") as file:
        for name, content in {**contents(source, form), "readme.html": b"<html>"}.items():
            member = tarfile.TarInfo(f"{form.name}/{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    own = form._replace(md5=hashlib.md5(path.read_bytes()).hexdigest())
    known = SOURCES[source]
    module = {"cifar10": cifar10, "cifar100": cifar100}[source]
    changed = known._replace(forms=tuple(own if each is form else each for each in known.forms))
    monkeypatch.setattr(module, source.upper(), changed)
    return path


@pytest.mark.parametrize("source", list(SOURCES))
@pytest.mark.parametrize("number", [0, 1])
def test_every_form_gives_the_same_data(source: str, number: int, tmp_path: Path, monkeypatch: Any) -> None:
    form = SOURCES[source].forms[number]
    root = unpacked(tmp_path / "unpacked", source, form)
    found = [data.load(f"{source}:{place}", validation=0) for place in (root, root.parent)]
    packed = archive(tmp_path / "packed", source, form, monkeypatch)
    found += [data.load(f"{source}:{place}", validation=0) for place in (packed, packed.parent)]
    monkeypatch.setenv("DOTKD_DATA", str(packed.parent))
    found.append(data.load(source, validation=0))
    assert found[-1].name == source
    for dataset in found:
        assert dataset.fingerprint == found[0].fingerprint
        assert dataset.val is None
        assert dataset.input_shape == (3, 32, 32)
        assert dataset.class_names == tuple(names(source))
        assert dataset.mean.tolist() == pytest.approx(SOURCES[source].mean)
        assert dataset.std.tolist() == pytest.approx(SOURCES[source].std)
        for title, split in (("train", dataset.train), ("test", dataset.test)):
            images, labels = samples(source, title)
            assert split.targets.tolist() == labels
            assert isinstance(split.inputs, Tensor)
            assert np.array_equal(split.inputs.numpy(), images.reshape(-1, 3, 32, 32))


def test_both_forms_have_one_fingerprint(tmp_path: Path) -> None:
    roots = [unpacked(tmp_path / form.name, "cifar10", form) for form in SOURCES["cifar10"].forms]
    first, second = (data.load(f"cifar10:{root}", validation=0.25) for root in roots)
    assert first.fingerprint == second.fingerprint
    assert first.val is not None
    assert first.val.targets.bincount().tolist() == [1] * 10


def test_image_size_enlarges_batch_by_batch(tmp_path: Path) -> None:
    root = unpacked(tmp_path, "cifar10", SOURCES["cifar10"].forms[0])
    plain, larger = (data.load(f"cifar10:{root}", validation=0.25, image_size=size) for size in (None, 48))
    assert larger.input_shape == (3, 48, 48)
    assert larger.fingerprint != plain.fingerprint
    assert data.load(f"cifar10:{root}", validation=0.25, image_size=32).fingerprint == plain.fingerprint
    index = torch.tensor([3, 0])
    expected = torch.nn.functional.interpolate(
        plain.train.inputs[index].float(), (48, 48), mode="bilinear", align_corners=False
    )
    found = larger.train.inputs[index]
    assert found.dtype == torch.uint8
    assert (found.float() - expected).abs().max() <= 0.5 + 1e-3
    batch = next(data.batches(larger, "train", batch_size=4, augment="resized-crop-flip", strong=True))
    assert batch.inputs.shape == (4, 3, 48, 48)


# --- pickles ---


class Runs:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_code_is_refused_without_running_it(tmp_path: Path, protocol: int) -> None:
    form = SOURCES["cifar100"].forms[1]
    root = unpacked(tmp_path, "cifar100", form)
    mark = tmp_path / "mark"
    (root / "train").write_bytes(pickle.dumps({b"data": Runs(Path.touch, mark)}, protocol))
    with pytest.raises(ValueError, match=r"cannot read cifar-100-python/train: it asks for .*nothing was run"):
        data.load(f"cifar100:{root}")
    assert not mark.exists()


@pytest.mark.parametrize("function", [eval, print, getattr, np.frombuffer, np.load, __import__])
def test_no_function_but_the_stand_ins_can_be_named(function: Any) -> None:
    with pytest.raises(ValueError, match="it asks for"):
        unpickle(pickle.dumps({"a": Runs(function, "0")}, 2), "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot read x: Ran out of input"),
        (pickle.dumps({"a": 1}, 2)[:-4], "cannot read x: "),
        (pickle.dumps([1], 2), "cannot read x: expected a dictionary, got list"),
        (pickle.dumps({"a": np.array([None])}, 2), "cannot read x: expected a plain array of numbers in C order"),
        (pickle.dumps({"a": np.ones((2, 3), np.uint8, order="F")}, 2), "expected a plain array of numbers in C order"),
        (pickle.dumps({"a": np.ones(12345, np.uint8)}, 2).replace(b"M90", b"M91"), "expected as many bytes as u1 of"),
    ],
)
def test_damaged_pickles_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        unpickle(content, "x")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({}, "expected data to be an array of uint8 and of shape (N, 3072)"),
        ({b"data": np.ones((2, 3072), np.float32)}, "expected data to be an array of uint8 and of shape (N, 3072)"),
        ({b"data": np.ones((2, 3071), np.uint8)}, "expected data to be an array of uint8 and of shape (N, 3072)"),
        ({b"data": np.ones((2, 3072), np.uint8)}, "expected a list fine_labels of 2 labels"),
        ({b"data": np.ones((2, 3072), np.uint8), b"fine_labels": [1]}, "expected a list fine_labels of 2 labels"),
        ({b"data": np.ones((2, 3072), np.uint8), b"fine_labels": [1, "a"]}, "expected whole numbers in fine_labels"),
    ],
)
def test_pickles_with_other_content_are_refused(tmp_path: Path, batch: Any, message: str) -> None:
    root = unpacked(tmp_path, "cifar100", SOURCES["cifar100"].forms[1])
    (root / "train").write_bytes(pickle.dumps(batch, 2))
    with pytest.raises(ValueError, match=re.escape(f"cifar-100-python/train: {message}")):
        data.load(f"cifar100:{root}")


# --- files ---


def test_another_checksum_is_refused_with_both(tmp_path: Path, monkeypatch: Any) -> None:
    form = SOURCES["cifar100"].forms[0]
    path = archive(tmp_path, "cifar100", form, monkeypatch)
    expected = hashlib.md5(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes() + b" ")
    found = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"expected .*{form.archive} to have the md5 sum {expected}, got {found}"):
        data.load(f"cifar100:{tmp_path}")
    with pytest.raises(ValueError, match=rf"expected a file with the md5 sum {expected} .*got {found} for {path}"):
        data.load(f"cifar100:{path}")


def test_the_published_checksums() -> None:
    # As the site of the data gives them; they stand in many a public loader.
    known = {form.archive: form.md5 for source in SOURCES.values() for form in source.forms}
    assert known == {
        "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
        "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
        "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
    }


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train.bin", b"", "cifar-100-binary/train.bin: expected a multiple of 3074 bytes, got 0"),
        ("train.bin", b"abc", "cifar-100-binary/train.bin: expected a multiple of 3074 bytes, got 3"),
        ("fine_label_names.txt", b"cat\n", "cifar-100-binary/fine_label_names.txt: expected 100 class names, got 1"),
        ("test.bin", bytes([0, 100]) + bytes(3072), "expected labels in 0..99, got 100 at position 0 of test"),
    ],
)
def test_damaged_binary_files_are_refused(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    root = unpacked(tmp_path, "cifar100", SOURCES["cifar100"].forms[0])
    (root / file).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        data.load(f"cifar100:{root}")


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    root = unpacked(tmp_path, "cifar10", SOURCES["cifar10"].forms[0])
    (root / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"cannot read {root}/data_batch_3.bin: No such file")):
        data.load(f"cifar10:{root}")
    with pytest.raises(FileNotFoundError, match=r"cifar100:PATH: expected cifar-100-binary.tar.gz or .* holds none of"):
        data.load(f"cifar100:{tmp_path}")


# --- without a path ---


def test_a_missing_archive_is_downloaded_and_checked(tmp_path: Path, monkeypatch: Any) -> None:
    path = archive(tmp_path / "served", "cifar10", SOURCES["cifar10"].forms[0], monkeypatch)
    asked: list[str] = []

    def served(url: str, timeout: float) -> Any:
        asked.append(url)
        return path.open("rb")

    monkeypatch.setattr(urllib.request, "urlopen", served)
    monkeypatch.setenv("DOTKD_DATA", str(tmp_path / "home"))
    first = data.load("cifar10")
    assert data.load("cifar10").fingerprint == first.fingerprint
    assert asked == ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"]
    assert [entry.name for entry in (tmp_path / "home").iterdir()] == ["cifar-10-binary.tar.gz"]


def test_a_download_with_another_checksum_is_not_kept(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"<html>moved</html>"))
    monkeypatch.setenv("DOTKD_DATA", str(tmp_path))
    found = hashlib.md5(b"<html>moved</html>").hexdigest()
    message = f"cifar-100-binary.tar.gz to have the md5 sum 03b5dce01913d631647c71ecec9e9cb8, got {found}: nothing was"
    with pytest.raises(ValueError, match=re.escape(message)):
        data.load("cifar100")
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_the_message_says_which_file_to_put_where(tmp_path: Path, monkeypatch: Any) -> None:
    failures: list[Exception] = [urllib.error.URLError("no route to host"), http.client.IncompleteRead(b"", 9)]

    def failing(url: str, timeout: float) -> Any:
        raise failures[0]

    monkeypatch.setattr(urllib.request, "urlopen", failing)
    monkeypatch.delenv("DOTKD_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".cache" / "dotkd" / "cifar-100-binary.tar.gz"
    message = (
        f"cifar100: {path} is not there and https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz cannot be had "
        "(<urlopen error no route to host>); put that file there, md5 sum 03b5dce01913d631647c71ecec9e9cb8, "
        "or give cifar100:PATH"
    )
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        data.load("cifar100")
    assert list(path.parent.iterdir()) == []
    del failures[0]  # the connection breaks off
    with pytest.raises(FileNotFoundError, match=re.escape("cannot be had (IncompleteRead(0 bytes read, 9 more ex")):
        data.load("cifar100")
    (tmp_path / "file").touch()
    monkeypatch.setenv("DOTKD_DATA", str(tmp_path / "file" / "in"))
    with pytest.raises(FileNotFoundError, match="Not a directory"):
        data.load("cifar100")
