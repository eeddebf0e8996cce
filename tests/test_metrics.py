"""The contract of what a run says while it trains.

- metrics.jsonl: strict JSON, one record a line; training records of about every `log_every` steps that divide an epoch
  evenly, the last one closing it, then one of the evaluation. Their figures are sample-weighted means of the unweighted
  losses; what is not finite is null. Written out at once.
- A display sees every step and every record, and is stopped however a run ends: a bar in a terminal, a line an epoch
  elsewhere. TensorBoard by option.
"""

from __future__ import annotations

import io
import json
import math
import signal
import sys

import pytest
import torch
from rich.console import Console

from dotkd import Trainer
from dotkd.metrics import Bar, Lines, Log, Means, display_for, figures, to_json
from dotkd.trainer import Diverged, Interrupted
from tiny_runs import STEPS, before_each_step, given_teacher, records, signal_in, tiny, vectors

TRAIN_RECORD = {
    "kind": "train",
    "step": 2,
    "epoch": 1,
    "task_loss": 1.25,
    "distill_loss": 0.5,
    "accuracy": 0.875,
    "lr": 0.1,
    "images_per_second": 1234.5,
    "skipped_steps": 0,
    "diagnostics": {"grad_norm": {"task": 0.5, "distill": 0.25}, "snr": {"task": 0.1, "distill": None}},
}
SCORES = {"accuracy": 0.25, "task_loss": 1.0, "distill_loss": None, "agreement": None, "calibration_error": 0.1}
EVAL_RECORD = {"kind": "eval", "step": 4, "epoch": 1, "val": {**SCORES, "accuracy": 0.5}, "test": SCORES}


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def strict(text):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


# --- figures


def test_means_weigh_batches_by_their_samples_and_start_again():
    means, right, wrong = Means(torch.device("cpu")), torch.eye(3), torch.eye(3).roll(1, 0)
    means.add({"task": torch.tensor(1.0), "distill": torch.tensor(4.0)}, right, torch.arange(3))
    means.add(
        {"task": torch.tensor(6.0), "target": torch.tensor(7.0), "nontarget": torch.tensor(2.0)},
        wrong[:2],
        torch.arange(2),
    )
    assert means.read() == pytest.approx((15 / 5, 30 / 5, 3 / 5, 5))
    means.add({"task": torch.tensor(2.0, dtype=torch.float16)}, right, torch.arange(3))
    assert means.read() == pytest.approx((2.0, 0.0, 1.0, 3))


def test_a_mixed_sample_counts_by_the_class_of_its_larger_share():
    means = Means(torch.device("cpu"))
    targets = torch.tensor([[0.7, 0.3, 0.0], [0.4, 0.0, 0.6]])
    means.add({"task": torch.tensor(0.0)}, torch.eye(3)[:2], targets)
    assert means.read() == (0.0, 0.0, 0.5, 2)


def test_json_has_null_for_what_is_not_finite_at_any_depth():
    record = {"a": math.nan, "b": {"c": [1.5, math.inf, (-math.inf, 2)], "d": None}, "e": True, "f": "NaN"}
    assert strict(to_json(record)) == {"a": None, "b": {"c": [1.5, None, [None, 2]], "d": None}, "e": True, "f": "NaN"}
    assert "\n" not in to_json(record)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "task 1.250 distill 0.500 accuracy 87.5% 1234 images/s"),
        ({"distill_loss": None}, "task 1.250 accuracy 87.5% 1234 images/s"),
        ({"skipped_steps": 3}, "task 1.250 distill 0.500 accuracy 87.5% 1234 images/s skipped 3"),
        ({"task_loss": math.nan}, "task nan distill 0.500 accuracy 87.5% 1234 images/s"),
    ],
)
def test_figures_are_told_in_words(changes, text):
    assert figures({**TRAIN_RECORD, **changes}) == text


# --- the file


def test_a_record_is_on_the_disk_as_soon_as_it_is_written(tmp_path):
    log = Log(tmp_path, keep=0, step=0, tensorboard=False, display=None)
    log.write(TRAIN_RECORD)
    assert strict((tmp_path / "metrics.jsonl").read_text()) == TRAIN_RECORD
    assert log.position == (tmp_path / "metrics.jsonl").stat().st_size
    log.close()


def test_a_resumed_log_goes_on_where_the_checkpoint_was(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("first\nsecond\n")
    log = Log(tmp_path, keep=6, step=0, tensorboard=False, display=None)
    assert log.position == 6
    assert path.read_text() == "first\n"
    log.write({"third": 3})
    log.close()
    assert path.read_text() == 'first\n{"third": 3}\n'


@pytest.mark.parametrize(
    ("log_every", "steps"), [(1, [1, 2, 3, 4]), (2, [2, 4]), (3, [4]), (4, [4]), (50, [4])], ids=str
)
def test_records_divide_an_epoch_evenly_and_close_it(home, tmp_path, log_every, steps):
    config = tiny(vectors(home), log_every=log_every, trainer="dot", **given_teacher(home))
    Trainer(config, tmp_path / "run").fit()
    found = [(record["kind"], record["epoch"], record["step"]) for record in records(tmp_path / "run")]
    epoch = [("train", 1, step) for step in steps] + [("eval", 1, STEPS)]
    assert found == epoch + [(kind, 2, step + STEPS) for kind, _, step in epoch]


def test_the_records_of_a_run_have_the_keys_that_are_promised(home, tmp_path):
    config = tiny(vectors(home), trainer="dot", ema=0.9, **given_teacher(home))
    Trainer(config, tmp_path / "run").fit()
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        record = strict(line)
        if record["kind"] == "train":
            assert record.keys() == TRAIN_RECORD.keys()
            assert record["images_per_second"] > 0
        else:
            assert record.keys() == {"kind", "step", "epoch", "val", "test", "ema"}
            for scores in (record["val"], record["test"], record["ema"]["val"], record["ema"]["test"]):
                assert scores.keys() == SCORES.keys()
                assert 0 <= scores["accuracy"] <= 1
                assert scores["task_loss"] > 0
                assert scores["distill_loss"] > 0
                assert 0 <= scores["agreement"] <= 1
                assert 0 <= scores["calibration_error"] <= 1


def test_without_distillation_the_distillation_loss_is_null(home, tmp_path):
    Trainer(tiny(vectors(home), trainer="sgd", method="none"), tmp_path / "run").fit()
    for record in records(tmp_path / "run"):
        assert (record if record["kind"] == "train" else record["test"])["distill_loss"] is None


def test_losses_that_are_not_finite_are_null_in_the_file(home, tmp_path):
    config = tiny(vectors(home), student="tiny_runs:faulty", student_options={}, max_skips=4, **given_teacher(home))
    with pytest.raises(Diverged):
        Trainer(config, tmp_path / "run").fit()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [strict(line)["task_loss"] for line in lines] == [None, None]
    strict((tmp_path / "run" / "summary.json").read_text())


# --- displays


class Recorder:
    def __init__(self):
        self.calls = []

    def start(self, title, *, steps, done):
        self.calls.append(("start", title, steps, done))

    def step(self):
        self.calls.append(("step",))

    def show(self, record):
        self.calls.append(("show", record["kind"], record["step"]))

    def stop(self):
        self.calls.append(("stop",))


def test_a_display_sees_every_step_and_record_and_the_end(home, tmp_path):
    config = tiny(vectors(home), trainer="dot", epochs=1, **given_teacher(home))
    display = Recorder()
    Trainer(config, tmp_path / "run", display=display).fit()
    begin, step, end = ("start", "mlp, kd, dot", STEPS, 0), ("step",), ("stop",)
    half = [step, step, ("show", "train", 2)]
    assert display.calls == [begin, *half, step, step, ("show", "train", 4), ("show", "eval", 4), end]


def test_a_display_is_stopped_when_the_run_is_and_told_where_it_goes_on(home, tmp_path):
    changes = {"student": "tiny_runs:smooth", "student_options": {}, **given_teacher(home)}
    trainer = Trainer(tiny(vectors(home), **changes), tmp_path / "run", display=(first := Recorder()))
    with before_each_step(signal_in(3, signal.SIGTERM)), pytest.raises(Interrupted):
        trainer.fit()
    Trainer.resume(tmp_path / "run", display=(second := Recorder())).fit()
    assert first.calls[-1] == second.calls[-1] == ("stop",)
    assert second.calls[0] == ("start", "tiny_runs:smooth, kd, dot", 2 * STEPS, 3)
    assert [display.calls.count(("step",)) for display in (first, second)] == [3, 2 * STEPS - 3]


def console(**options):
    return Console(file=io.StringIO(), width=150, **options)


def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines():
    assert isinstance(display_for(console(force_terminal=True)), Bar)
    assert isinstance(display_for(console(force_terminal=False)), Lines)


def test_lines_are_plain_and_one_an_epoch(home, tmp_path):
    config = tiny(vectors(home), trainer="dot", **given_teacher(home))
    where = console()
    Trainer(config, tmp_path / "run", display=Lines(where)).fit()
    lines = where.file.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0] == "mlp, kd, dot: 8 steps"
    for epoch, line in enumerate(lines[1:], 1):
        assert line.startswith(f"epoch {epoch:3d}  task ")
        assert " distill " in line
        assert "images/s  val " in line
    assert "\x1b" not in where.file.getvalue()


def test_lines_say_where_a_run_is_resumed_and_take_any_text_as_it_is():
    where = console()
    lines = Lines(where)
    lines.start("module:[red]attr[/red], kd, dot", steps=10, done=4)
    lines.show(TRAIN_RECORD)
    lines.show(EVAL_RECORD)
    lines.stop()
    told = "epoch   1  task 1.250 distill 0.500 accuracy 87.5% 1234 images/s  val 50.0% test 25.0%"
    assert where.file.getvalue().splitlines() == ["module:[red]attr[/red], kd, dot: 10 steps, resumed at 4", told]


def test_the_bar_shows_steps_losses_accuracy_rate_and_time_left():
    where = console(force_terminal=True)
    bar = Bar(where)
    bar.start("my [own] model, kd, dot", steps=10, done=4)
    bar.step()
    bar.show(TRAIN_RECORD)
    bar.show(EVAL_RECORD)
    bar.stop()
    text = where.file.getvalue()
    for part in ("my [own] model, kd, dot", "5/10", "task 1.250", "distill 0.500", "87.5%", "images/s", "test 25.0%"):
        assert part in text
    assert "-:--:--" in text or "0:00:0" in text


def test_a_bar_serves_the_teachers_run_and_then_the_students(home, tmp_path):
    where = console(force_terminal=True)
    Trainer(tiny(vectors(home), trainer="dot", epochs=1), tmp_path / "run", display=Bar(where)).fit()
    text = where.file.getvalue()
    assert "mlp, none, sgd" in text
    assert "mlp, kd, dot" in text
    assert text.count("4/4") >= 2


# --- TensorBoard


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_every_figure_under_its_path(home, tmp_path):
    pytest.importorskip("tensorboard")
    config = tiny(vectors(home), trainer="dot", tensorboard=True, ema=0.9, **given_teacher(home))
    Trainer(config, tmp_path / "run").fit()
    (events,) = (tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*")
    written = events.read_bytes()
    for name in (b"task_loss", b"distill_loss", b"lr", b"val/accuracy", b"test/distill_loss", b"ema/test/accuracy"):
        assert name in written


def test_without_tensorboard_the_option_names_what_to_install(home, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    config = tiny(vectors(home), trainer="dot", tensorboard=True, **given_teacher(home))
    with pytest.raises(
        ImportError, match=r"tensorboard=true needs the package tensorboard: pip install 'dotkd\[plots\]'"
    ):
        Trainer(config, tmp_path / "run").fit()
