"""A student out of its run folder: loaded again, written as safetensors and ONNX, and the files held against it.

An exported file takes the inputs that the student was trained on, float32 (N, *input_shape) and already normalised:
`(x - mean) / std` by channel, with uint8 pixels divided by 255 before. It returns logits (N, C). What is needed for
that travels in the file as metadata: class_names, mean, std, input_shape (JSON), and where the student came from.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dotkd import __version__, data, models
from dotkd.atomic_file import write_atomically
from dotkd.config import Config
from dotkd.data import Dataset
from dotkd.distiller import logits_of

WEIGHTS = "student.safetensors"
FORMATS = {"safetensors": "student.safetensors", "onnx": "student.onnx"}
# Differences of float32 kernels, relative to the largest logit; a wrong graph is off by orders of magnitude more.
TOLERANCE = 1e-4
_CHECKED_SAMPLES = 256


class Loaded(NamedTuple):
    """A run's student in eval mode on the CPU, with the data it was trained on."""

    directory: Path
    config: Config
    dataset: Dataset
    student: nn.Module


class Check(NamedTuple):
    """An exported file held against the student on test samples.

    max_difference: largest absolute difference of two logits; allowed: the largest that passes.
    agreement: share of the samples with the same predicted class.
    """

    path: Path
    samples: int
    max_difference: float
    allowed: float
    agreement: float

    @property
    def passed(self) -> bool:
        """Whether the file computes what the student computes."""
        return self.max_difference <= self.allowed


class OnnxStudent(nn.Module):
    """An ONNX file as a module: (N, *input_shape) float32 on the CPU to logits (N, C), by onnxruntime."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        runtime = _need("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors alone: it warns on the terminal of graphs that it optimizes
        self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of one batch."""
        (logits,) = self._session.run(None, {self._input: inputs.cpu().numpy()})
        return torch.from_numpy(logits)


class _LogitsAlone(nn.Module):
    """The student without what it may return beside its logits."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, inputs: Tensor) -> Tensor:
        return logits_of(self.student(inputs))


def load_run(directory: Path, weights: Path | None = None) -> Loaded:
    """The student of the run in `directory`, with `weights` (or the run's final ones) in it.

    Raises FileNotFoundError where `directory` is no run or has no weights yet, ValueError where they do not fit.
    """
    path = directory / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no run: it has no config.yaml")
    config = Config.from_sources(path)
    dataset = data.load(config.data, validation=config.validation, image_size=config.image_size)
    student = models.build(
        config.student,
        num_classes=dataset.num_classes,
        input_shape=dataset.input_shape,
        options=config.student_options,
    )
    models.load_weights(student, weights or directory / WEIGHTS)
    return Loaded(directory, config, dataset, student.eval())


def export(loaded: Loaded, kind: str, folder: Path) -> Check:
    """Writes the student as `kind` (a name of FORMATS) into `folder`, loads it again and holds it against the student.

    Raises ModuleNotFoundError naming the extra `onnx` where a package is missing, CheckpointError where the disk
    refuses. A check that fails is returned, not raised.
    """
    path = folder / FORMATS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "onnx":
        _write_onnx(loaded, path)
        return check(loaded, OnnxStudent(path), path)
    _write_safetensors(loaded, path)
    again = models.build(
        loaded.config.student,
        num_classes=loaded.dataset.num_classes,
        input_shape=loaded.dataset.input_shape,
        options=loaded.config.student_options,
    )
    models.load_weights(again, path)
    return check(loaded, again.eval(), path)


@torch.no_grad()
def check(loaded: Loaded, exported: nn.Module, path: Path) -> Check:
    """Runs both on the first test samples, in batches of 64, and the first sample once more alone."""
    wanted: list[Tensor] = []
    got: list[Tensor] = []
    for batch in data.batches(loaded.dataset, "test", batch_size=64):
        for inputs in (batch.inputs, batch.inputs[:1]) if not wanted else (batch.inputs,):
            wanted.append(logits_of(loaded.student(inputs)).float())
            got.append(logits_of(exported(inputs)).float())
        if sum(map(len, wanted)) > _CHECKED_SAMPLES:
            break
    ours, theirs = torch.cat(wanted), torch.cat(got)
    difference = float((ours - theirs).abs().nan_to_num(nan=float("inf")).max())
    agreement = float((ours.argmax(1) == theirs.argmax(1)).float().mean())
    return Check(path, len(ours) - 1, difference, TOLERANCE * max(1.0, float(ours.abs().max())), agreement)


def metadata(loaded: Loaded) -> dict[str, str]:
    """What a reader of the file must know; lists are JSON."""
    dataset, config = loaded.dataset, loaded.config
    return {
        "class_names": json.dumps(dataset.class_names),
        "input_shape": json.dumps(dataset.input_shape),
        "mean": json.dumps(dataset.mean.tolist()),
        "std": json.dumps(dataset.std.tolist()),
        "input": "float32 (N, *input_shape), (x - mean) / std by channel; x is float32, or uint8 / 255",
        "output": "logits (N, number of classes)",
        "source_run": loaded.directory.resolve().name,
        "student": config.student,
        "data": config.data.partition(":")[0],
        "method": config.method,
        "trainer": config.trainer,
        "seed": str(config.seed),
        "dotkd": __version__,
    }


def _write_safetensors(loaded: Loaded, path: Path) -> None:
    from safetensors.torch import save

    # Cloned: tied weights share memory, which the format does not hold.
    tensors = {name: value.detach().clone().contiguous() for name, value in loaded.student.state_dict().items()}
    write_atomically(path, save(tensors, metadata(loaded)))


def _write_onnx(loaded: Loaded, path: Path) -> None:
    onnx = _need("onnx")
    modern = importlib.util.find_spec("onnxscript") is not None
    model = _LogitsAlone(loaded.student).eval()
    # Two samples: of a batch of one the exporter would conclude that the batch is always one.
    example = torch.zeros(2, *loaded.dataset.input_shape)
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"]}
    with _silenced(), torch.no_grad():
        if modern:
            shapes = ({0: torch.export.Dim("batch")},)
            program = torch.onnx.export(model, (example,), dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
            assert program is not None
            proto = program.model_proto
        else:
            axes = {"input": {0: "batch"}, "logits": {0: "batch"}}
            with tempfile.TemporaryDirectory() as folder:
                file = str(Path(folder) / path.name)
                torch.onnx.export(model, (example,), file, dynamo=False, dynamic_axes=axes, **names)
                proto = onnx.load(file)
    for key, value in metadata(loaded).items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(proto)
    write_atomically(path, proto.SerializeToString())


def _need(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"ONNX needs {error.name}; install the extra `onnx`: pip install 'dotkd[onnx]'", name=error.name
        ) from error


@contextmanager
def _silenced() -> Generator[None, None, None]:
    """Keeps the exporter's progress, warnings and logs off the terminal; its errors are raised, not printed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
