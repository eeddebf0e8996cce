"""What a run with a teacher's cache refuses. The contract:

- Another teacher, data, augmentation, seed (where views are not counted) or precision is refused by name, before a run
  folder is made where the teacher is given; records that differ from the live teacher's word, naming sample and view.
- Without a teacher at hand a record that is missing or damaged is refused, naming sample and view.
- Logits that do not fit a record are refused, naming the sample. Keys that contradict a cache are refused by name.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cache_runs import SHAPE, config_of, damage, furnished, run
from dotkd import Trainer
from dotkd.cache.known import CachedTeacher
from dotkd.cache.store import Store
from dotkd.config import ConfigError
from dotkd.data import Batch
from tiny_runs import BATCH, CLASSES

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return furnished(tmp_path_factory.mktemp("home"))


OTHER = {
    "teacher_weights": {"teacher_weights": "other.safetensors"},
    "teacher": {"teacher": "tiny_runs:smooth"},
    "teacher_input": {"teacher_input": {"image_size": 8}},
    "augment": {"augment": "rotate-flip", "views": 2},
    "views": {"views": 3},
    "precision": {"precision": "bf16"},
    "data": {"data": "other.npz"},
}


@pytest.mark.parametrize("name", OTHER)
def test_a_cache_of_another_is_refused_by_name_before_a_folder_is_made(home, tmp_path, name):
    config = config_of(home, views=2, epochs=1, cache=str(tmp_path / "cache"))
    run(config, tmp_path / "run")
    changes = dict(OTHER[name])
    if name == "teacher_weights":
        weights = load_file(home / "coarse.safetensors")
        weights["head.bias"][0] += 1e-3
        save_file(weights, tmp_path / "other.safetensors")
        changes["teacher_weights"] = str(tmp_path / "other.safetensors")
    if name == "data":
        arrays = dict(np.load(home / "images.npz"))
        arrays["x_train"][3, 0, 0, 0] ^= 1
        np.savez(tmp_path / "other.npz", **arrays)
        changes["data"] = f"arrays:{tmp_path / 'other.npz'}"
    with pytest.raises(ValueError, match=rf"cache was made with other [^:]*\b{name}\b[^:]*: ") as caught:
        Trainer(config.replace(**changes), tmp_path / "other")
    assert f"\n  {name}: " in str(caught.value)
    assert not (tmp_path / "other").exists()


def test_seed_and_batch_size_count_where_each_epoch_has_views_of_its_own(home, tmp_path):
    counted = config_of(home, views=2, epochs=1, cache=str(tmp_path / "counted"))
    run(counted, tmp_path / "run")
    assert run(counted.replace(seed=5, batch_size=12), tmp_path / "again")["cache"]["read"] > 0
    config = config_of(home, augment="rotate-flip", epochs=2, cache=str(tmp_path / "cache"))
    run(config, tmp_path / "first")
    for name, changes in (("seed", {"seed": 5}), ("batch_size", {"batch_size": 12}), ("mix", {"mix": "mixup"})):
        with pytest.raises(ValueError, match=f"cache was made with other {name}"):
            Trainer(config.replace(**changes), tmp_path / "other")
    with pytest.raises(ValueError, match=r"holds 2 views of a sample .*, not 3"):
        Trainer(config.replace(epochs=3), tmp_path / "other")
    assert run(config.replace(epochs=1), tmp_path / "shorter")["cache"]["computed"] == 0


@pytest.mark.parametrize("top_k", [None, 2])
def test_records_that_are_not_what_the_teacher_says_are_refused(home, tmp_path, top_k):
    config = config_of(home, "smooth", views=2, epochs=2, cache=str(tmp_path / "cache"), cache_top_k=top_k)
    run(config, tmp_path / "one")
    run(config, tmp_path / "same")  # what is right passes
    store = Store(tmp_path / "cache")
    index = torch.arange(96)
    logits = torch.nn.functional.one_hot(index % 3, 3).float() * 9
    for view in (0, 1):
        store.write(index, index * 0 + view, store.records.encode(logits, torch.full((96,), 0.5)))
    with pytest.raises(ValueError, match=r"is not what this run's teacher says: sample \d+ view [01] differs by"):
        run(config, tmp_path / "two")
    assert not (tmp_path / "two" / "metrics.jsonl").exists()


def test_logits_that_do_not_fit_are_refused_naming_the_sample(home, tmp_path):
    config = config_of(home, "nan_teacher", cache=str(tmp_path / "cache"), augment="none", accumulate=3)
    with pytest.raises(ValueError, match=r"the teacher's logits are not finite, or beyond .*: sample \d+ view 0"):
        run(config.replace(teacher_options={"size": BATCH // 3}), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"method": "none", "trainer": "sgd"}, "cache: expected null with method none, which asks no teacher"),
        ({"teacher": "self", "ema": 0.9, "teacher_weights": None}, "cache: expected null with teacher self"),
        ({"teacher_learns": ["head"]}, "cache: expected null with teacher_learns, by which the teacher changes"),
        ({"method": "fitnet"}, "cache: expected null with method fitnet, which looks inside the teacher"),
        ({"method": "crld"}, "cache: expected null with method crld, which compares two views"),
        ({"method": "corsd"}, "cache: expected null with method corsd, which needs no teacher"),
        ({"cache": None, "cache_top_k": 2}, "cache_top_k: expected null without cache, got 2"),
        ({"method": "dkd", "cache_top_k": 2}, "cache_top_k: expected null with method dkd .*unbiased for kd alone"),
        ({"cache_top_k": 0}, "cache_top_k: expected a whole number >= 1, or null, got 0"),
    ],
)
def test_what_contradicts_a_cache_is_refused_by_name(home, changes, text):
    with pytest.raises(ConfigError, match=text):
        config_of(home, **{"cache": "there", **changes})


def own_of_two_views(student, teacher, student_strong, teacher_strong):
    return ((student - teacher) ** 2).mean()


def test_a_method_of_ones_own_that_compares_views_is_refused_when_it_is_known(home, tmp_path):
    config = config_of(home, cache=str(tmp_path / "cache"), method="test_cache_refused:own_of_two_views")
    with pytest.raises(ValueError, match=r"cache: expected null with method .*, which needs more than one view's"):
        Trainer(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_without_a_teacher_what_is_missing_or_damaged_is_refused(home, tmp_path):
    config = config_of(home, augment="none", cache=str(tmp_path / "cache"), epochs=1)
    run(config, tmp_path / "one")
    store = Store(tmp_path / "cache")
    alone = CachedTeacher(store, None, device=torch.device("cpu"))
    index = torch.tensor([0, 50])
    batch = Batch(torch.zeros(2, *SHAPE), torch.zeros(2, dtype=torch.int64), index, torch.zeros_like(index))
    assert alone.logits(batch).shape == (2, CLASSES)
    store.remove(index[1:], batch.view[1:])
    with pytest.raises(ValueError, match=r"1 records are missing .* the first, of sample 50 view 0, is missing"):
        alone.logits(batch)
    damage(tmp_path / "cache", every=1)
    with pytest.raises(ValueError, match=r"2 records are .* the first, of sample 0 view 0, is corrupt"):
        alone.logits(batch)
