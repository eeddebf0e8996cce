"""Checkpoints, and files written in one piece.

- What comes back is what was saved, to the bit and to the type: tensors of every dtype and layout, and the rest.
- What could not come back so is refused by name before the disk is touched.
- A process that is killed, or an error of the disk, at any moment of a save leaves a whole checkpoint to load, and
  nothing that the next save does not clear away. Two checkpoints are kept.
- Damage is noticed and passed over, with the reason, for the checkpoint before; nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from dotkd.checkpoint import CheckpointError, load_latest, save, save_weights, write_atomically
from dotkd.packing import decode, encode

# What a killed process wrote is in the kernel's hands, so only a loss of power can tell a flush from none: the tests do
# without, all but the one about the order of things.
REAL_FSYNC = os.fsync


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


FILES = ["SHA256SUMS", "state.json", "state.safetensors", "student.safetensors"]


def assert_same(actual: Any, expected: Any) -> None:
    """Equal in value, type and bits; a parameter comes back as a tensor, any kind of dict as a dict."""
    if isinstance(expected, torch.Tensor):
        assert type(actual) is torch.Tensor
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        bits = [t.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8) for t in (actual, expected)]
        assert torch.equal(*bits)
    elif isinstance(expected, dict):
        assert type(actual) is dict
        assert [(type(key), repr(key)) for key in actual] == [(type(key), repr(key)) for key in expected]
        for one, other in zip(actual.values(), expected.values(), strict=True):
            assert_same(one, other)
    elif isinstance(expected, (list, tuple)):
        assert type(actual) is type(expected)
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
    elif type(expected) is int:
        assert type(actual) is int
        assert actual == expected  # some are too long for repr
    else:
        assert (type(actual), repr(actual)) == (type(expected), repr(expected))  # repr: nan, -0.0 and every digit


def at(step: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((3,), float(step))}


def save_steps(directory: Path, *steps: int) -> None:
    for step in steps:
        save(directory, step, student=at(step), state={"step": step})


def listing(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def reseal(checkpoint: Path) -> None:
    """Make the checksums right again, as whoever forges a checkpoint would."""
    names = FILES[1:]
    sums = [f"{hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (checkpoint / "SHA256SUMS").write_text("".join(sums))


# -- what comes back

DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
DTYPES += ["uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_to_the_bit(dtype: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (4, 6, 8), dtype=torch.uint8, generator=generator)  # NaNs of all kinds among them
    tensor = raw % 2 == 0 if dtype == "bool" else raw.view(getattr(torch, dtype))
    state = {"cube": tensor, "scalar": tensor[0, 0, 0], "empty": tensor[:0], "column": tensor[:, 0, 0]}
    save(tmp_path, 1, student={"w": tensor}, state=state)
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert_same(loaded.state, state)
    assert_same(loaded.student, {"w": tensor})


def test_views_ties_and_parameters_come_back_as_tensors_of_their_own(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {
        "transposed": base.t(),
        "row": base[1],
        "again": base,
        "twice": [base, base],
        "expanded": torch.tensor(2.0).expand(3, 2),
        "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "conjugated": torch.tensor([1 + 2j]).conj(),
        "imaginary": torch.tensor([1 + 2j, 3j]).conj().imag,
        "parameter": nn.Parameter(base[:2]),
    }
    student = {"tied.a": base, "tied.b": base, "part": base[:, 1]}
    save(tmp_path, 1, student=student, state=state)
    loaded = load_latest(tmp_path)
    assert loaded is not None
    plain = {"conjugated": torch.tensor([1 - 2j]), "imaginary": torch.tensor([-2.0, -3.0])}
    assert_same(loaded.state, {**state, **plain})
    assert_same(dict(sorted(loaded.student.items())), dict(sorted(student.items())))
    loaded.student["tied.a"].add_(1)
    assert torch.equal(loaded.student["tied.b"], base)


def test_loaded_tensors_do_not_need_the_files(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    loaded = load_latest(tmp_path)
    assert loaded is not None
    shutil.rmtree(loaded.path)
    assert torch.equal(loaded.student["w"].mul_(2), torch.full((3,), 2.0))
    assert loaded.student["w"].data_ptr() % 64 == 0  # as torch allocates


def test_every_plain_value_comes_back_exactly(tmp_path: Path) -> None:
    state = {
        "none": None,
        "bools": [True, False, 1, 0],
        "ints": [0, -1, 2**63 - 1, -(2**63), 2**64, -(10**30), 3**10000],
        "floats": [0.0, -0.0, 0.1, 1e308, 5e-324, float("inf"), float("-inf"), float("nan"), 1.0],
        "text": ["", "ü\n\x00\u2028", "\ud800", "$tensor"],
        "keys": {1: "int", "1": "str", 1.5: "float", None: "none", (1, (2, "x")): "tuple", False: "bool"},
        "tuples": ((), (1,), [(), []], (None, (float("nan"),))),
        "tags": {"$tensor": "0", "$dict": [], "$": {"$tuple": 1}},
        "deep": {"optimizer": {"state": {0: {"momentum_task": torch.ones(2)}, 1: {}}, "param_groups": [{"lr": 1e-3}]}},
        "python": random.Random(3).getstate(),
        "torch": torch.Generator().manual_seed(3).get_state(),
        "a/b": torch.zeros(1),
        "a": {"b": torch.ones(1)},
        "\ud800/\n": torch.ones(1),
    }
    save(tmp_path, 1, student={}, state=state)
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert_same(loaded.state, state)
    restored = random.Random()
    restored.setstate(loaded.state["python"])
    assert restored.random() == random.Random(3).random()
    json.loads((loaded.path / "state.json").read_text(), parse_constant=pytest.fail)  # JSON that any reader takes


@pytest.mark.parametrize("state", [None, 3, [], (), "x", {}, torch.tensor(1)], ids=repr)
def test_a_state_of_any_kind_may_be_the_whole(state: object, tmp_path: Path) -> None:
    save(tmp_path, 0, student={}, state=state)
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert_same(loaded.state, state)


KEYS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4) | st.just("$dict")
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS | st.tuples(KEYS, KEYS), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(TREES)
def test_any_tree_of_plain_values_survives_json(tree: object) -> None:
    assert_same(decode(json.loads(json.dumps(encode(tree, "state", {}), allow_nan=False)), {}), tree)


def test_an_optimizer_goes_on_as_if_never_saved(tmp_path: Path) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, amsgrad=True)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            model(torch.randn(8, 3, generator=torch.Generator().manual_seed(step))).square().mean().backward()
            optimizer.step()

    whole, whole_optimizer = build()
    train(whole, whole_optimizer, range(4))
    model, optimizer = build()
    train(model, optimizer, range(2))
    save(tmp_path, 2, student=model.state_dict(), state={"optimizer": optimizer.state_dict()})
    loaded = load_latest(tmp_path)
    assert loaded is not None
    model, optimizer = build()
    model.load_state_dict(loaded.student)
    optimizer.load_state_dict(loaded.state["optimizer"])
    train(model, optimizer, range(2, 4))
    assert_same(dict(model.state_dict()), dict(whole.state_dict()))


def test_kinds_of_dict_come_back_as_dict(tmp_path: Path) -> None:
    save(tmp_path, 1, student=OrderedDict(at(1)), state={"a": OrderedDict(x=1), "b": Counter([30, 60])})
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert_same(loaded.state, {"a": {"x": 1}, "b": {30: 1, 60: 1}})


# -- what is refused


class Point(NamedTuple):
    x: int


KINDS = "expected dict, list, tuple, Tensor, None, bool, int, float or str exactly, got "


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": [np.float64(1)]}, f"state/a/0: {KINDS}numpy.float64"),
        ({"a": np.zeros(2)}, f"state/a: {KINDS}numpy.ndarray"),
        ({"a": (Point(1),)}, f"state/a/0: {KINDS}test_checkpoint.Point"),
        ({"a": b"x"}, f"state/a: {KINDS}builtins.bytes"),
        ({"a": {1}}, f"state/a: {KINDS}builtins.set"),
        ({"a": torch.Size([1])}, f"state/a: {KINDS}torch.Size"),
        ({"a": {Path("x"): 1}}, f"state/a (key): {KINDS}pathlib.PosixPath"),
        (
            {"a": torch.eye(2).to_sparse()},
            "state: '0:state/a' is not a tensor that safetensors can hold (torch.float32, torch.sparse_coo, on cpu)",
        ),
        (
            torch.ones(1, dtype=torch.complex128),
            "state: '0:state' is not a tensor that safetensors can hold (torch.complex128, torch.strided, on cpu)",
        ),
        (
            torch.ones(1, device="meta"),
            "state: '0:state' is not a tensor that safetensors can hold (torch.float32, torch.strided, on meta)",
        ),
    ],
)
def test_what_could_not_come_back_is_refused_before_the_disk_is_touched(
    state: object, message: str, tmp_path: Path
) -> None:
    with pytest.raises(TypeError) as caught:
        save(tmp_path / "checkpoints", 1, student={}, state=state)
    assert str(caught.value) == message
    assert not listing(tmp_path)


def test_a_student_of_anything_but_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^student: expected a tensor under 'w', got list$"):
        save(tmp_path, 1, student={"w": [1.0]}, state=None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"^student: '__metadata__' is a reserved name in safetensors files$"):
        save(tmp_path, 1, student={"__metadata__": torch.ones(1)}, state=None)
    assert not listing(tmp_path)


@pytest.mark.parametrize("step", [-1, 1.0, True])
def test_a_step_is_a_whole_number(step: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^expected `step` to be a whole number >= 0, got {step}$"):
        save(tmp_path, step, student={}, state=None)


# -- the folder


def test_the_folder_is_as_documented(tmp_path: Path) -> None:
    directory = tmp_path / "ein Lauf" / "chéckpoints"
    path = save(directory, 123, student=at(123), state={"x": torch.ones(2)})
    assert path == directory / "step-00000123"
    assert listing(path) == FILES
    with safe_open(path / "student.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert torch.equal(file.get_tensor("w"), at(123)["w"])
    document = json.loads((path / "state.json").read_text())
    assert document == {"format": 1, "step": 123, "state": {"x": {"$tensor": "0:state/x"}}}
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((path / "student.safetensors").stat().st_mode) == 0o666 & ~umask


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_sha256sum_checks_it(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(command, cwd=tmp_path / "step-00000001", capture_output=True, text=True, check=True)
    assert done.stdout.count(": OK\n") == 3


def test_the_two_newest_are_kept(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 20, 99_999_999, 100_000_000)
    assert listing(tmp_path) == ["step-100000000", "step-99999999"]
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert (loaded.step, loaded.path, loaded.skipped) == (100_000_000, tmp_path / "step-100000000", ())


def test_where_there_is_none_the_answer_is_none(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "absent") is None
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".step-00000001.tmp").mkdir()
    assert load_latest(tmp_path) is None


def test_a_symlinked_folder_and_a_relative_path_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    save_steps(Path("link"), 1)
    assert listing(tmp_path / "real") == ["step-00000001"]
    loaded = load_latest(Path("link"))
    assert loaded is not None
    assert loaded.step == 1


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    save(tmp_path, 2, student=at(7), state=None)
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert_same(loaded.student, at(7))
    assert listing(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_later_checkpoint_is_refused_if_whole_and_cleared_away_if_damaged(tmp_path: Path) -> None:
    save_steps(tmp_path, 5, 9)
    with pytest.raises(CheckpointError) as caught:
        save_steps(tmp_path, 7)
    assert str(caught.value) == (
        f"cannot write the checkpoint of step 7: {tmp_path / 'step-00000009'} is a later one and whole; "
        "resume from it, or move it away"
    )
    assert listing(tmp_path) == ["step-00000005", "step-00000009"]
    (tmp_path / "step-00000009" / "state.json").write_text("{}")
    save_steps(tmp_path, 7)
    assert listing(tmp_path) == ["step-00000005", "step-00000007"]


# -- damage


def flip(path: Path, position: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(position * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)


DAMAGE: list[tuple[str, Callable[[Path], object]]] = [
    *((f"bit flipped at {where}", lambda path, where=where: flip(path, where)) for where in (0, 0.1, 0.5, 0.9, 1)),
    ("truncated", lambda path: path.write_bytes(path.read_bytes()[:-1])),
    ("grown", lambda path: path.write_bytes(path.read_bytes() + b"0")),
    ("empty", lambda path: path.write_bytes(b"")),
    ("gone", lambda path: path.unlink()),
    ("a folder", lambda path: (path.unlink(), path.mkdir())),
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("kind", "damage"), DAMAGE, ids=[kind for kind, _ in DAMAGE])
def test_a_damaged_checkpoint_is_passed_over_and_reported(
    name: str, kind: str, damage: Callable[[Path], object], tmp_path: Path
) -> None:
    save_steps(tmp_path, 1, 2)
    damage(tmp_path / "step-00000002" / name)
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert (loaded.step, loaded.state) == (1, {"step": 1})
    ((path, reason),) = loaded.skipped
    assert path == tmp_path / "step-00000002"
    assert name in reason or name == "SHA256SUMS"
    assert "SHA256SUMS" in reason or kind in ("gone", "a folder")


def test_where_all_are_damaged_each_is_named_with_its_reason(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    flip(tmp_path / "step-00000001" / "state.json", 0.5)
    (tmp_path / "step-00000002" / "SHA256SUMS").write_text("nonsense\n")
    with pytest.raises(CheckpointError) as caught:
        load_latest(tmp_path)
    assert str(caught.value) == (
        f"every checkpoint in {tmp_path} is damaged:\n"
        f"  {tmp_path / 'step-00000002'}: state.json, state.safetensors, student.safetensors: "
        "the checksum differs from SHA256SUMS\n"
        f"  {tmp_path / 'step-00000001'}: state.json: the checksum differs from SHA256SUMS"
    )


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("name", ["student.safetensors", "state.safetensors"])
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_pickle_under_a_checkpoints_name_is_never_run(
    name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_steps(tmp_path, 1)
    checkpoint = tmp_path / "step-00000001"
    if form == "pickle":
        (checkpoint / name).write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save(Bomb(), checkpoint / name)
    reseal(checkpoint)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_latest(tmp_path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"{", "contents not understood: JSONDecodeError"),
        (b"[]", "contents not understood: TypeError"),
        (b"{}", "contents not understood: KeyError: 'format'"),
        (b'{"format": 0, "step": 1, "state": 1}', "state.json: expected format 1 and step 1"),
        (b'{"format": "1", "step": 1, "state": 1}', "state.json: expected format 1 and step 1"),
        (b'{"format": 1, "step": 2, "state": 1}', "state.json: expected format 1 and step 1"),
        (b'{"format": 1, "step": 1, "state": {"$tensor": "x"}}', "contents not understood: KeyError: 'x'"),
        (b'{"format": 1, "step": 1, "state": {"$tensor": []}}', "contents not understood: TypeError"),
        (b'{"format": 1, "step": 1, "state": {"$code": "x"}}', "contents not understood: ValueError: unknown tag"),
        (b'{"format": 1, "step": 1, "state": {"$dict": [[[], 1]]}}', "contents not understood: TypeError"),
        (b'{"format": 1, "step": 1, "state": {"$int": "x"}}', "contents not understood: ValueError"),
        (b'{"format": 1, "step": 1, "state": ' + b"[" * 10**5, "contents not understood: RecursionError"),
        (b"\xff", "contents not understood: UnicodeDecodeError"),
    ],
)
def test_a_forged_skeleton_is_damage_not_a_crash(document: bytes, reason: str, tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    (tmp_path / "step-00000001" / "state.json").write_bytes(document)
    reseal(tmp_path / "step-00000001")
    with pytest.raises(CheckpointError) as caught:
        load_latest(tmp_path)
    assert f"step-00000001: {reason}" in str(caught.value)


def test_a_newer_format_is_refused_by_name_not_passed_over(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    document = tmp_path / "step-00000002" / "state.json"
    document.write_text(document.read_text().replace('"format": 1', '"format": 2'))
    reseal(document.parent)
    with pytest.raises(CheckpointError) as caught:
        load_latest(tmp_path)
    assert str(caught.value) == (
        f"{document.parent} has checkpoint format 2, from a newer version of dotkd; this version reads format 1"
    )


def test_checksums_of_other_files_are_not_looked_at(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    sums = tmp_path / "step-00000001" / "SHA256SUMS"
    sums.write_text(sums.read_text() + f"{'0' * 64}  ../x\n")
    with pytest.raises(CheckpointError, match=r"SHA256SUMS: more than the checksums of state\.json, state\.safe"):
        load_latest(tmp_path)


# -- crashes and a disk that refuses


@contextlib.contextmanager
def at_disk_operation(number: int, strike: Callable[[], None]) -> Iterator[list[str]]:
    """Call `strike` just before the `number`-th operation on the disk; yields the names of those that came."""
    places: list[tuple[Any, str]] = [(os, "rename"), (os, "replace"), (os, "fsync"), (os, "open")]
    places += [(os, "unlink"), (os, "rmdir"), (shutil, "rmtree"), (Path, "mkdir"), (Path, "open"), (Path, "unlink")]
    came: list[str] = []

    def watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            came.append(name)
            if len(came) == number + 1:
                strike()
            return original(*args, **kwargs)

        return operation

    with pytest.MonkeyPatch.context() as patch:
        for place, name in places:
            patch.setattr(place, name, watched(name, getattr(place, name)))
        yield came


def refuse() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def assert_sound(directory: Path, earliest: int) -> int:
    """A checkpoint of step `earliest` or later loads, and all that look like one are whole; returns its step."""
    loaded = load_latest(directory)
    assert loaded is not None
    assert loaded.step >= earliest
    assert loaded.skipped == ()
    assert_same(loaded.student, at(loaded.step))
    for path in directory.glob("step-*"):
        assert listing(path) == FILES
    return loaded.step


def assert_next_save_cleans(directory: Path, step: int) -> None:
    latest = assert_sound(directory, 0)
    save_steps(directory, step)
    assert listing(directory) == [f"step-{latest:08d}", f"step-{step:08d}"]
    assert_sound(directory, step)


@pytest.mark.parametrize("step", [3, 2], ids=["a new step", "a step again"])
def test_an_error_of_the_disk_at_any_moment(step: int, tmp_path: Path) -> None:
    struck = 0
    for number in range(100):
        directory = tmp_path / str(number)
        save_steps(directory, 1, 2)
        with at_disk_operation(number, refuse) as came, contextlib.suppress(CheckpointError):
            save_steps(directory, step)
            if len(came) <= number:
                break
        assert_sound(directory, 2)
        # Only what was on its way out can be left, when its removal is itself refused.
        strays = {name for name in listing(directory) if name.startswith(".")}
        assert strays <= {".step-00000001.tmp", ".step-00000002.old.tmp"}, (number, came)
        assert_next_save_cleans(directory, 4)
        struck += 1
    assert struck >= 18  # four files with two operations each, folders, renames, removals


def test_the_error_names_the_path_and_the_reason(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    with at_disk_operation(3, refuse), pytest.raises(CheckpointError) as caught:
        save_steps(tmp_path, 2)
    assert str(caught.value) == f"cannot write checkpoint {tmp_path / 'step-00000002'}: No space left on device"
    assert isinstance(caught.value.__cause__, OSError)
    assert listing(tmp_path) == ["step-00000001"]


def test_an_older_checkpoint_that_cannot_be_removed(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *args, ignore_errors=False: None if ignore_errors else refuse())
        with pytest.raises(CheckpointError) as caught:
            save_steps(tmp_path, 3)
    assert str(caught.value) == (
        f"{tmp_path / 'step-00000003'} is written, but what it replaces cannot be removed: No space left on device"
    )
    assert assert_sound(tmp_path, 3) == 3
    assert_next_save_cleans(tmp_path, 4)


def test_everything_is_flushed_before_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def flush(descriptor: int) -> None:
        REAL_FSYNC(descriptor)
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    def rename(source: Path, target: Path) -> None:
        os.replace(source, target)
        events.append(f"-> {target.name}")

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "rename", rename)
    save_steps(tmp_path / "c", 1)
    assert events[0] == tmp_path.name
    assert sorted(events[1:5]) == FILES
    assert events[5:] == [".step-00000001.tmp", "-> step-00000001", "c"]


def test_an_interrupt_leaves_no_temporary(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    save_steps(tmp_path, 1)
    with at_disk_operation(6, interrupt), pytest.raises(KeyboardInterrupt):
        save_steps(tmp_path, 2)
    assert listing(tmp_path) == ["step-00000001"]


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel refuses files beyond `size` bytes: as near to a full disk as a test gets without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    save_steps(tmp_path / "checkpoints", 1)
    save_weights(tmp_path / "student.safetensors", at(1))
    big = {"w": torch.zeros(10_000)}
    with file_size_limit(4096):
        with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*step-00000002: File too large$"):
            save(tmp_path / "checkpoints", 2, student=big, state=None)
        with pytest.raises(CheckpointError, match=r"cannot write .*student\.safetensors: File too large$"):
            save_weights(tmp_path / "student.safetensors", big)
    assert listing(tmp_path) == ["checkpoints", "student.safetensors"]
    assert listing(tmp_path / "checkpoints") == ["step-00000001"]
    assert_sound(tmp_path / "checkpoints", 1)
    with safe_open(tmp_path / "student.safetensors", "pt") as file:
        assert_same(file.get_tensor("w"), at(1)["w"])


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*file/x/step-00000001: Not a directory$"):
        save_steps(tmp_path / "file" / "x", 1)
    with pytest.raises(CheckpointError, match=r"cannot read checkpoints in .*file: Not a directory$"):
        load_latest(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*step-00000002: Permission denied$"):
            save_steps(tmp_path, 2)
        with pytest.raises(CheckpointError, match=r"cannot write .*x\.json: Permission denied$"):
            write_atomically(tmp_path / "x.json", "{}")
        assert_sound(tmp_path, 1)
    finally:
        tmp_path.chmod(0o700)


def test_kill_at_any_moment(tmp_path: Path) -> None:
    """In a process of its own, which forks: torch is imported once, and pytest's threads are not forked."""
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 18 + 18


def in_child(work: Callable[[], None]) -> int:
    """Fork, run `work` there and return its status: 0, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_everywhere(root: Path) -> None:
    moments = 0
    for step in (3, 2):
        for number in range(100):
            directory = root / f"{step}-{number}"
            save_steps(directory, 1, 2)

            def work(directory: Path = directory, step: int = step, number: int = number) -> None:
                with at_disk_operation(number, kill):
                    save_steps(directory, step)

            status = in_child(work)
            assert_sound(directory, 2)
            if status == 0:
                break
            assert status == -signal.SIGKILL
            assert_next_save_cleans(directory, 4)
            moments += 1

    directory, latest = root / "again and again", 0
    save_steps(directory, latest)
    for blow in range(30):

        def work_until_killed(start: int = latest + 1, delay: float = blow * 1e-4) -> None:
            save_steps(directory, start)
            threading.Timer(delay, kill).start()  # somewhere in the saves that follow
            save_steps(directory, *range(start + 1, start + 100_000))

        assert in_child(work_until_killed) == -signal.SIGKILL
        latest = assert_sound(directory, latest + 1)
    assert_next_save_cleans(directory, latest + 1)
    print(moments)


# -- single files


def test_a_file_is_replaced_in_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "Ergebnis ü.json"
    write_atomically(path, "ü\n")
    assert path.read_bytes() == b"\xc3\xbc\n"
    write_atomically(path, b"\x00\r\n")
    assert path.read_bytes() == b"\x00\r\n"
    assert listing(tmp_path) == [path.name]


def test_a_file_stays_whole_whatever_the_disk_refuses(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    for number in range(20):
        path.write_text("old")
        with at_disk_operation(number, refuse) as came:
            try:
                write_atomically(path, "new")
            except CheckpointError as error:
                said = str(error)
            else:
                break
        assert said == f"cannot write {path}: No space left on device"
        assert path.read_text() in ("old", "new")
        assert listing(tmp_path) == ["summary.json"]
    assert came[:3] == ["open", "fsync", "replace"]


def test_a_temporary_of_a_killed_writer_is_used_up(tmp_path: Path) -> None:
    (tmp_path / ".summary.json.tmp").write_text("half of something long")
    write_atomically(tmp_path / "summary.json", "new")
    assert listing(tmp_path) == ["summary.json"]
    assert (tmp_path / "summary.json").read_text() == "new"


def test_weights_are_plain_safetensors_with_ties_spelt_out(tmp_path: Path) -> None:
    tied = nn.Linear(3, 3, bias=False)
    model = nn.Sequential(tied, nn.BatchNorm1d(3), tied)
    save_weights(tmp_path / "w.safetensors", model.state_dict())
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        loaded = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert_same(dict(sorted(loaded.items())), dict(sorted(model.state_dict().items())))
    with pytest.raises(
        TypeError, match=r"^w\.safetensors: 'x' is not a tensor that safetensors can hold \(torch\.comp"
    ):
        save_weights(tmp_path / "w.safetensors", {"x": torch.ones(1, dtype=torch.complex128)})
    assert listing(tmp_path) == ["w.safetensors"]


if __name__ == "__main__":
    os.fsync = lambda fd: None
    kill_everywhere(Path(sys.argv[1]))
