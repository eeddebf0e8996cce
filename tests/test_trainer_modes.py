"""The contract of the ways in which `dotkd.Trainer` takes a step.

- Micro-batches equal the batch; the average of the weights, and of the buffers, equals a literal one.
- bf16 and fp16 train as float32 does, with float32 weights; a compiled student trains as a plain one.
- No step waits for the device, whatever is switched on: nothing in it reads a tensor on the host.
(Schedules, optimizers, smoothing and clipping are compared with a literal loop in test_schedule.)
"""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dotkd import Trainer
from dotkd.stepper import Stepper
from literal_loop import literal_run
from tiny_runs import (
    FEATURES,
    Net,
    everything,
    given_teacher,
    images,
    records,
    tiny,
    vectors,
)

SMOOTH = {"student": "tiny_runs:smooth", "student_options": {}}


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def test_micro_batches_equal_the_batch(home, tmp_path):
    config = tiny(vectors(home), trainer="dot", student="tiny_runs:double_smooth", student_options={})
    config = config.replace(**given_teacher(home))
    for count in (1, 2, 8):
        Trainer(config.replace(accumulate=count), tmp_path / str(count)).fit()
    whole = load_file(tmp_path / "1" / "student.safetensors")
    for count in (2, 8):
        for name, value in load_file(tmp_path / str(count) / "student.safetensors").items():
            torch.testing.assert_close(value, whole[name], rtol=0, atol=1e-6)
        for record, other in zip(records(tmp_path / "1"), records(tmp_path / str(count)), strict=True):
            assert {k: other[k] for k in ("step", "epoch")} == {k: record[k] for k in ("step", "epoch")}
            if record["kind"] == "train":
                for key in ("task_loss", "distill_loss", "accuracy"):
                    assert other[key] == pytest.approx(record[key], abs=1e-5)


def test_the_average_is_the_literal_one_of_weights_and_buffers(home, tmp_path):
    given = given_teacher(home)
    config = tiny(vectors(home), trainer="sgd", student="tiny_runs:double", student_options={}, ema=0.7, **given)
    trainer = Trainer(config.replace(schedule="constant"), tmp_path / "run")
    student, known = copy.deepcopy(trainer.student), copy.deepcopy(trainer.teacher).eval()
    trainer.fit()
    states = list(literal_run(config, student, known, lambda step: config.lr))
    expected = states[0]
    for state in states[1:]:
        for name, value in state.items():
            if value.is_floating_point():
                expected[name] = 0.7 * expected[name] + 0.3 * value
    for name, value in load_file(tmp_path / "run" / "student_ema.safetensors").items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("clip_norm", [None, 0.2])
@pytest.mark.parametrize("trainer", ["dot", "adamw"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_close_to_single(home, teacher, tmp_path, precision, trainer, clip_norm):
    # Clipping must not be of the gradients as the loss scale left them.
    config = tiny(vectors(home), trainer=trainer, lr=0.02, epochs=4, clip_norm=clip_norm, **SMOOTH, **teacher)
    full = Trainer(config, tmp_path / "fp32").fit()
    half = Trainer(config.replace(precision=precision), tmp_path / precision).fit()
    assert half["losses"]["test"] == pytest.approx(full["losses"]["test"], rel=0.05)
    weights = load_file(tmp_path / precision / "student.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert (
        everything(tmp_path / precision)["student.safetensors"] != everything(tmp_path / "fp32")["student.safetensors"]
    )


@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_compiled_student_trains_as_a_plain_one_and_leaves_its_names(home, teacher, tmp_path):
    config = tiny(vectors(home), trainer="dot", epochs=1, **SMOOTH, **teacher)
    Trainer(config, tmp_path / "plain").fit()
    Trainer(config.replace(compile=True), tmp_path / "compiled").fit()
    plain, compiled = (load_file(tmp_path / name / "student.safetensors") for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys() == Net(FEATURES).state_dict().keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=0, atol=1e-5)


# --- no waiting


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for the values of a tensor, by operation."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero", "repeat_interleave")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if by_mask or name in self.READS:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class HostCopies(TorchFunctionMode):
    """Counts the copies to the host that a CPU tensor makes without any operation."""

    COPIES = ("tolist", "numpy", "cpu", "__array__")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in self.COPIES:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


def reads_per_step(config, out, monkeypatch):
    """What each training step of the student read on the host."""
    steps, step = [], Stepper.step

    def watched(self, batch, number, **options):
        with HostCopies() as copies, HostReads() as reads:
            step(self, batch, number, **options)
        steps.append(copies.found + reads.found)

    monkeypatch.setattr(Stepper, "step", watched)
    Trainer(config, out).fit()
    return steps


# Each is left alone with the others' defaults, and all come together at the end.
STEP_KINDS = {
    "plain": {},
    "clipped": {"clip_norm": 0.1},
    "live teacher": {"augment": "crop-flip"},
    "micro-batches": {"accumulate": 4},
    "smoothed": {"label_smoothing": 0.1},
    "bf16": {"precision": "bf16"},
    "low memory": {"low_memory": True},
    "checkpointed": {"activation_checkpointing": True},
    "dkd": {"method": "dkd"},
    "jsd": {"method": "jsd"},
    "sgd": {"trainer": "sgd"},
    "adamw": {"trainer": "adamw"},
    "dot-adamw": {"trainer": "dot-adamw"},
    "without teacher": {"method": "none", "trainer": "sgd"},
    "all": {"clip_norm": 0.1, "augment": "crop-flip", "accumulate": 2, "label_smoothing": 0.1, "precision": "fp16"},
}


@pytest.mark.parametrize("kind", STEP_KINDS)
def test_no_step_reads_a_tensor_on_the_host(image_teacher, tmp_path, monkeypatch, kind):
    config = image_teacher.replace(**STEP_KINDS[kind])
    # dkd checks the range of targets that lie on a CPU, and only there.
    allowed = ["_local_scalar_dense"] * 2 if kind == "dkd" else []
    assert reads_per_step(config, tmp_path / "run", monkeypatch) == [allowed] * 4


def test_averaging_reads_nothing_but_its_own_counter(image_teacher, tmp_path, monkeypatch):
    # torch's AveragedModel keeps that counter on the CPU wherever the model is, so reading it never waits.
    steps = reads_per_step(image_teacher.replace(ema=0.9), tmp_path / "run", monkeypatch)
    assert len(steps) == 4
    assert {name for reads in steps for name in reads} <= {"_local_scalar_dense"}
    assert max(len(reads) for reads in steps) <= 3


@pytest.fixture(scope="module")
def image_teacher(home):
    config = tiny(images(home), epochs=1, trainer="dot", teacher="tiny_runs:dropout", student="mlp")
    Trainer(config, home / "for reads").fit()
    return config.replace(teacher_weights=str(home / "for reads" / "teacher"))


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.item(),
        lambda x: bool(x > 0),
        lambda x: float(x.detach()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.detach().numpy(),
        lambda x: x.nonzero(),
        lambda x: x[None][(x > 0)[None]],
        lambda x: torch.equal(x, x),
    ],
)
def test_a_read_that_somebody_added_would_be_seen(image_teacher, tmp_path, monkeypatch, read):
    losses = Stepper._losses

    def reading(self, *args):
        found = losses(self, *args)
        read(found[0]["distill"])
        return found

    monkeypatch.setattr(Stepper, "_losses", reading)
    steps = reads_per_step(image_teacher, tmp_path / "run", monkeypatch)
    assert len(steps) == 4
    assert all(len(reads) == 1 for reads in steps)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", STEP_KINDS)
def test_no_step_waits_for_the_gpu(image_teacher, tmp_path, monkeypatch, kind):
    step = Stepper.step

    def watched(self, batch, number, **options):
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(self, batch, number, **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Stepper, "step", watched)
    Trainer(image_teacher.replace(device="cuda", **STEP_KINDS[kind]), tmp_path / "run").fit()
