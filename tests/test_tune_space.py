"""What `dotkd tune` searches.

The contract:
- the default space of a trainer is lr, distill_weight, temperature and, where it has one, delta, in ranges that do not
  depend on the trainer and hold the configuration's own values; the task weight stays;
- shared keys come in one order, so that equal draws mean equal trials;
- a span that is no span, a key that is unknown, not tuned or of no use, and a range that leaves the configuration's own
  value or its rules are each refused by name.
"""

from __future__ import annotations

import pytest

from dotkd.config import Config
from dotkd.tuning.space import Choice, Range, at_edge, make_space, own_values, parse_space, refuse_unused

TRAINERS = ("sgd", "dot", "dot-normalized", "sgd-matched", "adamw", "dot-adamw")


def config(trainer: str, **changes: object) -> Config:
    return Config(**{"data": "digits", "teacher": "mlp", "student": "mlp", "trainer": trainer, **changes})


def test_the_default_space_of_each_trainer():
    shared = {"distill_weight": Range(0.09, 9.0, True), "temperature": Range(1.0, 10.0, True)}
    delta = {"delta": Range(0.0, 0.095)}
    spaces = {trainer: make_space(config(trainer), {}) for trainer in TRAINERS}
    sgd = {"lr": Range(1e-3, 1.0, True), **shared}
    assert spaces["sgd"] == sgd
    for trainer in ("dot", "dot-normalized", "sgd-matched"):
        assert spaces[trainer] == sgd | delta
        assert list(spaces[trainer]) == ["lr", "distill_weight", "temperature", "delta"]
    # Its own lr, 0.05, lies above the range of AdamW.
    assert spaces["adamw"] == {"lr": Range(1e-5, 0.05, True), **shared}
    assert spaces["dot-adamw"] == spaces["adamw"] | delta


def test_own_values_are_those_in_force():
    own = own_values(config("dot"))
    assert (own["task_weight"], own["distill_weight"], own["temperature"], own["delta"]) == (0.1, 0.9, 4.0, 0.075)
    assert own_values(config("sgd", temperature=2.0))["temperature"] == 2.0
    assert own_values(config("sgd", method="dkd", epochs=30))["distill_warmup_epochs"] == 20.0
    assert "temperature" not in own_values(config("sgd", method="sp"))
    assert "delta" not in own_values(config("sgd"))
    assert set(make_space(config("sgd", method="none"), {})) == {"lr"}


def test_a_default_range_holds_the_own_value():
    space = make_space(config("dot", lr=3.0, temperature=0.5, momentum=0.9, delta=0.098), {})
    assert (space["lr"], space["temperature"]) == (Range(1e-3, 3.0, True), Range(0.5, 10.0, True))
    assert space["delta"] == Range(0.0, 0.098)
    assert make_space(config("dot", momentum=0.5, delta=0.1), {})["delta"] == Range(0.0, 0.475)
    # The task momentum mu - delta is not to be negative.
    assert make_space(config("dot", momentum=0.2, delta=0.1), {})["delta"] == Range(0.0, 0.2)


def test_with_one_loss_its_weight_is_what_lr_is():
    assert "distill_weight" not in make_space(config("sgd", task_weight=0.0), {})


def test_given_spans_replace_and_add():
    given = parse_space(["weight_decay=1e-5..1e-2:log", " lr = 0.01..0.1 ", "clip_norm=null,1,5", "delta=0.05,0.075"])
    assert given["clip_norm"] == Choice((None, 1.0, 5.0))
    refuse_unused(given, [config("sgd"), config("dot")])
    space = make_space(config("dot"), given)
    assert list(space) == ["lr", "distill_weight", "temperature", "weight_decay", "clip_norm", "delta"]
    assert (space["lr"], space["delta"]) == (Range(0.01, 0.1), Choice((0.05, 0.075)))
    assert "delta" not in make_space(config("sgd"), given)
    for span in space.values():  # what is printed can be typed
        assert parse_space([f"lr={span}"])["lr"] == span


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lrr=1..2"], "--space lrr: unknown key; did you mean lr?"),
        (["temprature=1..2"], "--space temprature: unknown key; did you mean temperature?"),
        (["epochs=1..2"], "--space epochs: not a key that is tuned; those are lr, distill_weight,"),
        (["lr"], "--space lr: expected KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=A,B,C"),
        (["lr=0.1", "lr=0.2"], "--space lr: given twice"),
        (["lr=1..0.1"], "--space lr=1..0.1: expected LOW < HIGH, got 1.0 and 0.1"),
        (["lr=0..1:log"], "--space lr=0..1:log: expected LOW > 0 on a log scale, got 0"),
        (["lr=0.1..1:lin"], "--space lr=0.1..1:lin: expected KEY="),
        (["lr=fast,slow"], "--space lr=fast,slow: expected numbers, got 'fast'"),
        (["lr=true"], "--space lr=true: expected numbers, got 'true'"),
        (["lr=0.1,"], "--space lr=0.1,: expected numbers, got ''"),
        (["lr=.1...inf"], "--space lr=.1...inf: expected numbers"),
        (["lr=null..1"], "expected LOW < HIGH, got null and 1.0"),
        (["lr=0.1,0.1"], "--space lr=0.1,0.1: a value is given twice"),
    ],
)
def test_what_is_no_span_is_refused(words: list[str], message: str):
    with pytest.raises(ValueError) as caught:
        parse_space(words)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("trainer", "word", "message"),
    [
        ("dot", "delta=0..0.1", "--space delta=0..0.1: at 0.1 with dot: delta: expected 0 <= delta <= momentum and"),
        ("dot", "delta=-0.1..0.08", "--space delta=-0.1..0.08: at -0.1 with dot: delta: expected a number >= 0"),
        ("sgd", "lr=0..1", "--space lr=0..1: at 0.0 with sgd: lr: expected a number > 0, got 0.0"),
        ("sgd", "lr=0.1..1", "expected to hold the configuration's own 0.05, which is trial 0 of each trainer"),
        ("sgd", "temperature=1,2", "or give temperature=VALUE with a value in it"),
        ("sgd", "ema=0.9..0.99", "expected to hold the configuration's own null"),
        # Each end is allowed with the delta at hand, and not with the other end of delta's range.
        ("dot", "momentum=0.5..0.92", "--space momentum=0.5..0.92: at 0.92 with dot: delta: expected"),
    ],
)
def test_a_range_has_to_keep_the_rules(trainer: str, word: str, message: str):
    with pytest.raises(ValueError) as caught:
        make_space(config(trainer), parse_space([word]))
    assert message in str(caught.value)


def test_a_key_of_no_use_is_refused():
    with pytest.raises(ValueError, match=r"--space delta=0..0.09: delta means nothing to sgd, adamw with method kd"):
        refuse_unused(parse_space(["delta=0..0.09"]), [config("sgd"), config("adamw")])
    with pytest.raises(ValueError, match="temperature means nothing to sgd with method none"):
        refuse_unused(parse_space(["temperature=1..9"]), [config("sgd", method="none")])


def test_an_edge_is_told_where_the_range_could_be_wider():
    dot = config("dot")
    space = make_space(dot, {})
    params = {"lr": 0.9, "distill_weight": 1.0, "temperature": 1.05, "delta": 0.001}
    assert at_edge(dot, space, params) == ["lr", "temperature"]  # delta cannot be less than 0
    assert at_edge(dot, space, {**params, "lr": 0.5, "temperature": 4.0, "delta": 0.094}) == ["delta"]
