"""The contract of the measures of `dotkd bench`.

- All sides of a ratio do the same work: their steps end at the same weights.
- Each measure gives its quantities; the caller's threads and random numbers are as they were before.
- Operations are counted as arithmetic counts them, and the model is left alone.
- Waiting is what passes between asking for a batch and having it.
- Plain DistributedDataParallel sends the gradients and the batch statistics; DOT sends as much.
"""

from __future__ import annotations

import functools
import itertools
import json

import pytest
import torch
from torch import nn

import dotkd.bench
from dotkd import models
from dotkd.bench import MEASURES, Conditions, cached, communication, student_step, waiting
from dotkd.bench.flops import flops
from dotkd.bench.student_step import Step
from dotkd.bench.update import resnet50_shapes
from optim_cases import assert_close, identical

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    """The measures as they are, on students and batches that take milliseconds."""
    monkeypatch.setattr(student_step, "STUDENT", "resnet8")
    for module in (student_step, cached, waiting):
        monkeypatch.setattr(module, "BATCH", 8)
    for module, name in ((cached, "STUDENT"), (cached, "TEACHER"), (waiting, "STUDENT")):
        monkeypatch.setattr(module, name, "resnet8")
    monkeypatch.setattr(waiting, "IMAGES", 100)
    monkeypatch.setattr(cached, "RECORDS", 100)
    # Processes of its own would take seconds to start.
    in_process = functools.partial(waiting.published_batches, workers=0)
    monkeypatch.setattr(waiting, "published_batches", in_process)


# --- one step -------------------------------------------------------------------------------------------------------


def started(*kinds: str) -> list[Step]:
    steps = []
    for kind in kinds:
        with Conditions(CPU).held():
            steps.append(Step(CPU, kind))
    return steps


@pytest.mark.usefixtures("small")
def test_all_sides_take_the_same_first_step():
    steps = started("dot", "plain", "published")
    ours, *others = (list(step.student.parameters()) for step in steps)
    start = [p.detach().clone() for p in ours]
    for step in steps:
        step.run()
    for other in others:  # on the first step a momentum has nothing to remember yet
        assert_close(ours, other, 1e-5)
    assert not identical(ours, start)


@pytest.mark.usefixtures("small")
def test_the_published_loop_goes_the_way_of_dot():
    steps = started("dot", "published", "plain")
    for step in steps:
        step.inputs.mul_(0.1)
        for _ in range(3):
            step.run()
    ours, published, plain = (torch.cat([p.flatten() for p in step.student.parameters()]) for step in steps)
    assert (ours - published).norm() < 1e-3 * (ours - plain).norm()


# --- the measures ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", [name for name in MEASURES if name != "ddp_bytes"])
def test_measure_gives_all_quantities(name):
    random = torch.get_rng_state()
    found = MEASURES[name](Conditions(CPU, rounds=4))
    assert torch.equal(torch.get_rng_state(), random)
    assert found.ratio.n == found.ours.n == found.other.n == (1 if name in ("peak_memory", "low_memory") else 4)
    assert found.official is not None
    assert found.official.n == found.ratio.n
    assert found.official.median > 0
    assert found.ours.median > 0
    assert found.other.median > 0
    assert found.ratio.median == pytest.approx(found.ours.median / found.other.median, rel=0.9)
    assert found.reached in (True, False)
    json.dumps(found.as_json(), allow_nan=False)


@pytest.mark.usefixtures("small")
def test_memory_of_dot_has_one_gradient_and_one_buffer_more():
    found = dotkd.bench.peak_memory(Conditions(CPU))
    (step,) = started("dot")
    size = sum(p.nbytes for p in step.student.parameters())
    assert found.ours.median - found.other.median >= size
    assert found.limit is not None
    assert 1 < found.limit < found.ratio.median < 2
    low = dotkd.bench.low_memory(Conditions(CPU))
    assert low.other == found.other
    assert low.official == found.official
    assert low.ours.median < found.ours.median


def test_the_cache_that_is_read_holds_what_was_put_in(tmp_path):
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    look_up = cached.filled_cache(tmp_path, logits, CPU)
    index = torch.tensor([49, 0, 7, 7])
    assert torch.equal(look_up(torch.zeros(4, 3), index), logits[index].half().float())


@pytest.mark.usefixtures("small")
def test_the_limit_of_a_cache_is_the_share_of_the_student():
    # Teacher and student are the same small model here: 1 + 2 + 2 of 1 + 2 + 2 + 1 forward passes, about.
    assert dotkd.bench.cached_over_online(Conditions(CPU, rounds=1)).limit == pytest.approx(5 / 6, abs=0.01)


def test_a_step_sends_what_vanilla_ddp_sends():
    found = dotkd.bench.ddp_bytes(Conditions(CPU))
    student = models.build(communication.STUDENT, num_classes=student_step.CLASSES, input_shape=student_step.SHAPE)
    gradients = sum(p.nbytes for p in student.parameters())
    # DDP sends the floating-point buffers of rank 0 as one block, and the counters of batches one by one or as another.
    statistics = sum(b.nbytes for b in student.buffers())
    assert found.other.median == gradients + statistics
    assert found.ratio == (1.0, None, 1)
    assert found.reached is True


def test_collectives_are_counted_in_bytes():
    inputs = {"Input Dims": [[3, 5], [2]], "Input type": ["float", "long int"]}
    assert communication._bytes_of(inputs) == 3 * 5 * 4 + 2 * 8


def test_waiting_is_the_time_between_asking_and_having(monkeypatch):
    now = itertools.count()  # every look at the clock is a second later
    monkeypatch.setattr(waiting.time, "perf_counter", lambda: float(next(now)))
    monkeypatch.setattr(waiting, "STUDENT", "resnet8")
    monkeypatch.setattr(waiting, "BATCH", 2)

    def slow():
        while True:
            next(now), next(now)  # two seconds to make a batch
            yield torch.zeros(2, *student_step.SHAPE), torch.tensor([0, 1])

    # Looks at 0; 1 and 4, 5 and 8, 9 and 12 around each batch; 13.
    assert waiting._Loop(slow(), "dot", CPU).seconds(3) == (3.0, 13 / 3)


# --- operations -----------------------------------------------------------------------------------------------------


def test_operations_are_those_of_arithmetic():
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    first, second = 2 * 4 * 5 * 7, 2 * 4 * 7 * 3
    # Backwards each layer does the work once for its weights and once for its inputs, but for the first one's inputs.
    assert flops(model, (4, 5)) == (first + second, first + 2 * second)
    assert flops(model, (4, 5)).exact_step == 3 * first + 5 * second
    assert flops(model, (4, 5)).plain_step == 2 * first + 3 * second
    assert flops(model.requires_grad_(False), (4, 5)) == (first + second, 0)


def test_counting_leaves_the_model_alone():
    model = models.build("resnet8", num_classes=3, input_shape=(3, 8, 8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = flops(model, (2, 3, 8, 8))
    assert 1.9 < found.backward / found.forward < 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_shapes_are_those_of_resnet50():
    full = resnet50_shapes(shrink=1)
    assert len(full) == 161
    # 25,557,032 with 1000 classes; ours has 900 rows of 2048 weights and a bias fewer.
    assert sum(torch.Size(shape).numel() for shape in full) == 25_557_032 - 900 * 2049
    assert max(torch.Size(shape).numel() for shape in resnet50_shapes(shrink=16)) <= 32 * 32 * 9 * 2
