"""The contract of the models that `dotkd.models.build` knows by name.

1. They have the published number of parameters, map (N, *input_shape) to (N, num_classes) with every norm and
   at every size, send a gradient to every parameter from the first step on, give the same output twice in
   eval, start from the same bits under the same seed, and can learn a handful of examples by heart.
2. `build` refuses what it cannot build: the message gives the rule, the value and the nearest valid name, and
   all unknown options appear at once.
"""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dotkd import models
from dotkd.models.norms import group_count

NORMS = ("batch", "group", "none")
SHAPES = {"mlp": (2, 3, 5), "resnet1d": (2, 13), "resnet2d": (3, 9, 7)}
CASES = [(name, norm) for name in SHAPES for norm in NORMS]

Shape = tuple[int, ...]


def build(name: str, *, num_classes: int = 5, shape: Shape | None = None, **options: Any) -> nn.Module:
    shape = SHAPES[name] if shape is None else shape
    return models.build(name, num_classes=num_classes, input_shape=shape, options=options)


def inputs_for(name: str, count: int = 4) -> Tensor:
    return torch.randn(count, *SHAPES[name], generator=torch.Generator().manual_seed(0))


def resnet_count(dims: int, channels: int, classes: int, depth: int, width: int, norm: str) -> int:
    """Count by hand: kernel * in * out weights a convolution, 2 (norm) or 1 (bias) for each output."""
    shift = 1 if norm == "none" else 2
    blocks = (depth - 2) // 6
    first, second, third = width, 2 * width, 4 * width
    kernel = 3**dims
    total = kernel * channels * first + shift * first
    total += blocks * 2 * (kernel * first * first + shift * first)
    for inner, outer in ((first, second), (second, third)):
        total += kernel * inner * outer + (2 * blocks - 1) * kernel * outer * outer
        total += 2 * blocks * shift * outer
        total += inner * outer + shift * outer
    scales = 3 * blocks if norm == "none" else 0
    return total + scales + third * classes + classes


def test_resnet20_has_the_published_number_of_parameters() -> None:
    # 0.27 million in table 6 of He et al.; with projections 272,474, and 278,324 for 100 classes.
    for classes, expected in ((10, 272_474), (100, 278_324)):
        model = build("resnet2d", num_classes=classes, shape=(3, 32, 32), depth=20)
        assert models.parameter_count(model) == expected


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("depth", "width"), [(8, 16), (14, 6), (20, 4)])
@pytest.mark.parametrize("dims", [1, 2])
def test_resnet_parameters_match_the_closed_form(dims: int, depth: int, width: int, norm: str) -> None:
    shape = (3, *[8] * dims)
    model = build(f"resnet{dims}d", num_classes=7, shape=shape, depth=depth, width=width, norm=norm)
    assert models.parameter_count(model) == resnet_count(dims, 3, 7, depth, width, norm)


def test_mlp_parameters_counted_by_hand() -> None:
    # 30 inputs, two layers of 64, 5 classes: 30*64 + 2*64 + 64*64 + 2*64 + 64*5 + 5
    assert models.parameter_count(build("mlp")) == 6597
    # The same with biases in place of the norm: 30*64 + 64 + 64*64 + 64 + 64*5 + 5
    assert models.parameter_count(build("mlp", norm="none")) == 6469
    assert models.parameter_count(build("mlp", depth=0)) == 30 * 5 + 5


def test_frozen_parameters_count_and_shared_ones_count_once() -> None:
    shared, frozen = nn.Linear(3, 3), nn.Linear(3, 1).requires_grad_(False)
    model = nn.Sequential(shared, shared, frozen, nn.BatchNorm1d(1, affine=False))
    assert models.parameter_count(model) == 12 + 4


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_logits_have_their_shape_and_gradients_reach_every_parameter(name: str, norm: str) -> None:
    torch.manual_seed(0)
    model = build(name, norm=norm)
    logits = model(inputs_for(name))
    assert logits.shape == (4, 5)
    assert logits.dtype == torch.float32
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    missed = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert missed == []


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8, 8), (11, 5)])
def test_resnets_take_inputs_of_any_size(size: tuple[int, int]) -> None:
    # Nothing but the number of channels is tied to `input_shape`.
    assert build("resnet2d", width=4).eval()(torch.zeros(2, 3, *size)).shape == (2, 5)
    assert build("resnet1d", width=4).eval()(torch.zeros(2, 2, size[0])).shape == (2, 5)


def test_resnet_stages_halve_the_size_and_double_the_channels() -> None:
    model = build("resnet2d", shape=(3, 32, 32), width=4, depth=14)
    seen: list[Shape] = []
    for index in range(3):
        stage = model.get_submodule(f"stages.{index}")
        assert len(list(stage.children())) == 2
        stage.register_forward_hook(lambda _module, _inputs, output: seen.append(tuple(output.shape)))
    model(torch.zeros(2, 3, 32, 32))
    assert seen == [(2, 4, 32, 32), (2, 8, 16, 16), (2, 16, 8, 8)]


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_eval_is_deterministic_and_leaves_the_model_alone(name: str, norm: str) -> None:
    model = build(name, norm=norm).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        first, second = model(inputs_for(name)), model(inputs_for(name))
        alone = model(inputs_for(name)[:1])
    assert torch.equal(first, second)
    # No example sees the others of its batch.
    torch.testing.assert_close(alone, first[:1])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_the_seed_decides_the_first_weights(name: str, norm: str) -> None:
    def start(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(build(name, norm=norm).parameters())

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_every_model_learns_a_handful_by_heart(name: str, norm: str) -> None:
    torch.manual_seed(0)
    model = build(name, norm=norm, width=32 if name == "mlp" else 8)
    inputs, targets = inputs_for(name, 10), torch.arange(10) % 5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses: list[float] = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1
    assert losses[-1] < 0.1


def test_without_norm_the_logits_keep_their_scale_at_any_depth() -> None:
    def spread(depth: int) -> float:
        torch.manual_seed(0)
        model = build("resnet1d", depth=depth, norm="none")
        with torch.no_grad():
            return float(model(inputs_for("resnet1d", 64)).std())

    assert spread(8) / 3 < spread(56) < spread(8) * 3


def test_without_norm_every_branch_starts_at_one_over_the_root_of_the_blocks() -> None:
    model = build("resnet1d", depth=20, norm="none")
    scales = [value for key, value in model.named_parameters() if key.endswith(".scale")]
    assert len(scales) == 9
    assert all(scale.item() == pytest.approx(1 / 3) for scale in scales)
    assert not any(key.endswith(".scale") for key, _ in build("resnet1d", depth=20).named_parameters())


def test_convolutions_start_with_the_variance_of_their_fan_out() -> None:
    torch.manual_seed(0)
    weight = build("resnet2d", width=64, norm="none").get_parameter("stages.1.0.conv1.weight")
    assert weight.shape == (128, 64, 3, 3)
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.02)


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (4, 1), (8, 2), (10, 2), (16, 4), (64, 16), (512, 32)])
def test_group_norm_keeps_four_channels_in_a_group(channels: int, groups: int) -> None:
    assert group_count(channels) == groups


UNKNOWN = [
    (
        "resnet1",
        {},
        "unknown model `resnet1`, did you mean `resnet1d`? (known: mlp, resnet1d, resnet2d, resnet8, ",
    ),
    ("MLP", {}, "unknown model `MLP`, did you mean `mlp`?"),
    ("vgg", {}, "unknown model `vgg`, did you mean `vgg8`?"),
    ("perceptron", {}, "unknown model `perceptron` (known: mlp, resnet1d, "),
    (
        "mlp",
        {"widht": 8, "deep": 1, "zzz": 0},
        "model `mlp`: unknown option `widht`, did you mean `width`?; unknown option `deep`, did you mean "
        "`depth`?; unknown option `zzz` (its options: width, depth, norm)",
    ),
    ("mlp", {"num_classes": 3}, "`num_classes` follows from the data and is no option"),
]


@pytest.mark.parametrize(("spec", "options", "text"), UNKNOWN)
def test_unknown_names_are_refused_with_the_nearest(spec: str, options: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        models.build(spec, num_classes=3, input_shape=(2, 8), options=options)


VALUES = [
    ("mlp", {"width": 0}, ValueError, "expected `width` >= 1, got 0"),
    ("mlp", {"depth": -1}, ValueError, "expected `depth` >= 0, got -1"),
    ("mlp", {"num_classes": 0}, ValueError, "expected `num_classes` >= 1, got 0"),
    ("mlp", {"width": "8"}, TypeError, "expected `width` to be an integer, got '8' (str)"),
    ("mlp", {"width": True}, TypeError, "expected `width` to be an integer, got True (bool)"),
    ("resnet1d", {"width": 8.0}, TypeError, "expected `width` to be an integer, got 8.0 (float)"),
    ("resnet1d", {"depth": 18}, ValueError, "expected `depth` = 6n + 2, got 18; the nearest are 14 and 20"),
    ("resnet2d", {"depth": 2}, ValueError, "expected `depth` >= 8, got 2"),
    ("mlp", {"norm": None}, TypeError, '`norm` to be one of "batch", "group", "none", got None (NoneType)'),
    (
        "resnet2d",
        {"norm": "bacth"},
        ValueError,
        'expected `norm` to be one of "batch", "group", "none", got "bacth", did you mean `batch`?',
    ),
]


@pytest.mark.parametrize(("name", "options", "kind", "text"), VALUES)
def test_wrong_values_are_refused(name: str, options: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=re.escape(text)):
        build(name, **options)


INPUT_SHAPES = [
    ("mlp", (), ValueError, "expected `input_shape` with at least one dimension, got ()"),
    ("mlp", (3, 0), ValueError, "expected `input_shape[1]` >= 1, got 0"),
    ("mlp", 8, TypeError, "expected `input_shape` to be a tuple such as (channels, length), got 8 (int)"),
    (
        "resnet1d",
        (3, 8, 8),
        ValueError,
        "resnet1d expects `input_shape` = (channels, length), got (3, 8, 8); resnet2d fits such inputs",
    ),
    (
        "resnet2d",
        (3, 8),
        ValueError,
        "resnet2d expects `input_shape` = (channels, height, width), got (3, 8); resnet1d fits such inputs",
    ),
    ("resnet1d", (8,), ValueError, "got (8,); mlp fits such inputs"),
    (
        "resnet2d",
        (3, 4, 8, 8),
        ValueError,
        "got (3, 4, 8, 8); mlp, which flattens any input, fits such inputs",
    ),
]


@pytest.mark.parametrize(("name", "shape", "kind", "text"), INPUT_SHAPES)
def test_wrong_input_shapes_are_refused(name: str, shape: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=re.escape(text)):
        build(name, shape=shape)
