"""The contract of the published model families.

1. Each has the parameters of its published checkpoints: the same names, the same shapes, and the count that a source
   states. Such a checkpoint, with the wrapper and the prefixes it comes with, loads, and the logits are those of a
   literal transcription of the network.
2. `feature_points` name the stages, shallow to deep: a hook there sees the stage's output, (N, C, H, W). Where a stage
   ends with an activation, its last module is an `nn.ReLU` that was called once, whose input is the value before the
   activation; else it ends linearly. One `nn.Linear`, fed with flat vectors, is the classifier.
3. Every parameter gets a gradient, any number of channels is taken, and images that do not fit are refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import official_models
from dotkd import models
from dotkd.models.published import PUBLISHED, Published
from official_forward import forward

OWN = ["mlp", "resnet1d", "resnet2d"]
# One of each architecture, with images as small as its checks allow.
SMALLEST = {
    "resnet8": 32,
    "wrn_16_2": 32,
    "vgg8": 32,
    "mobilenet_v1": 64,
    "mobilenet_v2_cifar": 32,
    "mobilenet_v2_tiny": 64,
    "shufflenet_v1": 32,
    "shufflenet_v2": 32,
    "resnet18": 64,
    "resnet18_small": 16,
    "resnet50_small": 16,
}
# What each family's feature maps look like: the image's side, then channels and side of each map.
FEATURES = [
    ("resnet20", 32, [(16, 32), (32, 16), (64, 8)]),
    ("resnet20", 64, [(16, 64), (32, 32), (64, 16)]),
    ("resnet8x4", 32, [(64, 32), (128, 16), (256, 8)]),
    ("wrn_16_1", 32, [(16, 32), (32, 16), (64, 8)]),
    ("wrn_40_2", 64, [(32, 64), (64, 32), (128, 16)]),
    ("vgg13", 32, [(128, 16), (256, 8), (512, 4), (512, 4)]),
    ("vgg13", 64, [(128, 32), (256, 16), (512, 8), (512, 4)]),
    ("mobilenet_v2_cifar", 32, [(12, 16), (16, 8), (48, 4), (160, 2)]),
    ("mobilenet_v2_tiny", 64, [(24, 33), (32, 17), (64, 9), (320, 9)]),
    ("shufflenet_v1", 32, [(240, 16), (480, 8), (960, 4)]),
    ("shufflenet_v2", 64, [(116, 32), (232, 16), (464, 8)]),
    ("resnet18_small", 64, [(64, 64), (128, 32), (256, 16), (512, 8)]),
    ("resnet50_small", 32, [(256, 32), (512, 16), (1024, 8), (2048, 4)]),
    ("resnet18", 224, [(64, 56), (128, 28), (256, 14), (512, 7)]),
    ("resnet34", 224, [(64, 56), (128, 28), (256, 14), (512, 7)]),
    ("resnet50", 224, [(256, 56), (512, 28), (1024, 14), (2048, 7)]),
    ("mobilenet_v1", 224, [(128, 56), (256, 28), (512, 14), (1024, 7)]),
]
# Stages that end without an activation.
LINEAR = ("wrn_16_2", "mobilenet_v2_cifar", "mobilenet_v2_tiny")


def side_of(name: str) -> int:
    return 224 if name in ("resnet18", "resnet34", "resnet50", "mobilenet_v1") else 64 if name.endswith("tiny") else 32


def build(name: str, side: int, classes: int = 5, channels: int = 3) -> nn.Module:
    return models.build(name, num_classes=classes, input_shape=(channels, side, side))


def on_meta(name: str, side: int, classes: int = 5, channels: int = 3) -> nn.Module:
    """Build without memory: shapes alone, at no cost."""
    with torch.device("meta"):
        return build(name, side, classes, channels)


def points_of(model: nn.Module) -> tuple[str, ...]:
    points: Any = model.feature_points
    assert isinstance(points, tuple)
    return points


def images(side: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def features_of(model: nn.Module, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    seen: dict[str, Tensor] = {}

    def keep(point: str) -> Any:
        return lambda _module, _inputs, output: seen.__setitem__(point, output)

    handles = [model.get_submodule(point).register_forward_hook(keep(point)) for point in points_of(model)]
    logits = model(inputs)
    for handle in handles:
        handle.remove()
    assert list(seen) == list(points_of(model)), "the points are met shallow to deep"
    return logits, list(seen.values())


def test_every_family_is_here() -> None:
    assert sorted(models.MODELS) == sorted(OWN + official_models.NAMES)


@pytest.mark.parametrize("name", official_models.NAMES)
def test_names_and_shapes_are_those_of_published_checkpoints(name: str) -> None:
    expected = official_models.layout(name, 7)
    model = on_meta(name, side_of(name), 7)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == expected
    assert models.parameter_count(model) == official_models.parameters(expected)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_count_is_the_published_one(name: str) -> None:
    published = PUBLISHED[name]
    with torch.device("meta"):
        model = models.build(name, num_classes=published.num_classes, input_shape=published.input_shape)
    assert published.agrees(models.parameter_count(model))


def test_a_published_figure_holds_to_its_last_digit() -> None:
    rounded = Published(470_000, 5_000, 100, (3, 32, 32), "a table")
    assert [rounded.agrees(count) for count in (464_999, 465_000, 475_000, 475_001)] == [False, True, True, False]
    exact = Published(11, 0, 100, (3, 32, 32), "a table")
    assert [exact.agrees(count) for count in (10, 11, 12)] == [False, True, False]


@pytest.mark.parametrize("name", SMALLEST)
def test_an_official_checkpoint_loads_and_gives_its_logits(name: str, tmp_path: Path) -> None:
    state = official_models.draw(official_models.layout(name, 5), seed=3)
    file = tmp_path / "ckpt_epoch_240.pth"
    torch.save({"epoch": 240, "model": {f"module.{key}": value for key, value in state.items()}}, file)
    model = build(name, SMALLEST[name]).eval()
    models.load_weights(model, file)
    inputs = images(SMALLEST[name])
    with torch.no_grad():
        expected = forward(name, state, inputs)
        logits = model(inputs)
    assert logits.std() > 0.01
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_published_classifier_that_is_a_convolution_loads(tmp_path: Path) -> None:
    name = "mobilenet_v2_tiny"
    state = official_models.draw(official_models.layout(name, 5), seed=5)
    torch.save({"model": official_models.published(state)}, tmp_path / "best.pth")
    model = build(name, 32).eval()
    models.load_weights(model, tmp_path / "best.pth")
    with torch.no_grad():
        torch.testing.assert_close(model(images(32)), forward(name, state, images(32)), rtol=1e-4, atol=1e-4)


def test_vgg_pools_once_more_from_64_pixels() -> None:
    state = official_models.draw(official_models.layout("vgg8", 5), seed=4)
    for side in (32, 64):
        model = build("vgg8", side).eval()
        model.load_state_dict(state)
        with torch.no_grad():
            torch.testing.assert_close(model(images(side)), forward("vgg8", state, images(side)))


@pytest.mark.parametrize(("name", "side", "expected"), FEATURES)
def test_feature_maps_have_their_channels_and_sizes(name: str, side: int, expected: list[tuple[int, int]]) -> None:
    logits, features = features_of(on_meta(name, side), torch.zeros(2, 3, side, side, device="meta"))
    assert logits.shape == (2, 5)
    assert [tuple(feature.shape) for feature in features] == [(2, width, size, size) for width, size in expected]


@pytest.mark.parametrize("name", [*SMALLEST, "resnet2d", "resnet1d", "mlp"])
def test_a_hook_sees_the_value_before_the_last_activation(name: str) -> None:
    torch.manual_seed(0)
    side = SMALLEST.get(name, 16)
    model = models.build(name, num_classes=5, input_shape=(3, side) if name == "resnet1d" else (3, side, side))
    inputs = images(side)[:, :, 0] if name == "resnet1d" else images(side)
    before: dict[str, list[Tensor]] = {point: [] for point in points_of(model)}
    for point, seen in before.items():
        last = list(model.get_submodule(point).modules())[-1]
        if name not in LINEAR:
            assert isinstance(last, nn.ReLU)
            assert not last.inplace
            last.register_forward_pre_hook(lambda _module, args, seen=seen: seen.append(args[0]))
    _, features = features_of(model, inputs)
    for feature, seen in zip(features, before.values(), strict=True):
        if name in LINEAR:
            assert feature.min() < 0
        else:
            assert len(seen) == 1
            assert seen[0].min() < 0
            assert torch.equal(seen[0].relu(), feature)


@pytest.mark.parametrize("name", SMALLEST)
def test_one_linear_layer_is_fed_with_flat_vectors(name: str) -> None:
    side = side_of(name)
    model = on_meta(name, side)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == 1
    shapes: list[tuple[int, ...]] = []
    linear[0].register_forward_pre_hook(lambda _module, args: shapes.append(tuple(args[0].shape)))
    assert model(torch.zeros(2, 3, side, side, device="meta")).shape == (2, 5)
    assert shapes == [(2, linear[0].in_features)]


@pytest.mark.parametrize("name", SMALLEST)
def test_gradients_reach_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = build(name, SMALLEST[name]), images(SMALLEST[name], 4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    # Statistics of this batch, held fixed: a norm that follows them would hide the shifts in front of it.
    with torch.no_grad():
        model(inputs)
    nn.functional.cross_entropy(model.eval()(inputs), torch.arange(4)).backward()
    missed = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert missed == []


@pytest.mark.parametrize("name", SMALLEST)
def test_any_number_of_channels_and_oblong_images_are_taken(name: str) -> None:
    side = side_of(name)
    with torch.device("meta"):
        model = models.build(name, num_classes=3, input_shape=(1, side, side + 7))
    assert model(torch.zeros(2, 1, side, side + 7, device="meta")).shape == (2, 3)


def test_points_of_our_own_models_are_their_stages() -> None:
    for name, shape in (("resnet1d", (2, 16)), ("resnet2d", (3, 16, 16))):
        model = models.build(name, num_classes=5, input_shape=shape, options={"width": 4})
        _, features = features_of(model, torch.zeros(2, *shape))
        sizes = [(2, 4, 16), (2, 8, 8), (2, 16, 4)]
        assert [tuple(feature.shape)[:3] for feature in features] == sizes
    deep = models.build("mlp", num_classes=5, input_shape=(3, 2), options={"depth": 3, "width": 7})
    assert [tuple(feature.shape) for feature in features_of(deep, torch.randn(4, 3, 2))[1]] == [(4, 7)] * 3
    assert points_of(models.build("mlp", num_classes=5, input_shape=(3, 2), options={"depth": 0})) == ()


def test_the_published_starting_points() -> None:
    torch.manual_seed(0)
    vgg = build("vgg13", 32, classes=100)
    # N(0, 2 / (9 * 512)) for the convolutions, N(0, 0.01^2) for the classifier.
    assert vgg.get_parameter("block4.0.weight").std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)
    assert vgg.get_parameter("classifier.weight").std().item() == pytest.approx(0.01, rel=0.02)
    assert not vgg.get_parameter("block4.0.bias").any()
    resnet = build("resnet50_small", 32)
    assert resnet.get_parameter("layer4.0.conv1.weight").std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.01)


REFUSED = [
    ("resnet20", (3, 224, 224), "resnet20 expects images of 8 to 128 pixels a side, got 224 x 224; resnet18 fits them"),
    ("resnet20", (3, 4, 9), "resnet20 expects images of 8 to 128 pixels a side, got 4 x 9; resnet2d fits them"),
    ("wrn_40_2", (3, 32, 129), "wrn_40_2 expects images of 8 to 128 pixels a side, got 32 x 129; resnet18 fits them"),
    ("vgg8", (3, 4, 4), "vgg8 expects images of 8 to 128 pixels a side, got 4 x 4; resnet2d fits them"),
    ("mobilenet_v1", (3, 32, 32), "expects images of at least 64 pixels a side, got 32 x 32; mobilenet_v2_cifar fits"),
    ("mobilenet_v2_cifar", (3, 8, 8), "expects images of 16 to 128 pixels a side, got 8 x 8; resnet2d fits them"),
    ("mobilenet_v2_cifar", (3, 224, 224), "got 224 x 224; mobilenet_v1 fits them"),
    ("mobilenet_v2_tiny", (3, 28, 28), "of 32 to 128 pixels a side, got 28 x 28; mobilenet_v2_cifar fits them"),
    ("shufflenet_v1", (3, 160, 160), "shufflenet_v1 expects images of 8 to 128 pixels a side, got 160 x 160; mobile"),
    ("shufflenet_v2", (3, 160, 160), "shufflenet_v2 expects images of 8 to 128 pixels a side, got 160 x 160; mobile"),
    ("resnet34", (3, 32, 32), "resnet34 expects images of at least 64 pixels a side, got 32 x 32; resnet18_small fits"),
    ("resnet50", (3, 32, 32), "resnet50 expects images of at least 64 pixels a side, got 32 x 32; resnet50_small fits"),
    ("resnet50_small", (3, 224, 224), "of 8 to 128 pixels a side, got 224 x 224; resnet50 fits them"),
    ("vgg8", (3, 40), "vgg8 expects `input_shape` = (channels, height, width), got (3, 40); resnet1d fits such inputs"),
    ("resnet18", (8,), "resnet18 expects `input_shape` = (channels, height, width), got (8,); mlp fits such inputs"),
    ("wrn_16_1", (0, 32, 32), "expected `input_shape[0]` >= 1, got 0"),
]


@pytest.mark.parametrize(("name", "shape", "text"), REFUSED)
def test_images_that_do_not_fit_are_refused(name: str, shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        models.build(name, num_classes=5, input_shape=shape)


@pytest.mark.parametrize("name", SMALLEST)
def test_the_classes_are_checked_and_there_are_no_options(name: str) -> None:
    side = side_of(name)
    with pytest.raises(ValueError, match="expected `num_classes` >= 1, got 0"):
        on_meta(name, side, classes=0)
    with pytest.raises(ValueError, match=re.escape(f"model `{name}`: unknown option `width` (its options: none)")):
        models.build(name, num_classes=5, input_shape=(3, side, side), options={"width": 2})
