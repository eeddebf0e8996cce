"""The contract of `dotkd bench`.

- The transcription of the published update computes what DOT computes, except where DOT means to differ: a parameter
  that the distillation loss alone reaches does not decay on its first step there.
- Two sides are timed in turns; the number of rounds is the one asked for, or what fits the time, and at least three.
- Peak memory is exact on a known pattern of allocations, and counts nothing that was there before.
- Both sides of a ratio do the same work: their first steps end at the same weights.
- Each measure gives its three quantities; the caller's threads and random numbers are as they were before.
- The verb prints every ratio, writes it under its key, and is no error where a goal is missed; wrong input is refused
  before anything is measured.
"""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import dotkd.bench
from dotkd.bench import MEASURES, Conditions, Measure, Quantity, measures, rounds
from dotkd.bench.measures import linear_losses, resnet50_shapes
from dotkd.bench.memory import peak_bytes
from dotkd.bench.published import PublishedUpdate
from dotkd.cli import app
from optim_cases import assert_close, identical, make_params, random_grads
from reference import dot_step

CPU = torch.device("cpu")
HYPER = {"lr": 0.05, "momentum": 0.9, "delta": 0.075}
SHAPES = ((3, 2), (4,), (2, 2))


@pytest.fixture
def small(monkeypatch):
    """The measures as they are, on a student and a batch that take milliseconds."""
    monkeypatch.setattr(measures, "_STUDENT", {"depth": 8, "width": 4})
    monkeypatch.setattr(measures, "_BATCH", 8)


@pytest.fixture
def command():
    def run(*args: str):
        return CliRunner().invoke(app, ["bench", *args], env={"COLUMNS": "200"})

    return run


# --- the published update -------------------------------------------------------------------------------------------


def reach(grads, *, task: tuple[int, ...], distill: tuple[int, ...]):
    """`grads` with None where the stream does not reach that parameter."""
    reached = {"task": task, "distill": distill}
    return {name: [g if i in reached[name] else None for i, g in enumerate(grads[name])] for name in grads}


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_published_update_is_that_of_dot(weight_decay):
    generator = torch.Generator().manual_seed(0)
    mine, theirs = make_params(SHAPES), [p.detach().clone() for p in make_params(SHAPES)]
    literal, buffers = [p.clone() for p in theirs], [{} for _ in theirs]
    dot = dotkd.DOT(mine, weight_decay=weight_decay, **HYPER)
    published = PublishedUpdate(theirs, weight_decay=weight_decay, **HYPER)
    for step in range(6):
        # The second parameter is reached by both, by the task loss alone, and by both again.
        grads = reach(
            random_grads(mine, dot.streams, generator), task=(0, 1, 2), distill=(0, 2) if step in (2, 3) else (0, 1, 2)
        )
        dot.backward(
            task=linear_losses(mine, {"task": grads["task"]})["task"],
            distill=sum((p * g).sum() for p, g in zip(mine, grads["distill"], strict=True) if g is not None),
        )
        dot.step()
        dot.zero_grad()
        published.step(grads["task"], grads["distill"])
        literal = [
            dot_step(p, *gradients, v, weight_decay=weight_decay, **HYPER)
            for p, *gradients, v in zip(literal, grads["task"], grads["distill"], buffers, strict=True)
        ]
    assert_close(theirs, literal)
    assert_close(theirs, mine)


def test_published_update_decays_late_where_the_distillation_loss_is_alone():
    theta, grad = torch.tensor([2.0]), torch.tensor([1.0])
    published = PublishedUpdate([theta], lr=1.0, momentum=0.5, delta=0.25, weight_decay=0.1)
    published.step([None], [grad])
    assert theta.item() == 1.0  # 2 - 1: DOT would go to 2 - (1 + 0.1 * 2)
    published.step([None], [grad])
    assert theta.item() == pytest.approx(1.0 - (0.5 * 1.0 + 1.0 + 0.1 * 1.0))


def test_shapes_are_those_of_resnet50():
    full = resnet50_shapes(shrink=1)
    assert len(full) == 161
    # 25,557,032 with 1000 classes; ours has 900 rows of 2048 weights and a bias fewer.
    assert sum(torch.Size(shape).numel() for shape in full) == 25_557_032 - 900 * 2049
    assert max(torch.Size(shape).numel() for shape in resnet50_shapes(shrink=16)) <= 32 * 32 * 9 * 2


# --- timing ---------------------------------------------------------------------------------------------------------


def turns(conditions: Conditions, *, repeats: int = 1) -> tuple[str, tuple[list[float], list[float]]]:
    calls: list[str] = []
    spent = rounds.timed_in_turns(lambda: calls.append("a"), lambda: calls.append("b"), conditions, repeats=repeats)
    return "".join(calls), spent


def test_sides_take_turns_after_one_call_of_each():
    calls, spent = turns(Conditions(CPU, rounds=3), repeats=2)
    assert calls == "ab" + 3 * "aabb"
    assert [len(values) for values in spent] == [3, 3]


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, 3), (1000.0, 15)])
def test_rounds_follow_the_time_unless_asked_for(seconds, expected):
    assert len(turns(Conditions(CPU, seconds=seconds))[1][0]) == expected
    assert len(turns(Conditions(CPU, seconds=seconds, rounds=5))[1][0]) == 5


def test_seconds_are_those_of_one_call(monkeypatch):
    now = iter(range(0, 1000, 10))  # every look at the clock is ten seconds later
    monkeypatch.setattr(rounds.time, "process_time", lambda: next(now))
    assert turns(Conditions(CPU, rounds=2), repeats=5)[1] == ([2.0, 2.0], [2.0, 2.0])


@pytest.mark.parametrize(("threads", "clock"), [(1, "CPU time"), (2, "wall time")])
def test_cpu_time_is_for_one_thread(threads, clock):
    assert Conditions(CPU, threads=threads).clock == clock


def test_conditions_hold_as_long_as_they_are_held():
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    draws = []
    for _ in range(2):
        with Conditions(CPU, threads=threads + 1).held():
            assert torch.get_num_threads() == threads + 1
            draws.append(torch.rand(3))
    assert identical(draws[:1], draws[1:])  # two runs measure on the same numbers
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random)


def test_quantity_is_median_and_distance_of_quartiles():
    assert Quantity.of([5.0, 1.0, 2.0, 4.0, 3.0]) == (3.0, 2.0, 5)
    assert Quantity.of([7.0]) == (7.0, None, 1)


@pytest.mark.parametrize("name", ["threads", "rounds"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"^expected `{name}` of at least 1, got 0$"):
        Conditions(CPU, **{name: 0})


# --- memory ---------------------------------------------------------------------------------------------------------


def test_peak_is_exact_on_a_known_pattern(capfd):
    before = torch.empty(1000, 1000)

    def work():
        first = torch.empty(1_000_000, dtype=torch.uint8)
        second = torch.empty(500_000, dtype=torch.uint8)
        del first  # from here on less is held
        third = torch.empty(700_000, dtype=torch.uint8)
        return second, third

    assert peak_bytes(work, CPU) == 1_500_000
    assert peak_bytes(lambda: [torch.empty(300_000, dtype=torch.uint8) for _ in range(4)], CPU) == 1_200_000
    # One after the other: a kernel's own temporaries count, what was there before does not.
    assert peak_bytes(lambda: (before + 1, None)[1], CPU) == pytest.approx(before.nbytes, rel=1e-3)
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")


# --- the measures ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_both_sides_take_the_same_first_step():
    steps = []
    for dot in (True, False):
        with Conditions(CPU).held():
            steps.append(measures._Step(CPU, dot=dot))
    ours, other = (list(step.student.parameters()) for step in steps)
    start = [p.detach().clone() for p in ours]
    assert identical(ours, other)
    for step in steps:
        step.run()
    # On the first step a momentum has nothing to remember yet.
    assert_close(ours, other, 1e-5)
    assert not identical(ours, start)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", MEASURES)
def test_measure_gives_all_quantities(name):
    random = torch.get_rng_state()
    found = MEASURES[name](Conditions(CPU, rounds=4))
    assert torch.equal(torch.get_rng_state(), random)
    assert found.ratio.n == found.ours.n == found.other.n == (1 if name == "peak_memory" else 4)
    assert found.ours.median > 0
    assert found.other.median > 0
    assert found.ratio.median == pytest.approx(found.ours.median / found.other.median, rel=0.9)
    json.dumps(found.as_json(), allow_nan=False)


@pytest.mark.usefixtures("small")
def test_memory_of_dot_has_one_gradient_and_one_buffer_more():
    found = dotkd.bench.peak_memory(Conditions(CPU))
    student = measures._Step(CPU, dot=True).student
    size = sum(p.nbytes for p in student.parameters() if isinstance(p, nn.Parameter))
    assert found.ours.median - found.other.median >= size
    assert 1 < found.ratio.median < 2


# --- the verb -------------------------------------------------------------------------------------------------------


def fixed(ratio: float, *, goal: float | None) -> Measure:
    return Measure(Quantity(ratio, 0.25, 9), Quantity(0.004, 0.001, 9), Quantity(0.002, None, 9), "seconds", "x", goal)


@pytest.fixture
def pretend(monkeypatch):
    made = {"exact_step": fixed(2.0, goal=1.75), "optimizer_step": fixed(0.5, goal=0.5)}
    made["peak_memory"] = Measure(*[Quantity(2**21, None, 1)] * 3, unit="bytes", what="y")
    monkeypatch.setattr(dotkd.bench, "MEASURES", {name: lambda _, m=m: m for name, m in made.items()})


@pytest.mark.usefixtures("pretend")
def test_verb_prints_and_writes_every_ratio(command, tmp_path):
    result = command("--json", str(tmp_path / "bench ü.json"))
    assert result.exit_code == 0, result.output
    row = {line.split("|")[1].strip(): line for line in result.stdout.splitlines() if line.startswith("|")}
    assert "2.000" in row["exact_step"]
    assert "<= 1.75 MISSED" in row["exact_step"]
    assert "4 (1) ms" in row["exact_step"]
    assert "<= 0.5 met" in row["optimizer_step"]
    assert "2 MiB" in row["peak_memory"]
    written = json.loads((tmp_path / "bench ü.json").read_text(encoding="utf-8"))
    assert {name: written[name] for name in MEASURES} == {
        "exact_step": 2.0,
        "optimizer_step": 0.5,
        "peak_memory": 2**21,
    }
    detail = written["detail"]
    assert detail["exact_step"]["ratio"] == {"median": 2.0, "interquartile": 0.25, "n": 9}
    assert detail["exact_step"]["reached"] is False
    assert detail["optimizer_step"]["reached"] is True
    assert detail["peak_memory"]["reached"] is None
    assert detail["threads"] == 1
    assert detail["clock"] == "CPU time"
    assert set(detail["versions"]) == {"dotkd", "torch", "python"}
    assert {"commit", "hardware", "device", "load"} <= set(detail)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--device", "tpu"], "expected --device to be cpu, cuda or cuda:N, got tpu"),
        (["--device", "mps"], "expected --device to be cpu, cuda or cuda:N, got mps"),
        (["--device", "cuda:99"], "--device cuda:99: torch sees"),
        (["--rounds", "0"], "expected `rounds` of at least 1, got 0"),
        (["--threads", "-1"], "expected `threads` of at least 1, got -1"),
        (["--json", "missing/bench.json"], "expected --json to name a file in a folder that exists, got missing"),
    ],
)
def test_wrong_input_is_refused_before_measuring(command, args, message):
    result = command(*args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "measuring" not in result.stderr
