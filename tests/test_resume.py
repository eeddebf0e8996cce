"""The contract of an interrupted run.

- SIGTERM or SIGINT at any step saves at the step's end and raises Interrupted; `Trainer.resume(out).fit()` then leaves
  the very bits of a run that never stopped: weights, average, momenta, random generators, records (but for what a clock
  measured). So do two interruptions, one while the teacher trains, one inside an epoch with `checkpoint_every`, and a
  death without a save. A second signal has its usual effect.
- A damaged newest checkpoint is passed over with a warning that names it, for the one before; to the same bits.
(Which folders are refused, and what a checkpoint holds: test_run_folder.)
"""

from __future__ import annotations

import os
import signal
import threading

import pytest

from dotkd import Trainer
from dotkd.checkpoint import CheckpointError, load_latest
from dotkd.signals import stop_on_signal
from dotkd.trainer import Interrupted
from tiny_runs import (
    STEPS,
    Died,
    before_each_step,
    die_in,
    everything,
    image_run,
    run_with_stops,
    signal_in,
    stopped_at,
    vector_run,
)

EPOCHS = 3
ALL_STEPS = range(1, EPOCHS * STEPS + 1)


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


@pytest.mark.parametrize("name", ["student.safetensors", "state.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_to_the_same_bits(home, whole, tmp_path, name):
    out = tmp_path / "run"
    older, newest = stopped_at(6, vector_run(home), out)
    assert (older.name, newest.name) == ("step-00000004", "step-00000006")
    damage(newest / name)
    with pytest.warns(RuntimeWarning, match=f"{newest}.*{name}.*checksum"):
        Trainer.resume(out).fit()
    assert everything(out) == whole["vectors"]


def test_with_every_checkpoint_damaged_the_run_is_refused(home, tmp_path):
    out = tmp_path / "run"
    for path in stopped_at(6, vector_run(home), out):
        damage(path / "state.json")
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged:\n  .*step-00000006"):
        Trainer.resume(out).fit()
