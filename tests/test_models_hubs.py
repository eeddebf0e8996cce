"""The contract of `timm:NAME`, `torchvision:NAME` and `transformers:NAME`.

A spec builds the library's own model for the classes, channels and picture size of the data, and its logits are
(N, classes). Options are the library's; a misspelt name or option is refused with the nearest. Pretrained weights are
loaded whole, but for a classifier of another width, which is the only part that may start anew. Without a network the
error comes at once and says what was wanted and how to supply it. A library that is missing, or a torchvision that does
not match torch, is named together with the command that helps. No library is imported before a model of it is built.

Nothing here is downloaded: models are built small from options, weights written by the tests themselves.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dotkd import Config, models
from dotkd.config import ConfigError
from dotkd.methods.activations import logits_of
from dotkd.models import hub_access

pytest.importorskip("torchvision")
pytest.importorskip("timm")
pytest.importorskip("transformers")

VIT = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
HF_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 8,
}
HF_STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
# spec, options, input shape: transformers, convolutional networks and hybrids, one and three channels.
CASES: list[tuple[str, dict[str, Any], tuple[int, int, int]]] = [
    ("timm:vit_tiny_patch16_224", VIT, (3, 32, 32)),
    ("timm:vit_tiny_patch16_224", VIT, (1, 16, 32)),
    ("timm:resnet10t", {}, (1, 32, 32)),
    ("timm:convnext_atto", {"dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}, (3, 32, 32)),
    ("timm:test_mambaout", {}, (3, 64, 64)),
    (
        "timm:levit_128s",
        {"embed_dim": (32, 32, 32), "depth": (1, 1, 1), "key_dim": 8, "num_heads": (2, 2, 2)},
        (3, 64, 64),
    ),
    ("timm:mobilevit_xxs", {}, (3, 64, 64)),
    ("torchvision:resnet18", {}, (3, 32, 32)),
    ("torchvision:mobilenet_v3_small", {"dropout": 0.1}, (3, 32, 32)),
    ("torchvision:googlenet", {}, (3, 32, 32)),
    ("transformers:vit", HF_VIT, (1, 32, 32)),
    ("transformers:deit", HF_VIT, (3, 32, 32)),
    ("transformers:convnext", {**HF_STAGES, "num_stages": 4}, (3, 32, 32)),
    ("transformers:resnet", {**HF_STAGES, "embedding_size": 8, "layer_type": "basic"}, (1, 32, 32)),
]


def build(spec: str, *, classes: int = 5, shape: tuple[int, ...] = (3, 32, 32), **options: Any) -> nn.Module:
    return models.build(spec, num_classes=classes, input_shape=shape, options=options)


def refusal(spec: str, kind: type[Exception] = ValueError, **given: Any) -> str:
    with pytest.raises(kind) as caught:
        build(spec, **given)
    return str(caught.value)


def changed(model: nn.Module) -> nn.Module:
    """The model with every number, statistics included, moved away from where fresh ones start."""
    torch.manual_seed(3)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor))
    return model


def differing(one: nn.Module, other: nn.Module) -> set[str]:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    return {name for name in left if not torch.equal(left[name], right[name])}


@pytest.mark.parametrize(("spec", "options", "shape"), CASES, ids=[f"{c[0]}-{c[2][0]}" for c in CASES])
def test_the_data_shapes_the_model_and_its_weights_come_back(
    spec: str, options: dict[str, Any], shape: tuple[int, int, int], tmp_path: Path
) -> None:
    model = build(spec, shape=shape, **options).eval()
    assert type(model).__module__.startswith(spec.partition(":")[0])
    inputs = torch.rand(2, *shape)
    with torch.no_grad():
        logits = logits_of(model(inputs))
    assert logits.shape == (2, 5)
    assert logits.dtype == torch.float32
    save_file(changed(model).state_dict(), tmp_path / "weights.safetensors")
    again = build(spec, shape=shape, **options)
    assert differing(model, again)
    models.load_weights(again, tmp_path / "weights.safetensors")
    assert differing(model, again) == set()
    wider = build(spec, classes=6, shape=shape, **options)
    with pytest.raises(ValueError, match=r"\(5,\) in the file, \(6,\) in the model"):
        models.load_weights(wider, tmp_path / "weights.safetensors")


def test_options_reach_the_model() -> None:
    assert len(build("timm:vit_tiny_patch16_224", **VIT).get_submodule("blocks")) == 2
    assert build("torchvision:mobilenet_v3_small", dropout=0.1).get_submodule("classifier.2").p == 0.1
    assert build("transformers:vit", **HF_VIT).config.hidden_size == 16


def test_transformers_get_the_size_of_the_pictures() -> None:
    assert build("timm:vit_tiny_patch16_224", shape=(3, 16, 24), **VIT).get_parameter("pos_embed").shape[1] == 1 + 6
    vit = build("torchvision:vit_b_32", shape=(3, 64, 64))
    assert vit.get_parameter("encoder.pos_embedding").shape[1] == 1 + 4
    assert build("transformers:vit", shape=(3, 16, 24), **HF_VIT).config.image_size == (16, 24)
    assert "square pictures, the data has 32 x 64" in refusal("torchvision:vit_b_32", shape=(3, 32, 64))


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("timm:resnt18", {}, "has no `resnt18`, did you mean `resnet18`?"),
    ("timm:resnet18.a1_in1", {}, "resnet18 has no weights `a1_in1`, did you mean `a1_in1k`?"),
    ("timm:resnet18", {"drop_rat": 0.1}, "model `timm:resnet18`: unknown option `drop_rat`, did you mean `drop_rate`?"),
    ("timm:resnet18", {"in_chans": 3}, "`in_chans` follows from the data and is no option"),
    ("timm:resnet18", {"layers": "many"}, "model `timm:resnet18` cannot be built with "),
    (
        "timm:mixer_s16_224",
        {"patch_size": 8},
        "is settled by the name and is no option; a class takes it: timm.models.mlp_mixer:MlpMixer",
    ),
    ("timm:convnext_atto_ols", {"pretrained": True, "shape": (3, 8)}, "takes pictures, `input_shape` = (channels, "),
    ("timm:test_mambaout", {"pretrained": True}, "timm has no pretrained weights of `test_mambaout`"),
    ("timm:", {}, "expected a model of timm as `timm:NAME`, got `timm:`"),
    ("tim:resnet18", {}, "no library or module `tim`, did you mean `timm:resnet18`?"),
    ("torchvison:vgg11", {}, "no library or module `torchvison`, did you mean `torchvision:vgg11`?"),
    ("torchvision:resnet", {}, "torchvision has no classifier `resnet`, did you mean `resnet50`?"),
    ("torchvision:resnet18", {"group": 2}, "unknown option `group`, did you mean `groups`?"),
    ("torchvision:resnet18", {"shape": (1, 32, 32)}, "take pictures of 3 channels, the data has 1; those of timm"),
    (
        "torchvision:resnet18",
        {"weights": "IMAGENET1K_V3"},
        "has no weights 'IMAGENET1K_V3', did you mean `IMAGENET1K_V1`",
    ),
    ("transformers:vitt", {}, "no image classifier of that type, did you mean `vit`?"),
    ("transformers:owner/name", {}, "a repository needs the option `pretrained`"),
    ("transformers:vit", {"hiden_size": 8}, "unknown option `hiden_size`, did you mean `hidden_size`?"),
    ("transformers:vit", {"num_labels": 8}, "`num_labels` follows from the data and is no option"),
    ("transformers:vit", {**HF_VIT, "hidden_size": "wide"}, "cannot be built with "),
]


@pytest.mark.parametrize(("spec", "options", "text"), REFUSED)
def test_what_cannot_be_built_is_refused(spec: str, options: dict[str, Any], text: str) -> None:
    assert text in refusal(spec, **options)


def test_pretrained_is_a_yes_or_a_no() -> None:
    for spec in ("timm:resnet10t", "torchvision:resnet18", "transformers:vit"):
        assert "`pretrained` to be true or false, got 'yes'" in refusal(spec, TypeError, pretrained="yes")


def test_a_config_refuses_misnamed_libraries_and_imports_none() -> None:
    with pytest.raises(ConfigError, match=r"^student: no library or module `tim`, did you mean `timm:resnet18`\?"):
        Config(student="tim:resnet18")
    code = (
        "import sys; from dotkd import Config; Config(student='timm:resnet18', teacher='transformers:vit'); "
        "print(sorted({'timm', 'torchvision', 'transformers'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("spec", ["timm:resnet18", "torchvision:resnet18", "transformers:vit"])
def test_a_missing_library_names_its_extra(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = spec.partition(":")[0]
    monkeypatch.setitem(sys.modules, library, None)
    extra = "hf" if library == "transformers" else "vision"
    with pytest.raises(ImportError) as caught:
        build(spec)
    assert str(caught.value) == f"model `{spec}` needs the package {library}: pip install 'dotkd[{extra}]'"


def test_a_torchvision_of_another_build_is_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: str) -> None:
        try:
            raise RuntimeError("operator torchvision::nms does not exist")
        except RuntimeError as error:
            raise ImportError("cannot import name 'InterpolationMode'") from error

    monkeypatch.setattr(importlib, "import_module", broken)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    with pytest.raises(ImportError) as caught:
        build("timm:resnet18")
    message = str(caught.value)
    assert "was not built for torch 2.13.0+cpu: its compiled operators are missing" in message
    assert message.endswith("pip install 'torch==2.13.*' 'torchvision==0.28.*'")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No server answers, and nothing has been stored by earlier downloads."""
    import huggingface_hub.constants

    monkeypatch.setattr(hub_access, "reachable", lambda url: False)
    monkeypatch.setattr("dotkd.models.torchvision_models.reachable", lambda url: False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "wanted", "by_hand"),
    [
        ("timm:resnet18", "model.safetensors of the repository timm/resnet18", "pretrained_cfg_overlay={file: PATH}"),
        ("torchvision:resnet18", "resnet18-f37072fd.pth is not at hand", "checkpoints; or, for weights of as many"),
        ("transformers:owner/name", "model.safetensors of owner/name", "into one folder elsewhere and name it"),
    ],
)
def test_without_a_network_the_error_says_what_is_wanted(
    spec: str, wanted: str, by_hand: str, no_network: Path
) -> None:
    import huggingface_hub.constants

    before = huggingface_hub.constants.HF_HUB_OFFLINE
    message = refusal(spec, FileNotFoundError, pretrained=True)
    assert message.startswith(f"model `{spec}`: ")
    assert wanted in message
    assert by_hand in message
    assert before == huggingface_hub.constants.HF_HUB_OFFLINE


def test_a_server_is_asked_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_access.urllib.request, "getproxies", dict)
    assert not hub_access.reachable("http://127.0.0.1:9")  # the port of "discard", where nothing listens
    monkeypatch.setattr(hub_access.urllib.request, "getproxies", lambda: {"https": "http://127.0.0.1:9"})
    assert hub_access.reachable("http://127.0.0.1:9")


def test_timm_loads_a_file_and_replaces_only_the_classifier(tmp_path: Path) -> None:
    source = changed(build("timm:vit_tiny_patch16_224", classes=1000, **VIT))
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    overlay = {"file": str(tmp_path / "weights.safetensors")}
    same = build("timm:vit_tiny_patch16_224", classes=1000, pretrained=True, pretrained_cfg_overlay=overlay, **VIT)
    assert differing(source, same) == set()
    other = build("timm:vit_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay=overlay, **VIT)
    assert differing_shared(source, other) == {"head.weight", "head.bias"}
    absent = {"file": str(tmp_path / "absent.safetensors")}
    message = refusal("timm:vit_tiny_patch16_224", FileNotFoundError, pretrained=True, pretrained_cfg_overlay=absent)
    assert f"the file {tmp_path / 'absent.safetensors'} is not at hand" in message


def differing_shared(one: nn.Module, other: nn.Module) -> set[str]:
    left, right = one.state_dict(), other.state_dict()
    return {n for n in left if left[n].shape != right[n].shape or not torch.equal(left[n], right[n])}


def test_torchvision_loads_all_but_a_classifier_of_another_width(no_network: Path) -> None:
    source = changed(build("torchvision:squeezenet1_1", classes=1000))
    folder = no_network / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(source.state_dict(), folder / "squeezenet1_1-b8a52dc0.pth")
    assert differing(source, build("torchvision:squeezenet1_1", classes=1000, pretrained=True)) == set()
    narrow = build("torchvision:squeezenet1_1", weights="IMAGENET1K_V1")
    assert differing_shared(source, narrow) == {"classifier.1.weight", "classifier.1.bias"}
    assert narrow(torch.rand(1, 3, 32, 32)).shape == (1, 5)


def test_transformers_loads_a_folder_and_replaces_only_the_classifier(tmp_path: Path) -> None:
    source: Any = changed(build("transformers:vit", **HF_VIT))
    source.half().save_pretrained(tmp_path / "teacher")
    source.float()
    spec = f"transformers:{tmp_path / 'teacher'}"
    assert differing(source, build(spec)) == set()
    assert differing_shared(source, build(spec, classes=7)) == {"classifier.weight", "classifier.bias"}
    fresh = build("transformers:vit", **HF_VIT)
    models.load_weights(fresh, tmp_path / "teacher")
    assert differing(source, fresh) == set()
    assert "pictures of 32 x 32 pixels, the data has 16 x 16" in refusal(spec, shape=(3, 16, 16))
    assert "pictures of 3 channels, the data has 1" in refusal(spec, shape=(1, 32, 32))
    assert "unknown option `hiden_size`" in refusal(spec, hiden_size=4)
    assert "do not fit, or lack, " in refusal(spec, intermediate_size=16)


def test_weights_older_than_the_counter_of_batches_load(tmp_path: Path) -> None:
    source = changed(build("torchvision:resnet18"))
    state = {name: value for name, value in source.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    model = build("torchvision:resnet18")
    models.load_weights(model, tmp_path / "old.pth")
    assert differing(source, model) == set()
    torch.save({name: value for name, value in state.items() if "bn1" not in name}, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match=r"missing from the file: bn1\.num_batches_tracked"):
        models.load_weights(model, tmp_path / "cut.pth")


def run_python(code: str, *folders: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_the_stand_in_for_torchvisions_operators_waits_and_hides_nobody(tmp_path: Path) -> None:
    """`tests/cpu_torchvision` on PYTHONPATH: torch is not imported at the start, another sitecustomize still runs."""
    stubs = Path(__file__).parent / "cpu_torchvision"
    (tmp_path / "sitecustomize.py").write_text("theirs = 7\n")
    shown = run_python("import sys, sitecustomize as s; print(s.theirs, 'torch' in sys.modules)", stubs, tmp_path)
    assert shown.split() == ["7", "False"]
    code = (
        "import torchvision\ntry: torchvision.ops.nms(1, 2, 0.5)\nexcept Exception as e: print(type(e).__name__)\n"
        "print(torchvision.models.resnet18(num_classes=2).fc.out_features)"
    )
    assert re.fullmatch(r"\w+\s+2\s+", run_python(code, stubs))
