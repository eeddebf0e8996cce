"""The contract of `dotkd.methods.objective` and of `dotkd.methods`: one call for every kind of method.

- A method is a name, `module:attr`, a function of logits or the class of a feature method. It is given what its
  signature names of target, targets, index, progress, the strong views and the temperature, and nothing else.
- Several losses by name go to the streams that the card says, those of one stream added up.
- The temperature is the one given, else the published one. Unknown methods and options are refused with the nearest.
- Every name in METHODS exists, has a card with sound weights, and says the stream of each of its losses.
"""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from dotkd import losses
from dotkd.methods import METHODS, Card, card_of, find
from dotkd.methods.activations import Activations, Anatomy
from dotkd.methods.objective import Objective
from method_cases import activations, anatomy


@pytest.fixture
def pair():
    return activations((2, 3, 3), seed=1), activations((4, 3, 3), seed=2)


def test_a_function_gets_what_its_signature_names_and_nothing_else(pair):
    seen = {}

    def own(student_logits, teacher_logits, *, target, progress, temperature=3.0, power=1):
        seen.update(locals())
        return student_logits.sum()

    target = torch.zeros(4, dtype=torch.int64)
    objective = Objective(own, options={"power": 2})
    found = objective(*pair, target=target, index=target, progress=0.5, student_strong=None, teacher_strong=None)
    assert list(found) == ["distill"]
    assert seen["target"] is target
    assert (seen["progress"], seen["temperature"], seen["power"]) == (0.5, 3.0, 2)
    assert (objective.wants_target, objective.wants_index, objective.wants_strong) == (True, False, False)


def test_the_temperature_is_the_one_given_else_the_published_one(pair):
    student, teacher = pair[0].logits, pair[1].logits
    assert card_of("kd").temperature == 4.0
    torch.testing.assert_close(Objective("kd")(*pair)["distill"], losses.kd(student, teacher, temperature=4.0))
    given = Objective("kd", temperature=1.5)(*pair)["distill"]
    torch.testing.assert_close(given, losses.kd(student, teacher, temperature=1.5))


def test_a_function_that_needs_a_temperature_is_refused_without_one():
    with pytest.raises(ValueError, match="expected a `temperature`"):
        Objective(lambda student_logits, teacher_logits, temperature: student_logits.sum())


class Several(nn.Module):
    card = Card("Several", "nobody", "a + b", streams={"hint": "distill", "aid": "task", "rest": "distill"})

    def __init__(self, student: Anatomy, teacher: Anatomy, *, targets: torch.Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.classes = int(targets.max()) + 1

    def forward(self, student: Activations, teacher: Activations, *, index: torch.Tensor):
        return {"hint": self.scale * 1.0, "aid": self.scale * 10.0, "rest": index.sum() * 100.0}


def test_losses_go_to_the_streams_of_the_card(pair):
    objective = Objective(Several, options={"scale": 2.0})
    assert objective.looks_inside
    objective.build(anatomy(pair[0]), anatomy(pair[1]), torch.tensor([0, 3]))
    assert objective.module.classes == 4
    found = objective(*pair, index=torch.tensor([1]), target=torch.tensor([0]), progress=0.0)
    assert {name: loss.item() for name, loss in found.items()} == {"distill": 102.0, "task": 20.0}


def test_a_method_that_needs_the_labels_is_refused_without_them(pair):
    with pytest.raises(ValueError, match="this method needs `targets`, the labels of the training split"):
        Objective(Several).build(anatomy(pair[0]), anatomy(pair[1]), None)


def test_methods_of_ones_own_are_found_in_the_working_directory(pair, tmp_path, monkeypatch):
    (tmp_path / "own_method_of_a_test.py").write_text(
        "def gap(student_logits, teacher_logits, *, power=2.0):\n"
        "    return (student_logits - teacher_logits).abs().pow(power).mean()\n"
    )
    monkeypatch.chdir(tmp_path)
    found = Objective("own_method_of_a_test:gap", options={"power": 1.0})(*pair)["distill"]
    torch.testing.assert_close(found, (pair[0].logits - pair[1].logits).abs().mean())
    with pytest.raises(ValueError, match=r"method `own_method_of_a_test:gup`: .* has no `gup`, did you mean `gap`\?"):
        Objective("own_method_of_a_test:gup")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("crdd",), r"unknown method 'crdd', expected one of kd, .*; did you mean 'crd'\?"),
        (("at", {"q": 2}), "unknown option 'q', expected one of p"),
        (("crd", {"targets": 2}), "unknown option 'targets'"),
    ],
)
def test_unknown_names_are_refused(arguments, text):
    method, options = (*arguments, {})[:2]
    with pytest.raises(ValueError, match=text):
        Objective(method, options=options)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_exists_and_has_a_sound_card(name):
    made, card = find(name), card_of(name)
    assert card.title
    assert card.paper
    assert card.equation
    assert card.task_weight >= 0
    assert card.distill_weight > 0
    assert inspect.isclass(made) == (METHODS[name].partition(":")[0] != "dotkd.losses")
    takes_temperature = "temperature" in inspect.signature(made).parameters
    assert takes_temperature == (card.temperature is not None)
    assert set(card.streams.values()) <= {"task", "distill", "target", "nontarget"}
    if inspect.isclass(made):
        assert set(card.needs) <= {"features", "preactivations", "embedding"}


def test_every_objective_on_logits_is_a_method():
    assert set(losses.LOSSES) <= set(METHODS)
