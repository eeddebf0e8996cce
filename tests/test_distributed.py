"""The contract of a training in several processes (gloo, on the CPU), held against one process on the whole batches.

- In float64, without batch norm and random draws, 2 and 4 processes end with the weights of one to 1e-12, and with its
  records: SGD, DOT and its controls, DeepKD, AdamW, clipping, an average, micro-batches, a projector that the
  distillation loss alone reaches, a teacher that is trained first or is the student's own average.
- A method that relates the samples of a batch sees each process's part: n processes are one with accumulate=n.
- What the memories of CRD, the averages of CORSD and the margins of OFD hold is what the whole batch makes of them.
- All processes hold the same weights and buffers, of batch norm too: running statistics are those of the main one.
- A loss that is not finite in one process is a skipped step in all, and what ends the run says where it was.
- `parallel=fsdp` spreads the weights of student and teacher, to the same result and the same files; methods that look
  inside are refused.
- A run stopped in n processes goes on in m, exact to rounding, with a warning; what is random then is drawn anew.
- A batch that cannot be shared, configs that differ and a folder with another run are refused in all processes.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from dotkd import Trainer
from many_processes import error, train_together
from tiny_runs import BATCH, TRAIN, given_teacher, records, stopped_at, tiny, vectors

EXACT = {
    "dot": {"nesterov": True},
    "sgd": {"trainer": "sgd", "ema": 0.8},
    "dot-normalized": {"trainer": "dot-normalized"},
    "deepkd": {"trainer": "deepkd", "method": "deepkd"},
    "dot-adamw": {"trainer": "dot-adamw", "lr": 0.01},
    "clipped": {"clip_norm": 0.3},
    "micro-batches": {"accumulate": 3},
    "projector": {"method": "tiny_runs:DoubleHint"},
    "no teacher": {"trainer": "sgd", "method": "none"},
    "self": {"teacher": "self", "teacher_options": {}, "teacher_weights": None, "ema": 0.5},
    "teacher first": {"teacher": "tiny_runs:double_smooth", "teacher_options": {}, "teacher_weights": None},
}
SHARDED = {
    "dot": {"nesterov": True},
    "dot-adamw": {"trainer": "dot-adamw", "lr": 0.01},
    "clipped": {"clip_norm": 0.3},
    "micro-batches": {"accumulate": 3},
    "teacher first": EXACT["teacher first"],
}
OF_FOUR = ("dot", "dot-adamw", "micro-batches")
# One step on all samples: nothing that is drawn at random has come into what is looked at.
ONE_STEP = {"student": "tiny_runs:smooth", "batch_size": TRAIN, "epochs": 1}
STATES = {
    "crd": {"method": "crd", **ONE_STEP},
    "corsd": {"method": "corsd", "student_features": ["inner.1", "inner"], **ONE_STEP},
    "ofd": {"method": "ofd", "student_features": ["inner.1"], "teacher_features": ["hidden.0.1"], **ONE_STEP},
}
BY_THE_BATCH = {"crd": ("student_memory.rows", "teacher_memory.rows"), "corsd": ("class_means",)}
BY_THE_BATCH["ofd"] = ("margins.0.count", "margins.0.total")
OTHERS = {
    "related": {"method": "rkd", "student": "tiny_runs:smooth"},
    "batch norm": {"student": "tiny_runs:dropout", "ema": 0.8},
    "not finite": {"student": "tiny_runs:faulty", "student_options": {"first": 2, "last": 3, "rank": 1}},
    "diverged": {"student": "tiny_runs:faulty", "student_options": {"first": 4, "rank": 1}, "max_skips": 2},
    "odd": {"batch_size": BATCH + 3},
}
STOPPED = {"log_every": 1, "ema": 0.8}  # so that a signal is noticed after the step that it came in


def config(home, **changes):
    values = {"student": "tiny_runs:double_smooth", "student_options": {}, "trainer": "dot", **given_teacher(home)}
    return tiny(vectors(home), **{**values, **changes})


def job(home, out, **changes):
    return {"out": str(home / out), "config": config(home, **changes).model_dump()}


@pytest.fixture(scope="module")
def many(home):
    """Where runs of 2 and 4 processes are, as "2 NAME" and "4 NAME"."""
    jobs = [job(home, f"2 {name}", **changes) for name, changes in {**EXACT, **STATES, **OTHERS}.items()]
    jobs += [job(home, f"fsdp {name}", parallel="fsdp", **changes) for name, changes in SHARDED.items()]
    jobs.append(job(home, "fsdp stopped", parallel="fsdp", log_every=1) | {"stop": [1, 6]})
    jobs.append({"out": str(home / "fsdp stopped"), "resume": True})
    jobs.append(job(home, "fsdp for one", parallel="fsdp", log_every=1) | {"stop": [0, 3]})
    jobs.append(job(home, "2 dot", seed=3))
    jobs.append(job(home, "2 stopped", **STOPPED) | {"stop": [1, 6]})
    differing = [job(home, "", **changes)["config"] for changes in ({}, {"lr": 0.01, "seed": 3})]
    jobs.append({"out": str(home / "2 differing"), "config": differing})
    stopped_at(6, config(home, **STOPPED), home / "1 stopped")
    jobs.append({"out": str(home / "1 stopped"), "resume": True})
    train_together(2, jobs, home)
    train_together(4, [job(home, f"4 {name}", **EXACT[name]) for name in OF_FOUR], home)
    return home


@pytest.fixture(scope="module")
def one(home):
    """What one process leaves, made when it is asked for."""

    def run(name, **changes):
        if not (home / f"1 {name}").exists():
            Trainer(config(home, **changes), home / f"1 {name}").fit()
        return home / f"1 {name}"

    return run


def assert_alike(many, one, *, tolerance):
    """Weights, the evaluations of every epoch, the means of every record, and what the summary says."""
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names == sorted(path.name for path in many.glob("*.safetensors"))
    for name in names:
        assert_close(load_file(many / name), load_file(one / name), rtol=0, atol=tolerance)
    # Records are sums in float32.
    pairs = list(zip(records(many), records(one), strict=True))
    alike = [_as_known(theirs, ours) for ours, theirs in pairs]
    assert_close(_numbers([ours for ours, _ in pairs]), _numbers(alike), rtol=1e-5, atol=1e-6)
    summaries = [json.loads((out / "summary.json").read_text()) for out in (many, one)]
    compared = ("test_accuracy", "val_accuracy", "losses", "teacher_test_accuracy", "steps", "skipped_steps")
    assert_close(*([_numbers(summary[key]) for key in compared] for summary in summaries), rtol=1e-5, atol=1e-6)


def _as_known(record, other):
    """A record without what is not measured where each process has gradients of its own, as in `other`."""
    if other.get("diagnostics", {}).get("grad_norm") != {}:
        return record
    measured = record["diagnostics"]
    unknown = {"grad_norm": {}, "cosine": {}, "snr": dict.fromkeys(measured["snr"])}
    if not other["diagnostics"]["update_share"]:  # Nesterov's form needs the gradients for them
        unknown["update_share"] = {}
    return {**record, "diagnostics": {**measured, **unknown}}


def _numbers(entry):
    """Nested values with None and text as numbers, for assert_close."""
    if isinstance(entry, dict):
        return {key: _numbers(value) for key, value in entry.items()}
    if isinstance(entry, list):
        return [_numbers(value) for value in entry]
    return float(entry) if isinstance(entry, (int, float)) else float(len(entry or ""))


@pytest.mark.parametrize("name", EXACT)
def test_two_processes_are_one(many, one, name):
    assert_alike(many / f"2 {name}", one(name, **EXACT[name]), tolerance=1e-12)


@pytest.mark.parametrize("name", SHARDED)
def test_two_processes_with_sharded_weights_are_one(many, one, name):
    assert_alike(many / f"fsdp {name}", one(name, **EXACT[name]), tolerance=1e-12)


def test_a_sharded_run_goes_on_from_a_checkpoint_that_anybody_can_read(many, one):
    whole = one("whole without average", log_every=1)
    assert_alike(many / "fsdp stopped", whole, tolerance=1e-12)
    with pytest.warns(RuntimeWarning, match="a run of 2 goes on in 1 processes"):
        Trainer.resume(many / "fsdp for one").fit()
    assert_alike(many / "fsdp for one", whole, tolerance=1e-12)


@pytest.mark.parametrize(
    ("name", "known"),
    [("2 dot", False), ("2 sgd", False), ("2 clipped", True), ("2 dot-adamw", True), ("fsdp dot", True)],
)
def test_gradients_are_measured_where_all_processes_have_the_same(many, name, known):
    measured = [record["diagnostics"] for record in records(many / name) if record["kind"] == "train"]
    assert measured
    assert all(bool(entry["grad_norm"]) == known and entry["buffer_norm"] for entry in measured)
    assert all(bool(entry["update_share"]) == (name != "2 dot") for entry in measured)


@pytest.mark.parametrize("name", OF_FOUR)
def test_four_processes_are_one(many, one, name):
    assert_alike(many / f"4 {name}", one(name, **EXACT[name]), tolerance=1e-12)


def test_a_method_on_pairs_sees_each_process_s_part(many, one):
    alike = one("related in parts", **OTHERS["related"], accumulate=2)
    assert_close(_weights(many / "2 related"), _weights(alike), rtol=1e-5, atol=1e-6)
    whole = one("related", **OTHERS["related"])
    assert not torch.allclose(_weights(whole)["head.weight"], _weights(alike)["head.weight"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", STATES)
def test_what_a_method_remembers_is_of_the_whole_batch(many, one, name):
    held = [load_file(out / "method.safetensors") for out in (many / f"2 {name}", one(name, **STATES[name]))]
    for buffer in BY_THE_BATCH[name]:
        assert_close(*(state[f"method.{buffer}"] for state in held), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["dot", "projector", "crd", "corsd", "ofd", "batch norm"])
def test_all_processes_hold_the_same(many, name):
    first, second = ((many / f"2 {name}" / f"held-{rank}.txt").read_text() for rank in (0, 1))
    assert first == second


def test_one_loss_that_is_not_finite_is_a_skipped_step_in_all(many, one):
    alone = one("not finite", **OTHERS["not finite"])
    assert json.loads((many / "2 not finite" / "summary.json").read_text())["skipped_steps"] == 2
    assert_close(_weights(many / "2 not finite"), _weights(alone), rtol=0, atol=1e-6)
    told = "Diverged: 3 steps in a row skipped since step 4: the loss of stream 'task' is not finite"
    for rank in (0, 1):  # also in the process whose own losses are in order
        assert error(many / "2 diverged", rank).startswith(told)


def test_a_run_of_two_goes_on_in_one_and_the_other_way_round(many, one):
    assert "Interrupted: SIGTERM at step 6: saved" in error(many / "2 stopped")
    assert "Interrupted: SIGTERM at step 6: saved" in error(many / "2 stopped", 1)
    whole = one("whole", **STOPPED)
    with pytest.warns(RuntimeWarning, match=r"a run of 2 goes on in 1 processes: .* is drawn anew"):
        Trainer.resume(many / "2 stopped").fit()
    assert_alike(many / "2 stopped", whole, tolerance=1e-12)
    assert_alike(many / "1 stopped", whole, tolerance=1e-12)


def test_what_does_not_fit_is_refused_in_all_processes(many):
    told = "batch_size: expected a multiple of 2 processes x accumulate 1 = 2, got 27; nearest: 26 or 28"
    for rank in (0, 1):
        assert error(many / "2 odd", rank) == f"ValueError: {told}"
        assert error(many / "2 dot", rank).startswith("RunExists: ")
        assert "processes, but those of 0 and 1 differ: lr: 0.05 and 0.01; seed: 0 and 3" in error(
            many / "2 differing", rank
        )


def test_a_trainer_that_is_one_of_several_needs_a_group(home, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"open `with dotkd.distributed.process_group\(\):` around the Trainer"):
        Trainer(config(home), home / "none")


def _weights(out):
    return load_file(out / "student.safetensors")
