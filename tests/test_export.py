"""The student outside its run.

The contract:
- an exported file computes what the student computes, for any batch size, which is checked on test samples; a file
  that does not is told by the check, and `dotkd export` then ends with 1;
- the metadata of a file is enough to use it: class names, normalisation, shape, where it came from;
- the exporter's chatter stays off the terminal; a missing package names the extra;
- `eval` of an export gives the numbers of the student, and other data are normalised as the training data were.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from torch import nn
from typer.testing import CliRunner

import tiny_runs
from dotkd import Trainer, data, export
from dotkd.cli import app
from dotkd.evaluation import predict


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a perceptron with batch norm, whose running statistics an export must carry."""
    folder = tmp_path_factory.mktemp("runs")
    config = tiny_runs.tiny(tiny_runs.images(folder), method="none", trainer="sgd", epochs=3, augment="none")
    Trainer(config, folder / "run").fit()
    return folder / "run"


@pytest.fixture(scope="module")
def exported(run: Path) -> dict[str, export.Check]:
    loaded = export.load_run(run)
    return {kind: export.export(loaded, kind, run / "export") for kind in export.FORMATS}


def dotkd(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_loaded_student_is_the_trained_one(run: Path):
    loaded = export.load_run(run)
    logits = predict(loaded.student, loaded.dataset, "test", batch_size=16, device=torch.device("cpu"))
    accuracy = float((logits.argmax(1) == loaded.dataset.test.targets).float().mean())
    assert accuracy == pytest.approx(json.loads((run / "summary.json").read_text())["test_accuracy"]["last"])
    assert not loaded.student.training


def test_both_formats_pass_their_check(exported: dict[str, export.Check]):
    assert exported["safetensors"].max_difference == 0.0
    for check in exported.values():
        assert check.passed
        assert (check.samples, check.agreement) == (tiny_runs.TEST, 1.0)


def test_onnx_runs_on_batches_of_any_size(run: Path, exported: dict[str, export.Check]):
    loaded = export.load_run(run)
    session = onnxruntime.InferenceSession(str(exported["onnx"].path), providers=["CPUExecutionProvider"])
    for size in (1, 2, 5, 48):
        batch = next(iter(data.batches(loaded.dataset, "test", batch_size=size)))
        (logits,) = session.run(["logits"], {"input": batch.inputs.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, loaded.student(batch.inputs).numpy(), rtol=1e-4, atol=1e-4)


def test_metadata_is_enough_to_use_the_file(run: Path, exported: dict[str, export.Check]):
    """By hand, from raw pixels, with nothing but the file."""
    model = onnx.load(exported["onnx"].path)
    told = {entry.key: entry.value for entry in model.metadata_props}
    with safe_open(exported["safetensors"].path, "pt") as file:
        assert file.metadata() == told
    assert told["source_run"] == "run"
    assert json.loads(told["input_shape"]) == [3, 8, 8]
    dataset = export.load_run(run).dataset
    pixels = dataset.test.inputs[torch.arange(tiny_runs.TEST)].numpy()
    mean, std = (np.array(json.loads(told[key]), dtype=np.float32)[:, None, None] for key in ("mean", "std"))
    session = onnxruntime.InferenceSession(str(exported["onnx"].path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": (pixels.astype(np.float32) / 255 - mean) / std})
    accuracy = (logits.argmax(1) == dataset.test.targets.numpy()).mean()
    assert accuracy == pytest.approx(json.loads((run / "summary.json").read_text())["test_accuracy"]["last"])
    assert len(json.loads(told["class_names"])) == logits.shape[1] == tiny_runs.CLASSES


class Twisted(nn.Module):
    """The student, wrong in its last digits, for one class, or for one sample in a batch of one."""

    def __init__(self, student: nn.Module, kind: str) -> None:
        super().__init__()
        self.student, self.kind = student, kind

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits = self.student(inputs).clone()
        if self.kind == "digits":
            return logits * (1 + 1e-6)
        if self.kind == "nan":
            logits[0, 0] = torch.nan
        if self.kind == "class":
            logits[:, 1] += 0.1
        if self.kind == "alone" and len(inputs) == 1:
            logits = logits.flip(1)
        return logits


@pytest.mark.parametrize(("kind", "passes"), [("digits", True), ("nan", False), ("class", False), ("alone", False)])
def test_check_tells_a_wrong_file(run: Path, kind: str, passes: bool):
    loaded = export.load_run(run)
    check = export.check(loaded, Twisted(loaded.student, kind), run)
    assert check.passed is passes
    assert (check.max_difference > 0) is True


def test_verb_prints_the_check_and_nothing_else(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    code, out, err = dotkd("export", run, "--out", tmp_path / "an export")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 2
    for line, name in zip(lines, export.FORMATS.values(), strict=True):
        assert line.startswith(str(tmp_path / "an export" / name))
        assert "as the student on 48 test samples" in line
        assert line.endswith("same class in 100.0 %")
    assert capfd.readouterr() == ("", "")


def test_verb_ends_with_1_where_a_file_differs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(export, "OnnxStudent", lambda path: Twisted(export.load_run(run).student, "class"))
    code, out, err = dotkd("export", run, "--format", "onnx", "--out", tmp_path)
    assert code == 1
    assert "DIFFERS from the student" in out
    assert "do not use it" in err


def test_export_without_onnxscript(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = export.importlib.util.find_spec
    hidden = lambda name, *rest: None if name == "onnxscript" else real(name, *rest)  # noqa: E731
    monkeypatch.setattr(export.importlib.util, "find_spec", hidden)
    assert export.export(export.load_run(run), "onnx", tmp_path).passed


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_package_names_the_extra(run: Path, tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    code, out, err = dotkd("export", run, "--format", "onnx", "--out", tmp_path)
    assert (code, out) == (1, "")
    assert err == f"dotkd: ONNX needs {package}; install the extra `onnx`: pip install 'dotkd[onnx]'\n"


def test_model_that_returns_more_than_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = tiny_runs.tiny(tiny_runs.vectors(tmp_path), method="none", trainer="sgd", epochs=1)
    config = config.replace(student=f"{__name__}:WithFeatures", student_options={})
    Trainer(config, tmp_path / "run").fit()
    check = export.export(export.load_run(tmp_path / "run"), "onnx", tmp_path)
    assert check.passed
    assert [output.name for output in onnx.load(check.path).graph.output] == ["logits"]


class WithFeatures(nn.Module):
    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(input_shape[0], 5), nn.Linear(5, num_classes)

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.first(inputs).relu()
        return self.second(features), features


def test_eval_of_the_export_is_that_of_the_student(run: Path, exported: dict[str, export.Check]):
    student = dotkd("eval", run)[1].partition(": ")[2]
    assert "accuracy" in student
    assert dotkd("eval", run, "--weights", "export/student.onnx")[1].partition(": ")[2] == student
    assert dotkd("eval", run, "--weights", exported["safetensors"].path)[1].partition(": ")[2] == student


def test_other_data_are_normalised_as_in_training(run: Path, tmp_path: Path):
    config = export.load_run(run).config
    stored = dict(np.load(config.data.partition(":")[2]))
    # As training pixels these would get another mean and deviation; the test pixels are the same.
    stored["x_train"] = stored["x_train"] // 7
    np.savez(tmp_path / "other.npz", **stored)
    ours = dotkd("eval", run)[1]
    other = dotkd("eval", run, "--data", f"arrays:{tmp_path / 'other.npz'}")[1]
    assert other.partition("accuracy")[2] == ours.partition("accuracy")[2] != ""


def test_other_classes_are_refused(run: Path, tmp_path: Path):
    config = export.load_run(run).config
    stored = dict(np.load(config.data.partition(":")[2]))
    stored["y_train"][0] = 3
    np.savez(tmp_path / "other.npz", **stored)
    code, _, err = dotkd("eval", run, "--data", f"arrays:{tmp_path / 'other.npz'}")
    assert code == 2
    assert "expected the classes of the training data (0, 1, 2), got 0, 1, 2, 3" in err


def test_folder_without_weights_is_refused(run: Path, tmp_path: Path):
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(FileNotFoundError, match=r"no weights at .*student\.safetensors"):
        export.load_run(tmp_path)
