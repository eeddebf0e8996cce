"""Steps compiled as a whole (`dotkd.whole_step`). The contract:

- Losses, logits, the gradient of every stream and what a step does to buffers are those of the plain step; so are whole
  runs: every method on logits, mixed samples, micro-batches, loss scale, weights that grow, dropout.
- A parameter that a loss does not reach has no gradient from it, and keeps its rule in the optimizer.
- Compiled whole are models and methods known to this library, on logits; else the student is, alone.
- What could not be right in every step is refused.

Recording and compiling are two things: but for the last tests, what was recorded runs as it is.
"""

from __future__ import annotations

import copy
import random
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import dotkd
from dotkd import Trainer
from dotkd.stepper import compiles_whole
from dotkd.whole_step import Computed, WholeStep
from tiny_runs import CLASSES, images, records, tiny, vectors

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture
def recorded(monkeypatch):
    """Runs what was recorded without compiling it; a list of the recordings."""
    made = []

    def as_it_is(graph, **options):
        assert options.pop("fullgraph")
        made.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", as_it_is)
    return made


class Uneven(nn.Module):
    """Batch norm, dropout, and a parameter each that both, one and none of the losses below reach."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, CLASSES))
        self.task_only, self.distill_only, self.never = (nn.Parameter(torch.ones(2) * k) for k in (1, 2, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body(inputs)


def losses_of(model: Uneven, inputs: Tensor, targets: Tensor, share: Tensor | None) -> Computed:
    logits = model(inputs)
    task = F.cross_entropy(logits, targets) + model.task_only.square().sum()
    distill = logits.square().mean() * (1 if share is None else share) + model.distill_only.exp().sum()
    return Computed({"task": task, "distill": distill}, {"task": 0.1 * task, "distill": 0.9 * distill}, logits)


def batch(size: int = 12) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(size)
    return torch.randn(size, 6, generator=source), torch.randint(CLASSES, (size,), generator=source)


# --- one step


@pytest.mark.parametrize("keep", [True, False])
def test_a_call_is_the_plain_step(recorded, keep) -> None:
    torch.manual_seed(0)
    model = Uneven()
    plain, params = copy.deepcopy(model), list(model.parameters())
    whole = WholeStep(lambda *given: losses_of(model, *given), [model], params, keep=keep)
    for number, size in enumerate((12, 12, 5, 12)):
        inputs, targets = batch(size)
        share, seed = torch.tensor(0.25 * (number + 1)), torch.tensor(8.0)
        torch.manual_seed(number)
        computed, grads = whole(seed, inputs, targets, share)
        torch.manual_seed(number)
        expected = losses_of(plain, inputs, targets, share)
        for stream in ("task", "distill"):
            torch.testing.assert_close(computed.losses[stream], expected.losses[stream].detach(), rtol=0, atol=0)
            torch.testing.assert_close(computed.streams[stream], expected.streams[stream].detach(), rtol=0, atol=0)
            wanted = torch.autograd.grad(
                8.0 * expected.streams[stream], list(plain.parameters()), retain_graph=True, allow_unused=True
            )
            assert [grad is None for grad in grads[stream]] == [grad is None for grad in wanted]
            for grad, other in zip(grads[stream], wanted, strict=True):
                if other is not None:
                    torch.testing.assert_close(grad, other, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(computed.logits, expected.logits.detach(), rtol=0, atol=0)
        assert not any(t.requires_grad for t in (computed.logits, *computed.losses.values()))
        for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert len(recorded) == 2, "once for each shape"
    names = [name for name, _ in model.named_parameters()]
    missing = {s: {n for n, grad in zip(names, grads[s], strict=True) if grad is None} for s in grads}
    assert missing == {"task": {"distill_only", "never"}, "distill": {"task_only", "never"}}


def test_a_parameter_that_one_loss_reaches_keeps_its_rule(recorded) -> None:
    torch.manual_seed(0)
    model = Uneven()
    plain = copy.deepcopy(model)
    ours, theirs = (dotkd.DOT(m.parameters(), lr=0.1, weight_decay=0.01) for m in (model, plain))
    whole = WholeStep(lambda *given: losses_of(model, *given), [model], list(model.parameters()), keep=False)
    for number in range(3):
        torch.manual_seed(number)
        computed, grads = whole(torch.ones(()), *batch(), None)
        ours.fill(computed.streams, grads)
        torch.manual_seed(number)
        theirs.backward(**losses_of(plain, *batch(), None).streams)
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
    for (name, p), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, other, rtol=1e-6, atol=1e-7, msg=name)
    assert torch.equal(model.never, torch.full((2,), 3.0))


def test_a_branch_on_values_is_refused(recorded) -> None:
    model = nn.Linear(6, CLASSES)

    def compute(inputs: Tensor) -> Computed:
        loss = model(inputs).sum()
        loss = loss if loss > 0 else -loss
        return Computed({"task": loss}, {"task": loss}, inputs)

    with pytest.raises(Exception, match="data-dependent"):
        WholeStep(compute, [model], list(model.parameters()), keep=False)(torch.ones(()), batch()[0])


def test_random_numbers_of_python_are_refused(recorded) -> None:
    model = nn.Linear(6, CLASSES)

    def compute(inputs: Tensor) -> Computed:
        loss = model(inputs).sum() * random.random()
        return Computed({"task": loss}, {"task": loss}, inputs)

    with pytest.raises(
        RuntimeError, match="the model draws from Python's `random`, which a compiled step would do once"
    ):
        WholeStep(compute, [model], list(model.parameters()), keep=False)(torch.ones(()), batch()[0])


# --- whole runs

RUNS = {
    "kd, known teacher": {},
    "kd, live teacher": {"augment": "crop-flip"},
    "dkd, its weight growing": {"method": "dkd", "distill_warmup_epochs": 1.5},
    "nkd": {"method": "nkd"},
    "mixup": {"mix": "mixup", "method": "dist"},
    "two views": {"method": "crld", "augment": "crop-flip"},
    "micro-batches, scaled and clipped": {"accumulate": 2, "precision": "fp16", "clip_norm": 0.5},
    "one stream": {"trainer": "sgd", "method": "jsd"},
    "adamw": {"trainer": "dot-adamw", "lr": 0.01, "ema": 0.8},
    "no teacher": {"trainer": "sgd", "method": "none", "label_smoothing": 0.1},
}


@pytest.fixture(scope="module")
def image_run(home):
    options = {"width": 8, "depth": 1}
    config = tiny(images(home), epochs=1, trainer="dot", teacher="mlp", student="mlp", student_options=options)
    Trainer(config, home / "taught").fit()
    return config.replace(teacher_weights=str(home / "taught" / "teacher"), epochs=2)


@pytest.mark.parametrize("kind", RUNS)
def test_a_compiled_run_is_the_plain_one(image_run, tmp_path, recorded, kind) -> None:
    config = image_run.replace(**RUNS[kind])
    Trainer(config, tmp_path / "plain").fit()
    summary = Trainer(config.replace(compile=True), tmp_path / "compiled").fit()
    assert summary["execution"]["compile"] is True
    assert len(recorded) == 1
    plain, compiled = (load_file(tmp_path / name / "student.safetensors") for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=2e-5)
    for record, other in zip(records(tmp_path / "compiled"), records(tmp_path / "plain"), strict=True):
        if record["kind"] == "train":
            for key in ("task_loss", "distill_loss", "accuracy", "skipped_steps"):
                assert (record[key] is None) == (other[key] is None)
                assert record[key] is None or record[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "whole"),
    [
        ({}, True),
        ({"method": "none", "trainer": "sgd"}, True),
        ({"method": "deepkd"}, False),  # its mask grows
        ({"method": "rkd"}, False),
        ({"student": "tiny_runs:smooth", "student_options": {}}, False),
        ({"method": "loss_oracles:kd"}, False),
        ({"teacher_learns": ("head",)}, False),
    ],
)
def test_what_is_compiled_whole(image_run, changes, whole) -> None:
    config = image_run.replace(**changes)
    distiller = None
    if config.method != "none":
        student, teacher = (
            nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, CLASSES)) for _ in range(2)
        )
        method = (lambda s, t: F.mse_loss(s, t)) if ":" in config.method else config.method
        distiller = dotkd.Distiller(student, teacher, method=method, temperature=None, example=torch.zeros(2, 3, 8, 8))
    assert compiles_whole(config, distiller) is whole


# --- compiled in earnest

COMPILER = pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler")


@COMPILER
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*TF32.*:UserWarning")
def test_the_compiler_changes_rounding_alone(home, tmp_path) -> None:
    config = tiny(vectors(home), trainer="dot", epochs=1, teacher="mlp", teacher_epochs=1)
    config = config.replace(student_options={"width": 8, "depth": 1}, teacher_options={"width": 8, "depth": 1})
    Trainer(config, tmp_path / "plain").fit()
    config = config.replace(teacher_weights=str(tmp_path / "plain" / "teacher"))
    Trainer(config.replace(compile=True), tmp_path / "compiled").fit()
    plain, compiled = (load_file(tmp_path / name / "student.safetensors") for name in ("plain", "compiled"))
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", RUNS)
def test_a_recorded_graph_of_a_gpu_is_the_plain_run(image_run, tmp_path, kind) -> None:
    config = image_run.replace(**{"precision": "fp32", **RUNS[kind], "device": "cuda"})
    Trainer(config, tmp_path / "plain").fit()
    Trainer(config.replace(compile=True), tmp_path / "compiled").fit()
    plain, compiled = (load_file(tmp_path / name / "student.safetensors") for name in ("plain", "compiled"))
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-2, atol=1e-3)
