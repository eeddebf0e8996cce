"""Distillation from a teacher's cache. The contract:

- With a teacher whose logits float16 holds exactly, a run that asks the teacher, one that fills a cache and one that
  reads it leave the same bits: for every augmentation, counted views or not, mixed samples, micro-batches, several
  teachers. With any teacher, filling and reading leave the same bits, and both differ from asking by rounding alone.
- A run stopped at any step, or dead without a save, ends with the bits of one that was not, cache and all.
- What was read, computed and found damaged is counted; damaged and missing records are computed anew.
(What is refused: test_cache_refused.)
"""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from cache_runs import config_of, damage, furnished, run
from dotkd import Trainer
from dotkd.cache.store import Store
from tiny_runs import CLASSES, STEPS, Died, before_each_step, die_in, everything, records, run_with_stops

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return furnished(tmp_path_factory.mktemp("home"))


SEEN = {"cache", "images_per_second", "seconds", "metrics"}


def bits(out: Path) -> dict:
    """Everything that a run left, but for how its logits came about."""
    left = everything(out)
    left["state"] = {key: value for key, value in left["state"].items() if key not in SEEN}
    left["records"] = [{k: v for k, v in record.items() if k not in SEEN} for record in left["records"]]
    return left


# --- the same bits


WAYS = {
    "crop-flip": {},
    "three views": {"views": 3},
    "turned, three views": {"augment": "rotate-flip", "views": 3},
    "turned": {"augment": "rotate-flip"},
    "resized": {"augment": "resized-crop-flip"},
    "mixed": {"mix": "mixup", "trainer": "sgd"},
    "as they are": {"augment": "none"},
    "micro-batches": {"accumulate": 3},
    "dist": {"method": "dist", "views": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_asking_filling_and_reading_are_the_same_run(home, tmp_path, way):
    config = config_of(home, **WAYS[way])
    run(config, tmp_path / "asking")
    cached = config.replace(cache=str(tmp_path / "cache"))
    filling = run(cached, tmp_path / "filling")["cache"]
    reading = run(cached, tmp_path / "reading")["cache"]
    assert bits(tmp_path / "asking") == bits(tmp_path / "filling") == bits(tmp_path / "reading")
    steps = 3 * STEPS * config.batch_size
    assert filling["computed"] + filling["read"] == steps
    assert filling["computed"] == Store(tmp_path / "cache").count() > 0
    assert reading == {"read": steps, "computed": 0, "corrupt": 0}


def test_several_teachers_are_cached_as_one(home, tmp_path):
    more = {"more_teachers": [{"model": "tiny_runs:smooth", "weights": str(home / "smooth.safetensors")}]}
    for choice in ("mean", "best"):
        config = config_of(home, views=2, teacher_choice=choice, cache=str(tmp_path / choice), **more)
        run(config, tmp_path / choice / "one")
        run(config, tmp_path / choice / "two")
        assert bits(tmp_path / choice / "one") == bits(tmp_path / choice / "two")
    with pytest.raises(ValueError, match="made with other teacher_choice"):
        Trainer(config.replace(teacher_choice="mean"), tmp_path / "other")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_with_any_teacher_a_cached_run_differs_by_rounding_alone(home, tmp_path, precision):
    config = config_of(home, "smooth", student="tiny_runs:smooth", views=3, precision=precision)
    asked = run(config, tmp_path / "asking")
    cached = config.replace(cache=str(tmp_path / "cache"))
    run(cached, tmp_path / "filling")
    found = run(cached, tmp_path / "reading")
    assert bits(tmp_path / "filling") == bits(tmp_path / "reading")
    first, second = ([r for r in records(tmp_path / name) if r["kind"] == "train"] for name in ("asking", "reading"))
    for one, other in zip(first, second, strict=True):
        for key in ("task_loss", "distill_loss"):
            assert other[key] == pytest.approx(one[key], rel=2e-3)
    # bfloat16 has fewer digits than float16: those logits a record holds exactly.
    differs = any(one["distill_loss"] != other["distill_loss"] for one, other in zip(first, second, strict=True))
    assert differs == (precision == "fp32")
    assert found["losses"]["test"]["distill"] == pytest.approx(asked["losses"]["test"]["distill"], rel=2e-3)


def test_sampled_classes_teach(home, tmp_path):
    config = config_of(home, "smooth", epochs=2, cache=str(tmp_path / "cache"), cache_top_k=2, views=3)
    run(config, tmp_path / "one")
    run(config, tmp_path / "two")
    assert bits(tmp_path / "one") == bits(tmp_path / "two")
    assert Store(tmp_path / "cache").records.describe() == {"classes": CLASSES, "top_k": 2, "temperature": 4.0}
    with pytest.raises(ValueError, match="made with other records:"):
        Trainer(config.replace(temperature=2.0), tmp_path / "other")
    with pytest.raises(ValueError, match=r"expected `top_k` in 1\.\.2, fewer than the 3 classes, got 3"):
        Trainer(config.replace(cache_top_k=3), tmp_path / "other")


def test_a_teacher_that_is_trained_first_fills_a_cache_too(home, tmp_path):
    config = config_of(home, teacher_weights=None, teacher_epochs=1, epochs=1, cache=str(tmp_path / "cache"))
    run(config, tmp_path / "one")
    given = config.replace(teacher_weights=str(tmp_path / "one" / "teacher"))
    assert run(given, tmp_path / "two")["cache"]["computed"] == 0
    assert (
        load_file(tmp_path / "one/student.safetensors").keys() == load_file(tmp_path / "two/student.safetensors").keys()
    )
    assert bits(tmp_path / "one") == bits(tmp_path / "two")


# --- interruptions


@pytest.mark.parametrize("stops", [(1,), (4,), (5,), (7, 3), (12,)])
def test_a_run_stopped_anywhere_ends_with_the_same_bits(home, tmp_path, stops):
    config = config_of(home, "smooth", views=2)
    Trainer(config.replace(cache=str(tmp_path / "cache")), tmp_path / "whole").fit()
    run_with_stops(config.replace(cache=str(tmp_path / "other")), tmp_path / "run", *stops)
    assert everything(tmp_path / "run") == everything(tmp_path / "whole")


@pytest.mark.parametrize("death", [3, 7, 12])
def test_a_run_that_died_ends_with_the_same_bits(home, tmp_path, death):
    config = config_of(home, "smooth", views=2)
    Trainer(config.replace(cache=str(tmp_path / "cache")), tmp_path / "whole").fit()
    with before_each_step(die_in(death)), pytest.raises(Died):
        Trainer(config.replace(cache=str(tmp_path / "other")), tmp_path / "run").fit()
    Trainer.resume(tmp_path / "run").fit()
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")


# --- damage


def test_damaged_records_are_computed_anew_and_counted(home, tmp_path):
    config = config_of(home, augment="none", cache=str(tmp_path / "cache"))
    run(config, tmp_path / "one")
    missing = int((~Store(tmp_path / "cache").filled(0)).sum())
    hit = damage(tmp_path / "cache", every=5)
    found = run(config, tmp_path / "two")["cache"]
    assert missing == 0  # every sample is shown in some epoch
    assert (found["computed"], found["corrupt"]) == (hit, hit)
    assert bits(tmp_path / "one") == bits(tmp_path / "two")
    assert [len(index) for index, _, _ in Store(tmp_path / "cache").damaged()] == [0]
    trained = [record["cache"]["corrupt"] for record in records(tmp_path / "two") if record["kind"] == "train"]
    assert trained == sorted(trained)
    assert trained[-1] == hit
