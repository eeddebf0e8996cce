"""The contract of an interrupted run.

- SIGTERM or SIGINT at any step saves at the step's end and raises Interrupted; `Trainer.resume(out).fit()` then leaves
  the very bits of a run that never stopped: weights, average, momenta, random generators, records (but for what a clock
  measured). So do two interruptions, one while the teacher trains, one inside an epoch with `checkpoint_every`, and a
  death without a save. A second signal has its usual effect.
- A damaged newest checkpoint is passed over with a warning that names it, for the one before; to the same bits.
- Refused: a folder without a run, a folder with another run, other data than before, a folder whose every checkpoint is
  damaged. A finished run is not trained again: its summary is returned.
- Checkpoints do not hold the teacher.
"""

from __future__ import annotations

import json
import os
import signal
import threading

import numpy as np
import pytest
from safetensors.torch import load_file

from dotkd import Trainer
from dotkd.checkpoint import CheckpointError, load_latest
from dotkd.signals import stop_on_signal
from dotkd.trainer import Interrupted, RunExists
from tiny_runs import (
    STEPS,
    before_each_step,
    everything,
    given_teacher,
    images,
    records,
    run_with_stops,
    signal_in,
    tiny,
    vectors,
)

EPOCHS = 3
ALL_STEPS = range(1, EPOCHS * STEPS + 1)


class Died(BaseException):
    """Stands for a process that is killed: nothing is saved."""


@pytest.fixture(autouse=True)
def quick_and_safe(monkeypatch):
    """No waiting for the disk, and a signal that nobody catches fails the test instead of ending pytest."""

    def uncaught(number, frame):
        raise AssertionError(f"nobody waited for {signal.Signals(number).name}")

    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    before = {number: signal.signal(number, uncaught) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


def vector_run(home):
    """Dropout, batch norm, an average, a warm-up, known teacher logits."""
    changes = {"student": "tiny_runs:dropout", "student_options": {}, "ema": 0.8, "warmup_epochs": 0.5}
    return tiny(vectors(home), epochs=EPOCHS, trainer="dot", **changes, **given_teacher(home))


def image_run(home):
    """Augmented views, a teacher trained first and asked at every step, micro-batches, AdamW, fp16 and its scale."""
    changes = {"student": "tiny_runs:dropout", "student_options": {}, "teacher": "tiny_runs:dropout", "accumulate": 2}
    changes |= {"augment": "crop-flip", "trainer": "dot-adamw", "lr": 0.01, "precision": "fp16", "teacher_epochs": 1}
    return tiny(images(home), epochs=EPOCHS, **changes)


RUNS = {"vectors": vector_run, "images": image_run}


@pytest.fixture(scope="module")
def whole(home):
    """What the uninterrupted runs leave, by name."""
    left = {}
    for name, make in RUNS.items():
        Trainer(make(home), home / f"whole {name}").fit()
        left[name] = everything(home / f"whole {name}")
    return left


# --- signals


@pytest.mark.parametrize("step", ALL_STEPS)
def test_a_run_stopped_at_any_step_ends_with_the_same_bits(home, whole, tmp_path, step):
    run_with_stops(vector_run(home), tmp_path / "run", step)
    assert everything(tmp_path / "run") == whole["vectors"]


@pytest.mark.parametrize("call", [*range(1, 33, 2), 2, 8, 32])
def test_a_run_with_augmentation_stopped_anywhere_ends_with_the_same_bits(home, whole, tmp_path, call):
    # Two passes a step (accumulate): 8 belong to the teacher, trained for one epoch, 24 to the student.
    config = image_run(home)
    run_with_stops(config, tmp_path / "run", call)
    assert everything(tmp_path / "run") == whole["images"]
    assert everything(tmp_path / "run" / "teacher") == everything(home / "whole images" / "teacher")


@pytest.mark.parametrize("stops", [(1, 1), (3, 1), (2, 7), (4, 4, 4), (5, 2, 1)])
def test_a_run_stopped_more_than_once_ends_with_the_same_bits(home, whole, tmp_path, stops):
    run_with_stops(vector_run(home), tmp_path / "run", *stops)
    assert everything(tmp_path / "run") == whole["vectors"]


def test_sigint_stops_as_sigterm_does_and_says_what_happened(home, whole, tmp_path):
    out = tmp_path / "run"
    trainer = Trainer(vector_run(home), out)
    text = f"SIGINT at step 6: saved; `dotkd resume {out}` continues"
    with before_each_step(signal_in(6, signal.SIGINT)), pytest.raises(Interrupted) as caught:
        trainer.fit()
    assert str(caught.value) == text
    assert load_latest(out / "checkpoints").step == 6
    assert not (out / "summary.json").exists()
    Trainer.resume(out).fit()
    assert everything(out) == whole["vectors"]


def test_a_second_signal_has_its_usual_effect():
    with stop_on_signal() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
        assert stop.name == "SIGTERM"
        with pytest.raises(AssertionError, match="nobody waited for SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)


def test_handlers_are_put_back_and_other_threads_are_left_alone():
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signal():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    found = []

    def elsewhere():
        with stop_on_signal() as stop:
            found.append(bool(stop))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [False]


# --- deaths without a save


def die_in(step):
    def act(count, inputs):
        if count == step:
            raise Died

    return act


@pytest.mark.parametrize("death", [1, 4, 5, 7, 12])
@pytest.mark.parametrize("every", [1, 3, None])
def test_a_run_that_died_ends_with_the_same_bits(home, whole, tmp_path, death, every):
    config = vector_run(home).replace(checkpoint_every=every)
    with before_each_step(die_in(death)), pytest.raises(Died):
        Trainer(config, tmp_path / "run").fit()
    found = load_latest(tmp_path / "run" / "checkpoints")
    steps_saved = [s for s in range(1, death) if s % STEPS == 0 or (every and s % every == 0)]
    assert (found.step if found else None) == max(steps_saved, default=None)
    Trainer.resume(tmp_path / "run").fit()
    assert everything(tmp_path / "run") == whole["vectors"]


def test_records_written_after_the_checkpoint_are_dropped_even_if_the_next_run_stops_before_its_first(
    home, whole, tmp_path
):
    # The checkpoint is of step 4; the record of step 6 must go before anything is appended or measured.
    config = vector_run(home)
    with before_each_step(die_in(7)), pytest.raises(Died):
        Trainer(config, tmp_path / "run").fit()
    with before_each_step(signal_in(1, signal.SIGTERM)), pytest.raises(Interrupted):
        Trainer.resume(tmp_path / "run").fit()
    Trainer.resume(tmp_path / "run").fit()
    assert everything(tmp_path / "run") == whole["vectors"]


# --- damage


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def stopped_at_6(config, out):
    with before_each_step(signal_in(6, signal.SIGTERM)), pytest.raises(Interrupted):
        Trainer(config, out).fit()
    return sorted((out / "checkpoints").iterdir())


@pytest.mark.parametrize("name", ["student.safetensors", "state.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_to_the_same_bits(home, whole, tmp_path, name):
    out = tmp_path / "run"
    older, newest = stopped_at_6(vector_run(home), out)
    assert (older.name, newest.name) == ("step-00000004", "step-00000006")
    damage(newest / name)
    with pytest.warns(RuntimeWarning, match=f"{newest}.*{name}.*checksum"):
        Trainer.resume(out).fit()
    assert everything(out) == whole["vectors"]


def test_with_every_checkpoint_damaged_the_run_is_refused(home, tmp_path):
    out = tmp_path / "run"
    for path in stopped_at_6(vector_run(home), out):
        damage(path / "state.json")
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged:\n  .*step-00000006"):
        Trainer.resume(out).fit()


# --- what is refused, and what is in a checkpoint


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing holds no run: it has no config\.yaml"):
        Trainer.resume(tmp_path / "nothing")


def test_a_folder_with_a_run_is_refused_and_left_as_it_is(home, tmp_path):
    out = tmp_path / "run"
    stopped_at_6(vector_run(home), out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(RunExists, match=f"{out} already holds a run: `dotkd resume` continues it"):
        Trainer(vector_run(home), out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("kept", ["summary.json", "metrics.jsonl", "checkpoints", "student.safetensors", "teacher"])
def test_a_folder_with_any_part_of_a_run_is_refused(home, tmp_path, kept):
    out = tmp_path / "run"
    out.mkdir()
    (out / kept).write_text("{}") if "." in kept else (out / kept).mkdir()
    with pytest.raises(RunExists, match="already holds a run"):
        Trainer(vector_run(home), out)


def test_a_finished_run_is_not_trained_again(home, tmp_path):
    out = tmp_path / "run"
    first = Trainer(vector_run(home).replace(epochs=1), out).fit()
    before = (out / "metrics.jsonl").read_bytes()
    with before_each_step(die_in(1)):
        again = Trainer.resume(out).fit()
    assert again == json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(first))
    assert (out / "metrics.jsonl").read_bytes() == before


def test_other_data_than_before_is_refused(tmp_path):
    source = vectors(tmp_path)
    config = tiny(source, student="tiny_runs:smooth", student_options={}, **given_teacher(tmp_path))
    with before_each_step(signal_in(2, signal.SIGTERM)), pytest.raises(Interrupted):
        Trainer(config, tmp_path / "run").fit()
    arrays = dict(np.load(tmp_path / "vectors.npz"))
    arrays["x_train"][0, 0] += 1
    np.savez(tmp_path / "vectors.npz", **arrays)
    with pytest.raises(ValueError, match=r"is not the data that .* was trained on: it has changed since"):
        Trainer.resume(tmp_path / "run").fit()


def test_a_checkpoint_of_another_student_is_refused_with_the_keys(home, tmp_path):
    config = tiny(vectors(home), trainer="dot", checkpoint_every=1, student_options={"width": 8}, **given_teacher(home))
    Trainer(config, tmp_path / "run").fit()
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "config.yaml").write_text(config.replace(student_options={"width": 9}).to_yaml())
    with pytest.raises(ValueError, match=r"(?s)step-00000008 does not fit the student of .*head\.weight.*\[3, 9\]"):
        Trainer.resume(tmp_path / "run").fit()


def test_the_teacher_is_not_in_a_checkpoint(home, tmp_path):
    teacher = given_teacher(tmp_path, width=512, depth=3)
    Trainer(vector_run(home).replace(epochs=1, **teacher), tmp_path / "run").fit()
    size = sum(path.stat().st_size for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file())
    assert size < (tmp_path / "teacher.safetensors").stat().st_size / 10
    found = load_latest(tmp_path / "run" / "checkpoints")
    assert found.student.keys() == load_file(tmp_path / "run" / "student.safetensors").keys()


def test_the_loss_scale_is_in_the_checkpoint_and_comes_back(home, tmp_path):
    config = image_run(home).replace(teacher_epochs=1, epochs=1)
    with before_each_step(signal_in(12, signal.SIGTERM)), pytest.raises(Interrupted):
        Trainer(config, tmp_path / "run").fit()
    saved = load_latest(tmp_path / "run" / "checkpoints").state["scaler"]
    assert saved["scale"] > 0
    assert saved["_growth_tracker"] == 2  # two steps of the student since the scale was set


def test_the_position_in_metrics_is_that_of_the_file(home, tmp_path):
    stopped_at_6(vector_run(home), tmp_path / "run")
    state = load_latest(tmp_path / "run" / "checkpoints").state
    assert state["metrics"] == (tmp_path / "run" / "metrics.jsonl").stat().st_size
    assert [record["step"] for record in records(tmp_path / "run")] == [2, 4, 4, 6]
