"""The contract of `dotkd.methods.activations`: hooks find what the model computes, and the model stays as it was.

- features are the outputs of the named modules, embedding what the classifier received, preactivations what the
  activation at the end of each point received: rectified they are the features, also where it works in place.
- Every layout becomes (N, C, H, W). Gradients reach the parameters; a compiled model shows the same.
- Building an observer changes neither mode nor running statistics, and nothing of a pass is kept after it.
- What cannot be found is refused, with the nearest name.
"""

from __future__ import annotations

import gc
import re
import weakref

import pytest
import torch
from torch import nn

from dotkd import models
from dotkd.methods.activations import Activations, Observer, logits_of
from dotkd.methods.points import as_map

EVERYTHING = ("features", "preactivations", "embedding")


class Chain(nn.Module):
    """Two convolutions with a ReLU each and a linear layer, written out so that a test can follow it by hand."""

    feature_points = ("first", "second")

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace))
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU(inplace))
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.second(self.first(x)).mean((2, 3)))


@pytest.fixture
def inputs():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("inplace", [False, True])
def test_hooks_find_what_the_model_computes(inputs, inplace):
    torch.manual_seed(0)
    model = Chain(inplace=inplace).eval()
    seen = Observer(model, "student", EVERYTHING, example=inputs)(inputs)
    before_1 = model.first[1](model.first[0](inputs))
    before_2 = model.second[0](before_1.relu())
    for found, expected in zip(seen.preactivations, (before_1, before_2), strict=True):
        torch.testing.assert_close(found, expected)
        assert (found < 0).any()
    for found, expected in zip(seen.features, (before_1.relu(), before_2.relu()), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(seen.embedding, before_2.relu().mean((2, 3)))
    torch.testing.assert_close(seen.logits, model.head(seen.embedding))


def test_the_anatomy_is_the_shape_of_what_is_seen_and_can_classify(inputs):
    model = Chain()
    observer = Observer(model, "teacher", EVERYTHING, example=inputs)
    assert observer.anatomy[:4] == (5, ((4, 8, 8), (6, 4, 4)), ((4, 8, 8), (6, 4, 4)), 6)
    nn.init.normal_(model.head.weight)  # as when weights are loaded after the method has been built
    seen = observer(inputs)
    torch.testing.assert_close(observer.anatomy.classify(seen.embedding), seen.logits)


def test_only_what_is_needed_is_collected(inputs):
    seen = Observer(Chain(), "student", ("embedding",), example=inputs)(inputs)
    assert seen.features == seen.preactivations == ()
    assert seen.embedding.shape == (2, 6)
    assert Observer(Chain(), "student", ("features",), points=("second",), example=inputs).anatomy.features == (
        (6, 4, 4),
    )


def test_the_model_is_left_as_it_was_and_nothing_is_kept(inputs):
    model = Chain().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    observer = Observer(model, "student", EVERYTHING, example=inputs)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model(inputs)  # a pass of somebody else
    assert not observer._seen
    kept = weakref.ref(observer(inputs).features[0])
    gc.collect()
    assert kept() is None


def test_gradients_reach_the_parameters_in_front_of_a_point(inputs):
    model = Chain()
    seen = Observer(model, "student", ("features",), points=("first",), example=inputs)(inputs)
    seen.features[0].square().mean().backward()
    assert model.first[0].weight.grad.abs().max() > 0
    assert model.second[0].weight.grad is None


def test_a_compiled_model_shows_the_same(inputs):
    model = Chain(inplace=True).eval()
    observer = Observer(model, "student", EVERYTHING, example=inputs)
    plain, compiled = observer(inputs), observer(inputs, torch.compile(model, backend="eager"))
    torch.testing.assert_close(compiled, plain)


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "mobilenet_v2_cifar", "shufflenet_v2", "wrn_16_1"])
def test_the_families_of_this_library_have_points_and_preactivations(name):
    model = models.build(name, num_classes=3, input_shape=(3, 32, 32))
    inputs = torch.randn(2, 3, 32, 32)
    seen = Observer(model, "student", EVERYTHING, example=inputs)(inputs)
    assert len(seen.features) >= 3
    for feature, before in zip(seen.features, seen.preactivations, strict=True):
        # Where a point ends without an activation its output is the pre-activation itself.
        if not name.startswith("wrn"):  # where a norm stands between a stage's sum and its activation
            assert torch.equal(before.relu(), feature) or torch.equal(before, feature)
        assert (before < 0).any()


def test_preactivations_of_a_wide_resnet_are_what_the_next_norm_gives():
    model = models.build("wrn_16_1", num_classes=3, input_shape=(3, 8, 8)).eval()
    inputs = torch.randn(2, 3, 8, 8)
    seen = Observer(model, "teacher", EVERYTHING, example=inputs)(inputs)
    norms = (model.block2.layer[0].bn1, model.block3.layer[0].bn1, model.bn1)
    for before, feature, norm in zip(seen.preactivations, seen.features, norms, strict=True):
        torch.testing.assert_close(before, norm(feature))


def test_each_module_is_put_back_into_the_mode_it_was_in(inputs):
    model = Chain().train()
    model.first[1].eval()  # a norm whose statistics are to stay
    Observer(model, "student", ("features",), example=inputs)
    assert [module.training for module in (model, model.first, model.first[1])] == [True, True, False]


@pytest.mark.parametrize(
    ("point", "shape", "expected"),
    [
        ("maps", (2, 4, 5, 6), (2, 4, 5, 6)),
        ("vectors", (2, 4), (2, 4, 1, 1)),
        ("signals", (2, 4, 7), (2, 4, 1, 7)),
    ],
)
def test_layouts(point, shape, expected):
    output = torch.randn(shape)
    found = as_map(nn.Identity(), point, output)
    assert found.shape == expected
    assert torch.equal(found.flatten(), output.flatten())


def test_a_scalar_is_no_feature_map():
    with pytest.raises(ValueError, match=r"expected `head` to give a feature map, got shape \(2,\)"):
        as_map(nn.Identity(), "head", torch.zeros(2))


def test_an_unknown_point_is_refused_with_the_nearest(inputs):
    with pytest.raises(ValueError, match=r"the student has no module `secnd`; did you mean second\?"):
        Observer(Chain(), "student", ("features",), points=("secnd",), example=inputs)


def test_a_family_that_is_not_known_asks_for_points(inputs):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    with pytest.raises(
        ValueError, match=r"feature maps of the teacher \(Sequential\).*teacher_features.*parts are 0, 1"
    ):
        Observer(model, "teacher", ("features",), example=inputs)
    assert Observer(model, "teacher", ("features",), points=("1",), example=inputs).anatomy.features == ((4, 6, 6),)


class Functional(nn.Module):
    feature_points = ("block",)

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3), Rectified())
        self.conv = nn.Conv2d(4, 5, 1)

    def forward(self, x):
        return self.conv(self.block(x)).mean((2, 3))


class Rectified(nn.Module):
    def forward(self, x):
        return x.relu()


def test_a_rectified_point_without_an_activation_module_is_refused(inputs):
    with pytest.raises(ValueError, match=r"the teacher's `block` gives no negative value, yet no activation module"):
        Observer(Functional(), "teacher", ("preactivations",), example=inputs)


def test_a_model_without_a_linear_classifier_is_refused_where_its_input_is_needed(inputs):
    with pytest.raises(ValueError, match=re.escape("the student has no nn.Linear at its end")):
        Observer(Functional(), "student", ("embedding",), example=inputs)


class Gated(nn.Module):
    """A linear layer inside, and a convolution as the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.conv, self.unused = nn.Linear(3, 3), nn.Conv2d(3, 5, 1), nn.ReLU()

    def forward(self, x):
        return self.conv(x * self.gate(x.mean((2, 3))).sigmoid()[:, :, None, None]).mean((2, 3))


def test_a_linear_layer_that_does_not_end_the_model_is_no_classifier(inputs):
    with pytest.raises(ValueError, match=re.escape("the teacher has no nn.Linear at its end")):
        Observer(Gated(), "teacher", ("embedding",), example=inputs)


@pytest.mark.parametrize("need", ["features", "preactivations"])
def test_a_point_that_the_forward_pass_leaves_out_is_refused(inputs, need):
    with pytest.raises(
        ValueError, match="expected the student's `unused` to give a feature map, but it gave no tensor"
    ):
        Observer(Gated(), "student", (need,), points=("unused",), example=inputs)


def test_logits_of_takes_the_usual_forms():
    logits = torch.zeros(2, 3)
    assert logits_of((logits, "features")) is logits
    assert logits_of(Activations(logits)) is logits
    with pytest.raises(TypeError, match="expected a model to return logits"):
        logits_of({"x": logits})
