"""The contract of the diagnostics of a run.

- Every training record has them for the streams of its optimizer, of the step that it follows; the steps that count are
  those taken. After a skipped step, and with `diagnostics: false`, the key is absent.
- Without them a run ends with the same bits, and the same records else.
- With `low_memory` what needs the gradients is left out, and the rest is that of an ordinary run.
"""

from __future__ import annotations

import pytest

from dotkd import Trainer
from tiny_runs import everything, given_teacher, records, tiny, vector_run, vectors

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

TWO = {"streams": ["task", "distill"], "pairs": ["task,distill"]}
ONE = {"streams": ["total"], "pairs": []}
THREE = {
    "streams": ["task", "target", "nontarget"],
    "pairs": ["task,target", "task,nontarget", "target,nontarget"],
}
RUNS = {
    "dot": ({}, TWO),
    "control": ({"trainer": "dot-normalized", "nesterov": True, "accumulate": 2, "clip_norm": 0.5}, TWO),
    "adamw": ({"trainer": "dot-adamw", "lr": 0.01}, TWO),
    "sgd": ({"trainer": "sgd"}, ONE),
    "no teacher": ({"trainer": "adamw", "method": "none"}, ONE),
    "deepkd": ({"trainer": "deepkd", "method": "deepkd"}, THREE),
    "fp16": ({"precision": "fp16"}, TWO),
}


def measured(out):
    """The diagnostics of a run by step, those of records without them as None."""
    return {record["step"]: record.get("diagnostics") for record in records(out) if record["kind"] == "train"}


@pytest.mark.parametrize("name", RUNS)
def test_every_record_says_what_the_streams_did(home, tmp_path, name):
    changes, expected = RUNS[name]
    config = tiny(vectors(home), **{**given_teacher(home), "trainer": "dot", "log_every": 1, "epochs": 2, **changes})
    Trainer(config, tmp_path / "run").fit()
    found = measured(tmp_path / "run")
    assert list(found) == list(range(1, 9))
    for step, entry in found.items():
        for key in ("grad_norm", "buffer_norm", "update_share", "snr"):
            assert list(entry[key]) == expected["streams"]
        assert list(entry["cosine"]) == expected["pairs"]
        assert all(value > 0 for key in ("grad_norm", "buffer_norm") for value in entry[key].values())
        assert all(-1 <= value <= 1 for value in entry["cosine"].values())
        assert sum(entry["update_share"].values()) == pytest.approx(1)
        assert all(value is None or value >= 0 for value in entry["snr"].values())
        assert step > 1 or set(entry["snr"].values()) == {None}
    assert any(value for entry in found.values() for value in entry["snr"].values())


def without_diagnostics(out):
    held = everything(out)
    held["records"] = [{key: v for key, v in record.items() if key != "diagnostics"} for record in held["records"]]
    return held


def test_a_run_without_them_ends_with_the_same_bits(home, tmp_path):
    config = vector_run(home)
    Trainer(config, tmp_path / "with").fit()
    Trainer(config.replace(diagnostics=False), tmp_path / "without").fit()
    assert set(measured(tmp_path / "without").values()) == {None}
    assert None not in measured(tmp_path / "with").values()
    assert without_diagnostics(tmp_path / "with") == everything(tmp_path / "without")


def test_a_skipped_step_is_not_measured_and_does_not_count(home, tmp_path):
    faulty = {"student": "tiny_runs:faulty", "student_options": {"first": 1, "last": 2}, "log_every": 1}
    Trainer(tiny(vectors(home), trainer="dot", **faulty, **given_teacher(home)), tmp_path / "run").fit()
    found = measured(tmp_path / "run")
    assert [step for step, entry in found.items() if entry is None] == [1, 2]
    # The third step is the first that was taken.
    assert set(found[3]["snr"].values()) == {None}
    assert found[3]["buffer_norm"]["distill"] == pytest.approx(found[3]["grad_norm"]["distill"], rel=1e-5)


def test_with_low_memory_the_buffers_alone_are_measured(home, tmp_path):
    config = tiny(vectors(home), student="tiny_runs:smooth", student_options={}, **given_teacher(home))
    Trainer(config, tmp_path / "plain").fit()
    Trainer(config.replace(low_memory=True), tmp_path / "low").fit()
    plain, low = measured(tmp_path / "plain"), measured(tmp_path / "low")
    for step, entry in low.items():
        assert entry["grad_norm"] == entry["cosine"] == {}
        assert entry["snr"] == {"task": None, "distill": None}
        for key in ("buffer_norm", "update_share"):
            assert entry[key] == pytest.approx(plain[step][key], rel=1e-4)
