"""The contract of the calibration error and of the agreement with the teacher.

- The calibration error is that of a literal loop over (lower, upper] bins, and of cases made by hand: 0 where every
  confidence is kept, the gap where all confidences lie in one bin; an edge belongs to the bin below it.
- The agreement is the share of samples with the same predicted class, None without a teacher's logits.
- A run's evaluations and summary have both, for methods on logits and for those that look inside, and the teacher is
  not asked more often for it than once for each split.
"""

from __future__ import annotations

import json
import math

import pytest
import torch

from dotkd import Trainer
from dotkd.calibration import BINS, calibration_error
from dotkd.evaluation import predict, score
from dotkd.evidence.runs import read_evaluations, read_run
from tiny_runs import STEPS, given_teacher, records, tiny, vectors

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def literal(logits, targets):
    """Sample by sample, bin by bin, in Python's floats."""
    confidences, hits = [], []
    for row, target in zip(logits.double().tolist(), targets.tolist(), strict=True):
        total = sum(math.exp(z - max(row)) for z in row)
        confidences.append(1 / total)
        hits.append(float(row.index(max(row)) == target))
    error = 0.0
    for m in range(BINS):
        inside = [i for i, p in enumerate(confidences) if m / BINS < p <= (m + 1) / BINS]
        if inside:
            accuracy = sum(hits[i] for i in inside) / len(inside)
            confidence = sum(confidences[i] for i in inside) / len(inside)
            error += len(inside) / len(targets) * abs(accuracy - confidence)
    return error


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("scale", [0.1, 1.0, 6.0])
def test_it_is_the_literal_one(classes, scale):
    generator = torch.Generator().manual_seed(classes)
    logits = scale * torch.randn(500, classes, generator=generator)
    targets = torch.randint(classes, (500,), generator=generator)
    targets[:250] = logits[:250].argmax(1)
    found = calibration_error(logits, targets)
    assert found.shape == ()
    assert found.item() == pytest.approx(literal(logits, targets), abs=1e-12)


def with_confidence(*confidences):
    """Logits of two classes, the first of which is predicted."""
    p = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([p, 1 - p], 1).log()


def test_cases_made_by_hand():
    four = with_confidence(0.75, 0.75, 0.75, 0.75)
    assert calibration_error(four, torch.tensor([0, 0, 0, 1])).item() == pytest.approx(0, abs=1e-12)
    assert calibration_error(four, torch.tensor([0, 0, 0, 0])).item() == pytest.approx(0.25)
    # Gaps of other signs cancel out within a bin, not between bins.
    two = with_confidence(0.9, 0.6)
    assert calibration_error(two, torch.tensor([0, 1])).item() == pytest.approx((0.1 + 0.6) / 2)
    same = with_confidence(0.9, 0.92)
    assert calibration_error(same, torch.tensor([0, 1])).item() == pytest.approx(abs(0.1 - 0.92) / 2)
    sure = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])
    assert calibration_error(sure, torch.tensor([0, 0])).item() == 0.5


def test_an_edge_belongs_to_the_bin_below():
    # Three equal logits: p = 1/3 = 5/15; the neighbour above it is in the next bin.
    logits = torch.zeros(2, 3, dtype=torch.float64)
    logits[1, 0] = 0.05
    low, high = logits.softmax(1).max(1).values.tolist()
    assert low == 5 / BINS < high < 6 / BINS
    gaps = [1 - low, high]  # the first is right, the second wrong: in one bin they would nearly cancel
    found = calibration_error(logits, torch.tensor([0, 1])).item()
    assert found == pytest.approx(sum(gaps) / 2)
    assert found == pytest.approx(literal(logits, torch.tensor([0, 1])))


def test_logits_that_are_not_finite_have_no_calibration():
    assert math.isnan(calibration_error(torch.tensor([[math.nan, 0.0], [1.0, 0.0]]), torch.tensor([0, 0])).item())


def test_agreement_is_the_share_of_equal_predictions():
    student = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 5.0]])
    teacher = torch.tensor([[9.0, 1.0], [0.0, 0.1], [0.0, 0.5], [0.0, 5.0]])
    scores = score(student, torch.tensor([0, 0, 0, 0]), teacher)
    assert (scores.accuracy, scores.agreement, scores.distill_loss) == (0.5, 0.75, None)
    assert scores.calibration_error == pytest.approx(literal(student, torch.zeros(4, dtype=torch.int64)))
    assert score(student, torch.tensor([0, 0, 0, 0])).agreement is None


# --- in a run


# How often the teacher is asked: once for each of three splits; in every step, about each split held out, and for both
# final losses.
@pytest.mark.parametrize(
    ("changes", "asked"),
    [({}, 3), ({"method": "fitnet"}, 2 * STEPS + 2 + 2), ({"method": "none", "trainer": "sgd"}, 3)],
    ids=["logits", "inside", "measured against"],
)
def test_every_evaluation_and_the_summary_have_both(home, tmp_path, changes, asked):
    trainer = Trainer(tiny(vectors(home), **{**given_teacher(home), **changes}), tmp_path / "run")
    teacher, calls = trainer.teacher, []
    teacher.register_forward_hook(lambda module, args, out: calls.append(module.training))
    summary = trainer.fit()
    assert len(calls) == asked
    test = trainer.dataset.test
    options = {"batch_size": 7, "device": torch.device("cpu")}
    student, taught = (predict(model, trainer.dataset, "test", **options) for model in (trainer.student, teacher))
    agreement = (student.argmax(1) == taught.argmax(1)).float().mean().item()
    last = [record for record in records(tmp_path / "run") if record["kind"] == "eval"][-1]
    run, points = read_run(tmp_path / "run"), read_evaluations(tmp_path / "run")
    for found in (last["test"]["agreement"], summary["test_agreement"], run.test.agreement, points[-1].test.agreement):
        assert found == pytest.approx(agreement, abs=1e-7)
    expected = literal(student, test.targets)
    errors = (last["test"]["calibration_error"], summary["test_calibration_error"], run.test.calibration_error)
    assert errors == pytest.approx((expected,) * 3, abs=1e-6)
    assert 0 <= last["val"]["agreement"] <= 1


def test_without_a_teacher_there_is_no_agreement(home, tmp_path):
    summary = Trainer(tiny(vectors(home), trainer="sgd", method="none"), tmp_path / "run").fit()
    assert summary["test_agreement"] is None
    assert 0 < summary["test_calibration_error"] < 1


def test_a_folder_from_before_is_read_without_them(home, tmp_path):
    Trainer(tiny(vectors(home), trainer="sgd", method="none", epochs=1), tmp_path / "run").fit()
    path = tmp_path / "run" / "summary.json"
    new = ("test_agreement", "test_calibration_error")
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key not in new}))
    assert read_run(tmp_path / "run").test[3:] == (None, None)
