"""Records on disk. The contract:

- What is written is read back, to the rounding of float16, whatever was written before or beside it; the two .npy files
  are read by numpy alone; what is not filled takes no room on the disk.
- The checksum is the sum of its docstring. A byte changed anywhere in a record or its mark is noticed, so is a record
  of zeros with a mark, and one in another's place; a damaged header is refused, naming the file.
- Processes that create and write one cache at once leave it whole, each record one of those that were written.
- A cache of something else is refused, naming all that differs; what does not fit, before anything is written; a full
  disk names the file.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dotkd.cache.checksum import Checksum
from dotkd.cache.layout import CacheError, content_hash
from dotkd.cache.records import SampledRecords, WholeRecords, records_of
from dotkd.cache.sampling import uniform
from dotkd.cache.store import Store, open_or_create

SAMPLES, VIEWS, CLASSES = 40, 3, 5
KINDS = {"whole": WholeRecords(CLASSES), "sampled": SampledRecords(CLASSES, 2, 4.0)}
IDENTITY = {"teacher_weights": "a" * 64, "augment": "crop-flip"}


def made(folder: Path, kind: str = "whole", **changes: object) -> Store:
    given = {"records": KINDS[kind], "samples": SAMPLES, "views": VIEWS, "identity": IDENTITY, **changes}
    return open_or_create(folder, **given)  # type: ignore[arg-type]


def logits_of(index: Tensor, view: Tensor) -> Tensor:
    """What the test's teacher says: another thing of each view."""
    return torch.sin(0.1 + index.unsqueeze(1) * 7.0 + view.unsqueeze(1) * 3.0 + torch.arange(CLASSES)) * 5


def write(store: Store, index: Tensor, view: Tensor) -> None:
    store.write(index, view, store.records.encode(logits_of(index, view), uniform(index, view)))


def everywhere() -> tuple[Tensor, Tensor]:
    view, index = torch.meshgrid(torch.arange(VIEWS), torch.arange(SAMPLES), indexing="ij")
    return index.flatten(), view.flatten()


# --- reading and writing


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read(tmp_path: Path, kind: str) -> None:
    store = made(tmp_path / "cache", kind)
    source = torch.Generator().manual_seed(0)
    known: dict[tuple[int, int], Tensor] = {}
    for _ in range(12):
        index = torch.randperm(SAMPLES, generator=source)[:9]
        view = torch.randint(VIEWS, (9,), generator=source)
        found = store.read(index, view)
        held = torch.tensor([pair in known for pair in zip(index.tolist(), view.tolist(), strict=True)])
        assert torch.equal(found.whole, held)
        assert not found.corrupt.any()
        write(store, index, view)
        parts = store.records.encode(logits_of(index, view), uniform(index, view))
        for row, pair in enumerate(zip(index.tolist(), view.tolist(), strict=True)):
            known[pair] = store.records.decode(*(part[row : row + 1] for part in parts))[0]
    again = Store(tmp_path / "cache")
    assert again.count() == store.count() == len(known)
    index, view = (torch.tensor(column) for column in zip(*known, strict=True))
    found = again.read(index, view)
    assert found.whole.all()
    assert torch.equal(again.records.decode(*found.parts), torch.stack(list(known.values())))
    if kind == "whole":
        rounding = (again.records.decode(*found.parts) - logits_of(index, view)).abs()
        assert float((rounding / logits_of(index, view).abs()).max()) <= 2**-11


def test_numpy_alone_reads_it(tmp_path: Path) -> None:
    store = made(tmp_path / "cache")
    write(store, torch.tensor([3, 7]), torch.tensor([2, 0]))
    records = np.load(tmp_path / "cache" / "records.npy", mmap_mode="r")
    filled = np.load(tmp_path / "cache" / "filled.npy")
    assert np.argwhere(filled).tolist() == [[0, 7], [2, 3]]
    assert records["logits"][2, 3].tolist() == logits_of(torch.tensor([3]), torch.tensor([2]))[0].half().tolist()


def test_what_is_not_filled_takes_no_room(tmp_path: Path) -> None:
    store = made(tmp_path / "cache", records=WholeRecords(100), samples=100_000, views=162)
    index = torch.arange(10) * 9_000
    store.write(index, index % 162, (torch.zeros(10, 100).half(),))
    status = (tmp_path / "cache" / "records.npy").stat()
    assert status.st_size > 3e9
    assert status.st_blocks * 512 < 1e6


@pytest.mark.parametrize(
    ("classes", "kind", "bytes_"),
    [(256, "u1", 3), (257, "u2", 4), (65_536, "u2", 4), (65_537, "u4", 6)],
)
def test_classes_are_numbered_in_the_fewest_bytes(tmp_path: Path, classes: int, kind: str, bytes_: int) -> None:
    records = records_of(classes, 4, 1.0)
    assert records.fields[1][1] == f"<{kind}"
    store = made(tmp_path / "cache", records=records)
    assert store.record_bytes == -(-4 * bytes_ // 8) * 8 + 8
    index = torch.tensor([5])
    logits = torch.zeros(1, classes)
    logits[0, -2:] = torch.tensor([20.0, 40.0])
    store.write(index, index * 0, records.encode(logits, torch.tensor([0.5])))
    found = store.read(index, index * 0)
    assert records.decode(*found.parts)[0].argmax() == classes - 1


# --- damage


def test_the_checksum_is_the_sum_of_its_docstring() -> None:
    random = np.random.RandomState(0)
    payload = random.randint(0, 256, (4, 24)).astype(np.uint8)
    places = np.array([0, 1, 77, 10**10])
    factors = [int(word) | 1 for word in np.random.SeedSequence(20230708436).generate_state(7, np.uint64)]
    for row, place, found in zip(payload, places.tolist(), Checksum(24)(payload, places), strict=True):
        words = [int.from_bytes(row[start : start + 4].tobytes(), "little") for start in range(0, 24, 4)]
        total = factors[0] * (place + 1) + sum(a * word for a, word in zip(factors[1:], words, strict=True))
        assert int(found) == total % 2**64


def flip(path: Path, place: int, change: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ change]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_byte_changed_anywhere_is_noticed(tmp_path: Path, kind: str) -> None:
    store = made(tmp_path / "cache", kind)
    write(store, *everywhere())
    index, view = torch.tensor([17]), torch.tensor([1])
    path = tmp_path / "cache" / "records.npy"
    begin = path.stat().st_size - (VIEWS * SAMPLES - SAMPLES - 17) * store.record_bytes
    for place in range(begin, begin + store.record_bytes):
        for change in (1, 128, 255):
            flip(path, place, change)
            found = store.read(index, view)
            assert found.corrupt.all()
            assert not found.whole.any()
            damaged = [(i.tolist(), v.tolist()) for i, v, _ in store.damaged()]
            assert damaged == [([17], [1])]
            flip(path, place, change)
    assert [count for _, _, count in store.damaged()] == [SAMPLES * VIEWS]
    marks = tmp_path / "cache" / "filled.npy"
    flip(marks, marks.stat().st_size - (VIEWS * SAMPLES - SAMPLES - 17), 6)
    assert store.read(index, view).corrupt.all()
    store.remove(index, view)
    found = store.read(index, view)
    assert not found.whole.any()
    assert not found.corrupt.any()
    write(store, index, view)
    assert store.read(index, view).whole.all()


def test_zeros_with_a_mark_and_a_record_in_anothers_place_do_not_pass(tmp_path: Path) -> None:
    store = made(tmp_path / "cache")
    marks, records = tmp_path / "cache" / "filled.npy", tmp_path / "cache" / "records.npy"
    first = marks.stat().st_size - VIEWS * SAMPLES
    for place in (0, 5):
        flip(marks, first + place)
    index, view = torch.tensor([0, 5]), torch.tensor([0, 0])
    assert store.read(index, view).corrupt.all()
    write(store, index[:1], view[:1])
    size, begin = store.record_bytes, records.stat().st_size - VIEWS * SAMPLES * store.record_bytes
    with records.open("r+b") as file:
        file.seek(begin)
        copy = file.read(size)
        file.seek(begin + 5 * size)
        file.write(copy)
    found = store.read(index, view)
    assert found.whole.tolist() == [True, False]
    assert found.corrupt.tolist() == [False, True]


@pytest.mark.parametrize("name", ["records.npy", "filled.npy", "cache.json"])
def test_a_damaged_header_is_refused_naming_the_file(tmp_path: Path, name: str) -> None:
    made(tmp_path / "cache")
    path = tmp_path / "cache" / name
    length = path.stat().st_size if name == "cache.json" else 128
    for place in range(0, length - 1, 1 if length < 400 else 7):
        flip(path, place)
        with pytest.raises(CacheError, match=f"{name} is damaged"):
            Store(tmp_path / "cache")
        flip(path, place)
    Store(tmp_path / "cache")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 3)
    with pytest.raises(CacheError, match=f"{name} is damaged"):
        Store(tmp_path / "cache")


def test_no_cache_and_a_later_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"holds no teacher cache: it has no cache\.json"):
        Store(tmp_path)
    made(tmp_path / "cache")
    path = tmp_path / "cache" / "cache.json"
    described = json.loads(path.read_text())
    described["format"] = 99
    del described["sha256"]
    path.write_text(json.dumps({**described, "sha256": content_hash(described)}))
    with pytest.raises(CacheError, match=r"cache\.json has format 99; this version of dotkd reads format 1"):
        Store(tmp_path / "cache")


# --- several processes


WRITER = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_cache_store import everywhere, made, write
store = made(Path(sys.argv[1]))
source = torch.Generator().manual_seed(int(sys.argv[3]))
index, view = everywhere()
for _ in range(20):
    chosen = torch.randperm(len(index), generator=source)[:16]
    write(store, index[chosen], view[chosen])
    found = store.read(index, view)
    assert not found.corrupt.any()  # the writers write the same bytes
"""


def test_processes_that_create_and_write_at_once_leave_it_whole(tmp_path: Path) -> None:
    words = [sys.executable, "-c", WRITER, str(tmp_path / "cache"), str(Path(__file__).parent)]
    writers = [subprocess.Popen([*words, str(seed)], stderr=subprocess.PIPE, text=True) for seed in range(2)]
    for writer in writers:
        _, told = writer.communicate(timeout=600)
        assert writer.returncode == 0, told
    store = made(tmp_path / "cache")
    assert store.count() > 0.7 * SAMPLES * VIEWS
    index, view = everywhere()
    found = store.read(index, view)
    assert int(found.whole.sum()) == store.count()
    assert torch.equal(store.records.decode(*found.parts)[found.whole], logits_of(index, view).half()[found.whole])


def test_a_creation_that_was_interrupted_is_made_anew(tmp_path: Path) -> None:
    made(tmp_path / "cache")
    (tmp_path / "cache" / "cache.json").unlink()
    (tmp_path / "cache" / "records.npy").write_bytes(b"half")
    write(made(tmp_path / "cache"), *everywhere())
    assert Store(tmp_path / "cache").count() == SAMPLES * VIEWS


# --- what is refused


def test_a_cache_of_something_else_is_refused_naming_all_that_differs(tmp_path: Path) -> None:
    made(tmp_path / "cache")
    other = {"teacher_weights": "b" * 64, "augment": "crop-flip", "seed": 3}
    with pytest.raises(ValueError, match="was made with other records, samples, teacher_weights, seed: ") as caught:
        made(tmp_path / "cache", identity=other, samples=41, kind="sampled")
    assert "\n  teacher_weights: aaaaaaaaaaaa..., not bbbbbbbbbbbb...\n  seed: null, not 3" in str(caught.value)
    with pytest.raises(ValueError, match=r"holds 3 views of a sample .*, not 4"):
        made(tmp_path / "cache", views=4)
    assert made(tmp_path / "cache", views=2).views == 3


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    store = made(tmp_path / "cache")
    index, view = torch.tensor([4, 11]), torch.tensor([0, 2])
    for value in (torch.nan, torch.inf, -torch.inf, 70_000.0):
        logits = torch.zeros(2, CLASSES)
        logits[1, 3] = value
        text = r"not finite, or beyond the 65504 of float16, for 1 samples: sample 11 view 2"
        with pytest.raises(ValueError, match=text):
            store.write(index, view, store.records.encode(logits, torch.zeros(2)))
    for name, outside in (("sample", (torch.tensor([40, 0]), view)), ("view", (index, torch.tensor([1, -1])))):
        for call in (store.read, lambda i, v: store.write(i, v, (torch.zeros(2, CLASSES).half(),)), store.remove):
            with pytest.raises(ValueError, match=rf"expected a {name} in 0\.\.(39|2), which .*, got (40|-1)"):
                call(*outside)
    assert store.count() == 0


def test_a_disk_that_refuses_is_told_with_the_file(tmp_path: Path) -> None:
    store = made(tmp_path / "cache", samples=400)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=r"records\.npy") as caught:
            write(store, torch.tensor([399]), torch.tensor([2]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value.filename) == str(tmp_path / "cache" / "records.npy")
    assert store.count() == 0
