"""The contract of `dotkd bench`.

- Sides are timed in turns; the number of rounds is the one asked for, or what fits the time, and at least three.
- Peak memory is exact on a known pattern of allocations, and counts nothing that was there before.
- The caller's threads and random numbers are as they were before.
- The verb prints every ratio, writes it under its key, and is no error where a goal is missed; wrong input is refused
  before anything is measured.
"""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import dotkd.bench
from dotkd.bench import Conditions, Measure, Quantity, rounds
from dotkd.bench.memory import peak_bytes
from dotkd.cli import app
from optim_cases import identical

CPU = torch.device("cpu")


@pytest.fixture
def command():
    def run(*args: str):
        return CliRunner().invoke(app, ["bench", *args], env={"COLUMNS": "200"})

    return run


# --- timing ---------------------------------------------------------------------------------------------------------


def turns(conditions: Conditions, *, repeats: int = 1) -> tuple[str, list[list[float]]]:
    calls: list[str] = []
    work = [lambda name=name: calls.append(name) for name in "abc"]
    spent = rounds.timed_in_turns(work, conditions, repeats=repeats)
    return "".join(calls), spent


def test_sides_take_turns_after_one_call_of_each():
    calls, spent = turns(Conditions(CPU, rounds=3), repeats=2)
    assert calls == "abc" + 3 * "aabbcc"
    assert [len(values) for values in spent] == [3, 3, 3]


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, 3), (1000.0, 15)])
def test_rounds_follow_the_time_unless_asked_for(seconds, expected):
    assert len(turns(Conditions(CPU, seconds=seconds))[1][0]) == expected
    assert len(turns(Conditions(CPU, seconds=seconds, rounds=5))[1][0]) == 5


def test_seconds_are_those_of_one_call(monkeypatch):
    now = iter(range(0, 1000, 10))  # every look at the clock is ten seconds later
    monkeypatch.setattr(rounds.time, "process_time", lambda: next(now))
    assert turns(Conditions(CPU, rounds=2), repeats=5)[1] == 3 * [[2.0, 2.0]]


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


# --- the verb -------------------------------------------------------------------------------------------------------


def fixed(ratio: float, *, goal: float, official: float | None = None) -> Measure:
    theirs = None if official is None else Quantity.of([official])
    ours, other = Quantity(0.004, 0.001, 9), Quantity(0.002, None, 9)
    return Measure(Quantity(ratio, 0.25, 9), ours, other, "seconds", "x", goal, official=theirs)


@pytest.fixture
def pretend(monkeypatch):
    made = {"exact_step": fixed(2.0, goal=1.75, official=1.875), "optimizer_step": fixed(0.5, goal=0.5)}
    made["peak_memory"] = Measure(*[Quantity(2**21, None, 1)] * 3, unit="bytes", what="y")
    monkeypatch.setattr(dotkd.bench, "MEASURES", {name: lambda _, m=m: m for name, m in made.items()})


def test_the_measures_are_those_of_the_goals():
    steps = ["exact_step", "optimizer_step", "peak_memory", "low_memory"]
    assert list(dotkd.bench.MEASURES) == [*steps, "cached_over_online", "ddp_bytes", "loader_wait"]


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
    assert "1.875" in row["exact_step"]
    assert "1.875" not in row["optimizer_step"]
    written = json.loads((tmp_path / "bench ü.json").read_text(encoding="utf-8"))
    assert {name: written[name] for name in written if name != "detail"} == {
        "exact_step": 2.0,
        "optimizer_step": 0.5,
        "peak_memory": 2**21,
    }
    detail = written["detail"]
    assert detail["exact_step"]["ratio"] == {"median": 2.0, "interquartile": 0.25, "n": 9}
    assert detail["exact_step"]["reached"] is False
    assert detail["exact_step"]["official"] == {"median": 1.875, "interquartile": None, "n": 1}
    assert detail["optimizer_step"]["reached"] is True
    assert detail["optimizer_step"]["official"] is None
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
