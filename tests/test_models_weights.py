"""The contract of `models.load_weights`.

Every accepted form loads to the bit: safetensors, both formats of torch, a run's folder, wrapper keys, the
prefixes of data-parallel and compiled models, 1x1 convolutions for linear layers. Weights that do not fit are
refused with every difference listed, and a refusal leaves the model as it was. No file can run code, whatever
it is called.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dotkd import models

State = dict[str, Tensor]


def make() -> nn.Module:
    return models.build("resnet1d", num_classes=5, input_shape=(2, 13), options={"width": 4})


@pytest.fixture
def trained() -> nn.Module:
    """A small model whose every number, statistics of BatchNorm included, differs from a fresh one's."""
    torch.manual_seed(7)
    model = make()
    model(torch.randn(8, 2, 13))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


def fresh() -> nn.Module:
    torch.manual_seed(8)
    return make()


def same(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


FORMS: dict[str, Callable[[State, Path], None]] = {
    "plain.safetensors": lambda state, path: save_file(state, path),
    "plain.pt": lambda state, path: torch.save(state, path),
    "old.pth": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "model.pth": lambda state, path: torch.save({"model": state, "epoch": 240, "best": 0.7}, path),
    "state_dict.pt": lambda state, path: torch.save({"state_dict": state, "model": "resnet8"}, path),
    "model_state_dict.pt": lambda state, path: torch.save({"model_state_dict": state, "epoch": 3}, path),
    "parallel.pt": lambda state, path: torch.save(prefixed("module.", state), path),
    "compiled.safetensors": lambda state, path: save_file(prefixed("_orig_mod.", state), path),
    "both.pt": lambda state, path: torch.save(prefixed("module._orig_mod.", state), path),
    "run/student.safetensors": lambda state, path: save_file(state, path),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_accepted_form_loads_to_the_bit(form: str, trained: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / form
    path.parent.mkdir(exist_ok=True)
    FORMS[form](trained.state_dict(), path)
    model = fresh()
    assert not same(model, trained)
    models.load_weights(model, str(path.parent if form.startswith("run") else path))
    assert same(model, trained)


def test_paths_may_have_a_tilde_spaces_unicode_and_links(
    trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file(trained.state_dict(), tmp_path / "poids d'été.safetensors")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "poids d'été.safetensors")
    for path in ("~/poids d'été.safetensors", "~/link.safetensors"):
        model = fresh()
        models.load_weights(model, path)
        assert same(model, trained)


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod"])
def test_wrapped_models_take_plain_weights(wrapper: str, trained: nn.Module, tmp_path: Path) -> None:
    torch.save(trained.state_dict(), tmp_path / "plain.pt")
    inner = fresh()
    models.load_weights(nn.ModuleDict({wrapper: inner}), tmp_path / "plain.pt")
    assert same(inner, trained)


@pytest.mark.parametrize("names", [("module",), ("module", "head")])
def test_a_part_that_the_user_calls_module_loads_too(names: tuple[str, ...], tmp_path: Path) -> None:
    one, other = (nn.ModuleDict({name: nn.Linear(2, 2) for name in names}) for _ in range(2))
    torch.save(one.state_dict(), tmp_path / "weights.pt")
    models.load_weights(other, tmp_path / "weights.pt")
    assert same(one, other)


def test_tied_weights_may_be_stored_once(tmp_path: Path) -> None:
    def tied() -> nn.ModuleDict:
        encoder, decoder = nn.Linear(3, 3), nn.Linear(3, 3)
        decoder.weight = encoder.weight
        return nn.ModuleDict({"encoder": encoder, "decoder": decoder})

    one, other = tied(), tied()
    state = one.state_dict()
    del state["decoder.weight"]
    save_file(state, tmp_path / "tied.safetensors")
    models.load_weights(other, tmp_path / "tied.safetensors")
    assert same(one, other)
    assert other.get_parameter("decoder.weight") is other.get_parameter("encoder.weight")


def test_half_precision_weights_are_cast(trained: nn.Module, tmp_path: Path) -> None:
    state = trained.state_dict()
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    save_file(half, tmp_path / "half.safetensors")
    model = fresh()
    models.load_weights(model, tmp_path / "half.safetensors")
    loaded = model.get_parameter("head.weight")
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, half["head.weight"].float())


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_1x1_convolution_fits_a_linear_layer_and_nothing_else(wrapped: bool, tmp_path: Path) -> None:
    def layers() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 2), nn.Embedding(4, 3))

    torch.manual_seed(1)
    path, source, model = tmp_path / "weights.pt", layers(), layers()
    state = source.state_dict()
    torch.save({**state, "0.weight": state["0.weight"][:, :, None, None]}, path)
    models.load_weights(nn.ModuleDict({"module": model}) if wrapped else model, path)
    assert same(source, model)
    for name, shape, other in (
        ("0.weight", (2, 3, 1, 2), "(2, 3)"),
        ("0.weight", (2, 3, 1), "(2, 3)"),
        ("0.weight", (3, 2, 1, 1), "(2, 3)"),
        ("0.bias", (2, 1, 1), "(2,)"),
        ("1.weight", (4, 3, 1, 1), "(4, 3)"),
    ):
        torch.save({**state, name: torch.zeros(shape)}, path)
        with pytest.raises(ValueError, match=re.escape(f"other shape: {name} {shape} in the file, {other} in the mo")):
            models.load_weights(model, path)
    linear = nn.Linear(3, 2)
    torch.save({"weight": torch.ones(2, 3, 1, 1), "bias": torch.ones(2)}, path)
    models.load_weights(linear, path)
    assert torch.equal(linear.weight, torch.ones(2, 3))


def refuse(path: Path, kind: type[Exception]) -> str:
    """Load into a fresh model, see it refused and the model unchanged; return the message."""
    model = fresh()
    with pytest.raises(kind) as caught:
        models.load_weights(model, path)
    assert same(model, fresh())
    return str(caught.value)


@pytest.mark.parametrize("form", ["plain.safetensors", "plain.pt"])
def test_all_differences_are_listed(form: str, trained: nn.Module, tmp_path: Path) -> None:
    state = dict(trained.state_dict())
    state["classifier.weight"] = state.pop("head.weight")
    state["head.bias"] = torch.zeros(9)
    state["stem.1.num_batches_tracked"] = torch.tensor(0.5)
    FORMS[form](state, tmp_path / form)
    first, *listed = refuse(tmp_path / form, ValueError).split("\n  ")
    assert first == f"the weights in {tmp_path / form} do not fit this model (4 entries differ, nothing was loaded):"
    assert set(listed) == {
        "missing from the file: head.weight (5, 16)",
        "unknown to the model: classifier.weight (5, 16)",
        "other shape: head.bias (9,) in the file, (5,) in the model",
        "other kind of number: stem.1.num_batches_tracked torch.float32 in the file, torch.int64 in the model",
    }


def test_a_missing_path_is_answered_with_the_nearest_name(trained: nn.Module, tmp_path: Path) -> None:
    run = tmp_path / "run-1"
    run.mkdir()
    weights = run / "student.safetensors"
    save_file(trained.state_dict(), weights)
    message = refuse(run / "studnet.safetensors", FileNotFoundError)
    assert message.endswith(f": {run} has no `studnet.safetensors`; did you mean {weights}?")
    message = refuse(tmp_path / "run1" / "student.safetensors", FileNotFoundError)
    assert message.startswith(f"no weights at {tmp_path / 'run1' / 'student.safetensors'}: ")
    assert message.endswith(f": {tmp_path} has no `run1`; did you mean {run}?")
    message = refuse(tmp_path / "quite" / "else", FileNotFoundError)
    assert message.endswith(f": {tmp_path} has no `quite`")
    message = refuse(weights / "x.pt", FileNotFoundError)
    assert message.endswith(f": {weights} is a file")


def test_a_folder_that_is_no_run_lists_the_weights_it_holds(trained: nn.Module, tmp_path: Path) -> None:
    message = refuse(tmp_path, FileNotFoundError)
    assert message == f"no student.safetensors in the folder {tmp_path}, so it is no finished run"
    torch.save(trained.state_dict(), tmp_path / "b.pt")
    save_file(trained.state_dict(), tmp_path / "a.safetensors")
    message = refuse(tmp_path, FileNotFoundError)
    assert message.endswith("; it holds a.safetensors, b.pt: name the file")


def test_other_kinds_of_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.onnx").write_bytes(b"x")
    message = refuse(tmp_path / "weights.onnx", ValueError)
    assert message.startswith("expected weights as a .safetensors, .pt or .pth file or as the folder of a run")
    assert message.endswith("weights.onnx")


def test_files_without_a_state_dict_are_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    message = refuse(tmp_path / "list.pt", ValueError)
    assert message.endswith("list.pt to hold a state dict (names to tensors), got list")
    torch.save({"epoch": 3, "weights": {"a": torch.ones(2)}, 5: torch.ones(1)}, tmp_path / "dict.pt")
    message = refuse(tmp_path / "dict.pt", ValueError)
    assert "itself or under `state_dict`, `model_state_dict`, `model`" in message
    assert message.endswith("these entries are none: epoch, weights, 5")


@pytest.mark.parametrize("form", ["plain.safetensors", "plain.pt", "old.pth"])
def test_damaged_files_are_refused(form: str, trained: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / form
    FORMS[form](trained.state_dict(), path)
    whole = path.read_bytes()
    for content in (b"", b"hello world\n" * 9, whole[: len(whole) // 2], whole[:-9]):
        path.write_bytes(content)
        message = refuse(path, ValueError)
        assert str(path) in message
        assert "damage" in message


class Attack:
    """What a pickle can carry: loading it the unsafe way creates the marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str, int]]:
        return os.open, (str(self.marker), os.O_CREAT | os.O_WRONLY)


@pytest.mark.parametrize("writer", ["new", "old", "raw"])
def test_a_malicious_pickle_is_refused_and_never_runs(writer: str, trained: nn.Module, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "weights.pt"
    content = {"state_dict": trained.state_dict(), "extra": Attack(marker)}
    if writer == "raw":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "new")
    message = refuse(path, ValueError)
    assert not marker.exists()
    assert message.startswith(f"{path} is refused: it should hold tensors alone and holds ")
    assert "could run any code" in message
    assert 'safetensors.torch.save_file(model.state_dict(), "weights.safetensors")' in message
    if writer != "raw":
        assert f"holds `{os.open.__module__}.open`" in message
        # The attack is real: the unsafe way of loading does run it.
        os.close(torch.load(path, weights_only=False)["extra"])
        assert marker.exists()


def test_a_pickle_under_the_name_of_safetensors_never_runs(tmp_path: Path) -> None:
    torch.save({"a": Attack(tmp_path / "marker")}, tmp_path / "weights.safetensors")
    assert "is damaged, or no safetensors file" in refuse(tmp_path / "weights.safetensors", ValueError)
    assert not (tmp_path / "marker").exists()


def test_a_whole_pickled_model_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    assert "holds `torch.nn.modules.linear.Linear`" in refuse(tmp_path / "whole.pt", ValueError)
