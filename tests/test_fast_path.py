"""How the passes of a step are computed. The contract:

- `auto` is bf16 and channels_last on a GPU that has bf16, float32 and torch's own layout elsewhere, and nothing
  compiled; the summary says what it came to. channels_last is refused on a CPU, and for what are no pictures.
- channels_last changes rounding alone, of runs and methods that look inside; a run in it resumes to the same bits;
  files are laid out as always.
- The moving average is torch's own to the bit.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dotkd import Config, Trainer
from dotkd.averaging import MovingAverage
from dotkd.config import ConfigError
from dotkd.execution import Execution
from tiny_runs import everything, images, stopped_at, tiny, vectors

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PICTURES, VECTORS = (3, 8, 8), (8,)


# --- what `auto` comes to


@pytest.mark.parametrize(
    ("keys", "device", "has_bf16", "shape", "expected"),
    [
        ({}, CPU, True, PICTURES, ("fp32", False, False)),
        ({}, CUDA, True, PICTURES, ("bf16", True, False)),
        ({}, CUDA, True, VECTORS, ("bf16", False, False)),
        ({}, CUDA, False, PICTURES, ("fp32", False, False)),
        ({"precision": "fp16"}, CUDA, False, PICTURES, ("fp16", True, False)),
        ({"precision": "fp32"}, CUDA, True, PICTURES, ("fp32", False, False)),
        ({"precision": "bf16"}, CPU, False, PICTURES, ("bf16", False, False)),
        ({"channels_last": True, "compile": True}, CUDA, False, PICTURES, ("fp32", True, True)),
        ({"compile": True}, CPU, False, PICTURES, ("fp32", False, True)),
        ({"channels_last": False, "compile": False}, CUDA, True, PICTURES, ("bf16", False, False)),
    ],
)
def test_what_auto_comes_to(monkeypatch, keys, device, has_bf16, shape, expected):
    def supported(*, including_emulation):
        assert not including_emulation
        return has_bf16

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    found = Execution.of(Config(**keys), device, shape)
    assert found[1:] == expected
    assert found.as_json() == dict(zip(("precision", "channels_last", "compile"), expected, strict=True))


def test_a_layout_of_pictures_for_what_is_none_is_refused(home, tmp_path):
    text = r"channels_last needs inputs \(C, H, W\), arrays:.* has \(8,\): give auto"
    with pytest.raises(ValueError, match=text):
        Trainer(tiny(vectors(home), channels_last=True, trainer="dot"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_channels_last_on_a_cpu_is_refused(home, tmp_path):
    text = "channels_last: expected false or auto on a CPU, where torch's strided 1x1 convolutions write beyond their"
    with pytest.raises(ValueError, match=text):
        Trainer(tiny(images(home), channels_last=True, trainer="dot"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_keys_take_what_they_say():
    for text, value in (("auto", "auto"), ("true", True), ("false", False)):
        config = Config.from_sources(None, [f"compile={text}", f"channels_last={text}"])
        assert (config.compile, config.channels_last) == (value, value)
    for key in ("compile", "channels_last"):
        with pytest.raises(ConfigError, match=f"^{key}: expected true or false, or auto, got 'yes'$"):
            Config.from_sources(None, [f"{key}=yes"])
        with pytest.raises(ConfigError, match=f"^{key}: expected true or false, or auto, got 1$"):
            Config.from_sources(None, [f"{key}=1"])
    with pytest.raises(
        ConfigError, match=r"^precision: expected one of auto, fp32, bf16, fp16, got 'bf61'; did you mean"
    ):
        Config.from_sources(None, ["precision=bf61"])


def test_nothing_but_products_is_computed_in_16_bits():
    model, inputs = nn.Linear(4, 3), torch.randn(5, 4)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        with Execution(CPU, precision, False, False).autocast():
            assert model(inputs).dtype == dtype
            assert model.weight.dtype == torch.float32


# --- channels_last


@pytest.fixture
def in_channels_last(monkeypatch):
    """Whatever the config says, on a CPU too."""
    original = Execution.of.__func__
    monkeypatch.setattr(Execution, "of", classmethod(lambda *args: original(*args)._replace(channels_last=True)))


@pytest.mark.parametrize("changes", [{}, {"method": "at"}, {"method": "ofd"}, {"method": "crld"}, {"accumulate": 2}])
def test_channels_last_changes_rounding_alone(pictures, tmp_path, changes, request):
    config = pictures.replace(**changes)
    Trainer(config, tmp_path / "plain").fit()
    request.getfixturevalue("in_channels_last")
    seen = []
    last = Trainer(config, tmp_path / "last")
    kernels = [p for model in (last.student, last.teacher) for p in model.parameters() if p.dim() == 4]
    assert len(kernels) == 4
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)

    def look(module, inputs):
        if module.training:
            seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    last.student.register_forward_pre_hook(look)
    summary = last.fit()
    assert summary["execution"] == {"precision": "fp32", "channels_last": True, "compile": False}
    assert seen
    assert all(seen)
    weights = load_file(tmp_path / "plain" / "student.safetensors")
    for name, value in load_file(tmp_path / "last" / "student.safetensors").items():
        assert value.is_contiguous()
        torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=1e-4)


def test_a_resumed_run_in_channels_last_has_the_same_bits(pictures, tmp_path, in_channels_last):
    config = pictures.replace(epochs=2)
    Trainer(config, tmp_path / "whole").fit()
    stopped_at(3, config, tmp_path / "stopped")
    Trainer.resume(tmp_path / "stopped").fit()
    assert everything(tmp_path / "stopped") == everything(tmp_path / "whole")


# --- the moving average


def test_the_moving_average_is_torchs_own():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))
    ours = MovingAverage(model, decay=0.7)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=True)
    for _ in range(4):
        with torch.no_grad():
            model(torch.randn(6, 4))
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        ours.update_parameters(model)
        theirs.update_parameters(model)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name
