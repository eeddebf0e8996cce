"""`dotkd cache`. The contract:

- It fills every view of every sample, or every epoch of the run where each has its own; the run that follows asks the
  teacher nothing, and leaves the bits of one that does. A teacher without weights is trained in DIR/teacher.
- The size is told beforehand; without room on the disk nothing is computed. Stopped, it ends with 75, and the same
  command goes on; n parts by n processes are the whole.
- A damaged record is found (exit code 1), repaired by being marked as missing, and computed by the next call.
- What is wrong with the input is one message and exit code 2.
"""

from __future__ import annotations

import collections
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cache_runs import config_of, damage, furnished, run
from dotkd.cache.fill import Filling
from dotkd.cache.store import Store
from dotkd.cli import app
from tiny_runs import STEPS, TRAIN, everything

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return furnished(tmp_path_factory.mktemp("home"))


def dotkd(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def recipe(home: Path, folder: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(config_of(home, **changes).to_yaml())
    return folder / "recipe.yaml"


WAYS = {
    "views": ({"views": 3}, 3 * TRAIN),
    "one view": ({"augment": "none"}, TRAIN),
    "epochs": ({"augment": "rotate-flip", "epochs": 2}, 2 * STEPS * 20),
    "sampled": ({"views": 2, "cache_top_k": 2, "cache": "-"}, 2 * TRAIN),
}


@pytest.mark.parametrize("way", WAYS)
def test_after_it_the_teacher_is_asked_nothing(home, tmp_path, way):
    changes, count = WAYS[way]
    top_k = changes.get("cache_top_k")
    shown = {key: value for key, value in changes.items() if not key.startswith("cache")}
    path, out = recipe(home, tmp_path / "it", batch_size=20, **shown), tmp_path / "cache"
    code, told, remarks = dotkd("cache", path, "--out", out, *([] if top_k is None else ["--top-k", top_k]))
    assert code == 0, remarks
    assert f"{out}: samples {TRAIN} x views" in remarks
    assert f"{out}: {count} records; {count} computed, 0 read\ntrain from it with: cache={out}\n" in told
    config = config_of(home, batch_size=20, **{**shown, "cache": str(out), "cache_top_k": top_k})
    assert run(config, tmp_path / "cached")["cache"]["computed"] == 0
    if top_k is None:
        run(config.replace(cache=None), tmp_path / "asked")
        left = [everything(tmp_path / name)["student.safetensors"] for name in ("cached", "asked")]
        assert left[0] == left[1]
    code, told, _ = dotkd("cache", path, "--out", out, *([] if top_k is None else ["--top-k", top_k]))
    assert (code, f"{count} records; 0 computed" in told) == (0, True)


def test_a_teacher_without_weights_is_trained_beside_it(home, tmp_path):
    path = recipe(home, tmp_path / "it", views=1, teacher_weights=None, teacher_epochs=1, epochs=1)
    out = tmp_path / "cache"
    code, told, _ = dotkd("cache", path, "--out", out)
    assert code == 0
    given = f"cache={out} teacher_weights={out / 'teacher'}"
    assert told.endswith(f"train from it with: {given}\n")
    code, _, remarks = dotkd("train", path, *given.split(), "--out", tmp_path / "run")
    assert code == 0, remarks
    assert everything(tmp_path / "run")["state"]["cache"] == {"read": "96", "computed": "0", "corrupt": "0"}


def test_a_damaged_record_is_found_repaired_and_computed_again(home, tmp_path):
    path, out = recipe(home, tmp_path / "it", views=2), tmp_path / "cache"
    dotkd("cache", path, "--out", out)
    assert dotkd("cache", out, "--verify") == (0, f"{out}: 192 records of 192, 0 damaged\n", "")
    hit = damage(out, every=100)
    assert hit == 2
    code, told, remarks = dotkd("cache", out, "--verify")
    assert (code, told) == (1, f"{out}: 192 records of 192, 2 damaged\n")
    assert remarks == "damaged: sample 0 view 0, sample 4 view 1; --repair marks them as missing\n"
    code, told, _ = dotkd("cache", out, "--verify", "--repair")
    assert (code, told.splitlines()[1]) == (0, "marked as missing: sample 0 view 0, sample 4 view 1")
    assert Store(out).count() == 190
    _, told, _ = dotkd("cache", path, "--out", out)
    assert "192 records; 2 computed" in told
    assert dotkd("cache", out, "--verify")[0] == 0


def test_stopped_it_ends_with_75_and_goes_on(home, tmp_path, monkeypatch):
    path, out = recipe(home, tmp_path / "it", views=5), tmp_path / "cache"
    whole = Filling.run

    def stopped(self: Filling):
        for done in whole(self):
            if done == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield done

    monkeypatch.setattr(Filling, "run", stopped)
    code, _, remarks = dotkd("cache", path, "--out", out)
    assert code == 75
    assert "SIGTERM: 2 of 5 blocks are filled; give the same command again" in remarks
    assert Store(out).count() == 2 * TRAIN
    monkeypatch.setattr(Filling, "run", whole)
    code, told, _ = dotkd("cache", path, "--out", out)
    assert (code, f"{5 * TRAIN} records; {3 * TRAIN} computed" in told) == (0, True)


def test_parts_filled_at_once_are_the_whole(home, tmp_path):
    path, out = recipe(home, tmp_path / "it", views=3), tmp_path / "cache"
    words = [sys.executable, "-m", "dotkd", "cache", str(path), "--out", str(out)]
    places = os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
    given = {"env": {**os.environ, "PYTHONPATH": places}, "stderr": subprocess.PIPE, "text": True}
    parts = [subprocess.Popen([*words, "--part", f"{k}/2"], **given) for k in (1, 2)]
    for part in parts:
        _, remarks = part.communicate(timeout=600)
        assert part.returncode == 0, remarks
    assert dotkd("cache", out, "--verify")[1] == f"{out}: {3 * TRAIN} records of {3 * TRAIN}, 0 damaged\n"


@pytest.mark.parametrize("changes", [{"views": 3}, {"augment": "rotate-flip", "epochs": 3}])
def test_parts_filled_one_after_the_other_are_the_whole(home, tmp_path, changes):
    path, out = recipe(home, tmp_path / "it", **changes), tmp_path / "cache"
    told = [dotkd("cache", path, "--out", out, "--part", f"{k}/5")[1] for k in range(1, 6)]
    counts = [line.partition(": ")[2].split()[0] for line in told]
    assert 0 < int(counts[2]) < int(counts[4]) == 3 * TRAIN  # each leaves something to the others
    assert Store(out).count() == 3 * TRAIN


def test_without_room_nothing_is_computed(home, tmp_path, monkeypatch):
    path, out = recipe(home, tmp_path / "it"), tmp_path / "cache"
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10, 5, 200_000))
    code, _, remarks = dotkd("cache", path, "--out", out)
    assert code == 2
    assert "the cache needs another 0.25 MB, and 0.20 MB are free: make room, or take fewer views" in remarks
    assert Store(out).count() == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digits"], "expected --out DIR, the folder of the cache"),
        (["digits", "--out", "there", "--part", "3/2"], "expected --part k/n with 1 <= k <= n, got '3/2'"),
        (["digits", "--out", "there", "--part", "half"], "expected --part k/n with 1 <= k <= n, got 'half'"),
        (["digits", "method=fitnet", "--out", "there"], "cache: expected null with method fitnet"),
        (["digits", "--out", "there", "--top-k", "10", "teacher_epochs=1"], "expected `top_k` in 1..9"),
        (["there", "--verify", "epochs=3"], "expected nothing but a cache's folder with --verify and --repair"),
    ],
)
def test_wrong_input_is_one_message(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = dotkd("cache", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_no_cache_at_all_is_told(tmp_path):
    code, _, err = dotkd("cache", tmp_path, "--verify")
    assert code == 1
    assert "holds no teacher cache: it has no cache.json" in err
