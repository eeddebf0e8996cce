"""AdaptedTeacher: the teacher sees what it was trained on, and answers in the student's classes. Ensemble: several.

Inputs are renormalised as NumPy does it and resized as Pillow does it; merged classes add up probabilities as SciPy's
softmax counts them. What is not asked for changes no bit. The mean of logits is the geometric mean of the softened
distributions at any temperature; the best teacher of a sample is that of a loop over cross-entropies. Every value
outside its rule is refused by a message that states it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax
from torch import nn

from dotkd.methods.activations import Observer
from dotkd.methods.srrl import SRRL
from dotkd.teachers import AdaptedTeacher, Ensemble

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
DATA_MEAN, DATA_STD = (0.1, 0.2, 0.3), (0.9, 0.8, 0.7)
NORMALISED = {"mean": MEAN, "std": STD, "data_mean": DATA_MEAN, "data_std": DATA_STD}


def pictures(size=(8, 8), channels=3) -> torch.Tensor:
    return torch.randn(4, channels, *size, generator=torch.Generator().manual_seed(0))


class Says(nn.Module):
    """Gives the same logits whatever it is shown."""

    def __init__(self, logits, wrap=lambda logits: logits):
        super().__init__()
        self.logits, self.wrap = torch.as_tensor(logits), wrap

    def forward(self, inputs):
        return self.wrap(self.logits)


def test_normalisation_of_the_student_is_replaced_by_the_teachers():
    seen = AdaptedTeacher(nn.Identity(), **NORMALISED).adapt(pictures()).numpy()
    original = pictures().numpy() * np.reshape(DATA_STD, (3, 1, 1)) + np.reshape(DATA_MEAN, (3, 1, 1))
    np.testing.assert_allclose(seen, (original - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1)), atol=1e-5)


def test_one_value_stands_for_all_channels_and_signals_have_channels_too():
    teacher = AdaptedTeacher(nn.Identity(), mean=[0.5], std=[0.25], data_mean=[0.0], data_std=[1.0])
    for inputs in (pictures(), torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1))):
        np.testing.assert_allclose(teacher.adapt(inputs).numpy(), (inputs.numpy() - 0.5) / 0.25, atol=1e-5)


@pytest.mark.parametrize("side", [5, 13])
def test_resizing_is_that_of_pillow(side):
    seen = AdaptedTeacher(nn.Identity(), image_size=side).adapt(pictures((9, 7)))
    assert seen.shape == (4, 3, side, side)
    for got, given in zip(seen.flatten(0, 1), pictures((9, 7)).flatten(0, 1), strict=True):
        expected = Image.fromarray(given.numpy()).resize((side, side), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(got.numpy(), np.asarray(expected), atol=1e-5)


def test_what_is_not_asked_for_changes_no_bit():
    odd = pictures() * 1e-3 + 1.1
    plain = AdaptedTeacher(nn.Identity(), data_mean=DATA_MEAN, data_std=DATA_STD)
    same = AdaptedTeacher(nn.Identity(), image_size=8, mean=MEAN, std=STD, data_mean=MEAN, data_std=STD)
    for teacher in (plain, same):
        assert torch.equal(teacher.adapt(odd), odd)
        assert torch.equal(teacher(odd), odd)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_inputs_keep_their_dtype(dtype):
    seen = AdaptedTeacher(nn.Identity(), image_size=4, **NORMALISED).adapt(pictures().to(dtype))
    assert seen.dtype == dtype
    exact = AdaptedTeacher(nn.Identity(), image_size=4, **NORMALISED).adapt(pictures())
    np.testing.assert_allclose(seen.double().numpy(), exact.numpy(), atol=0.1)


def test_classes_are_picked():
    logits = torch.randn(4, 5)
    teacher = AdaptedTeacher(Says(logits), classes=[3, 0, 3])
    assert torch.equal(teacher(pictures()), logits[:, [3, 0, 3]])


def test_merged_classes_add_up_probabilities():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(2)).double()
    groups = [[0, 2, 5], 1, [3, 4]]
    got = AdaptedTeacher(Says(logits), classes=groups)(pictures())
    p = softmax(logits.numpy(), axis=1)
    expected = np.stack([p[:, [0, 2, 5]].sum(axis=1), p[:, 1], p[:, [3, 4]].sum(axis=1)], axis=1)
    np.testing.assert_allclose(softmax(got.numpy(), axis=1), expected, rtol=1e-12)
    assert torch.equal(got[:, 1], logits[:, 1])


@pytest.mark.parametrize("wrap", [lambda z: (z, "features"), lambda z: type("Output", (), {"logits": z})()])
def test_logits_are_found_in_what_models_return(wrap):
    logits = torch.randn(4, 3)
    assert torch.equal(AdaptedTeacher(Says(logits, wrap))(pictures()), logits)
    assert torch.equal(Ensemble([Says(logits, wrap)])(pictures()), logits)


def test_weights_are_the_models_own():
    teacher = AdaptedTeacher(nn.Linear(2, 3), image_size=2, classes=[0, [1, 2]], **NORMALISED)
    assert list(teacher.state_dict()) == ["adapted.weight", "adapted.bias"]


def test_features_and_classifier_are_those_of_the_adapted_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))
    teacher = AdaptedTeacher(model, image_size=6, classes=[[0, 1], 5], **NORMALISED).requires_grad_(False)
    observer = Observer(teacher, "teacher", ("features", "embedding"), points=("adapted.1",), example=pictures())
    assert observer.anatomy.features == ((4, 3, 3),)
    seen = observer(pictures())
    assert seen.logits.shape == (4, 2)
    torch.testing.assert_close(observer.anatomy.classify(seen.embedding), seen.logits)
    assert SRRL(observer.anatomy, observer.anatomy)(seen, seen).isfinite()  # gradients pass the merged classes
    connected = seen.embedding.clone().requires_grad_()
    observer.anatomy.classify(connected).sum().backward()
    assert connected.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "expected `image_size` >= 1, got 0"),
        ({"mean": MEAN}, "expected `mean` and `std` together, got `mean` alone"),
        ({"data_std": STD}, "expected `data_std` and `data_mean` together, got `data_std` alone"),
        ({"mean": MEAN, "std": STD}, "expected `data_mean` and `data_std`, which `mean` and `std` are to replace"),
        (NORMALISED | {"std": (0.1, 0.0, 0.2)}, r"expected `std` > 0, got \[0.1, 0.0, 0.2\]"),
        (NORMALISED | {"mean": (0.1, float("nan"), 0.2)}, "expected `mean` as finite numbers, one a channel"),
        (NORMALISED | {"mean": ()}, r"expected `mean` as finite numbers, one a channel, got \[\]"),
        (NORMALISED | {"mean": (0.1, 0.2)}, "expected `mean` of length 1 or 3, got 2"),
        ({"classes": []}, r"expected `classes` to name at least one of the teacher's for each class, got \[\]"),
        ({"classes": [0, []]}, r"at least one of the teacher's for each class, got \[\[0\], \[\]\]"),
        ({"classes": [0, -1]}, "expected `classes` >= 0, got -1"),
        ({"classes": [[1, 1]]}, r"expected each of the teacher's classes once in a group, got \[1, 1\]"),
        ({"classes": [0, 9], "num_classes": 9}, "expected `classes` below 9, the teacher's number of classes, got 9"),
    ],
)
def test_options_outside_their_rule_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AdaptedTeacher(nn.Identity(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 8.0}, r"expected `image_size` to be an integer, got 8.0 \(float\)"),
        ({"classes": [True]}, r"expected `classes` to be an integer, got True \(bool\)"),
        ({"classes": [[0, "cat"]]}, r"expected `classes` to be an integer, got 'cat' \(str\)"),
        ({"classes": ["cat"]}, r"expected `classes` to be an integer, got 'cat' \(str\)"),
    ],
)
def test_options_of_the_wrong_kind_are_refused(options, message):
    with pytest.raises(TypeError, match=message):
        AdaptedTeacher(nn.Identity(), **options)


def test_batches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"expected inputs with the 3 channels of `mean`, got shape \(4, 1, 8, 8\)"):
        AdaptedTeacher(nn.Identity(), **NORMALISED)(pictures(channels=1))
    with pytest.raises(ValueError, match=r"expected pictures \(N, C, H, W\) to bring to `image_size`, got \(2, 3, 4\)"):
        AdaptedTeacher(nn.Identity(), image_size=4)(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="expected `classes` below 3, the teacher's number of classes, got 4"):
        AdaptedTeacher(Says(torch.zeros(4, 3)), classes=[0, 4])(pictures())


def three_teachers() -> list[Says]:
    generator = torch.Generator().manual_seed(4)
    return [Says(torch.randn(5, 4, generator=generator).double()) for _ in range(3)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_mean_of_logits_is_the_geometric_mean_of_distributions(temperature):
    teachers, weights = three_teachers(), (1.0, 2.0, 5.0)
    got = Ensemble(teachers, weights=weights)(pictures())
    product = np.ones((5, 4))
    for teacher, weight in zip(teachers, weights, strict=True):
        product *= softmax(teacher.logits.numpy() / temperature, axis=1) ** (weight / 8)
    np.testing.assert_allclose(
        softmax(got.numpy() / temperature, axis=1), product / product.sum(axis=1, keepdims=True), rtol=1e-12
    )


def test_mean_without_weights_is_plain_and_of_one_teacher_its_own():
    teachers = three_teachers()
    expected = np.mean([teacher.logits.numpy() for teacher in teachers], axis=0)
    np.testing.assert_allclose(Ensemble(teachers)(pictures()).numpy(), expected, rtol=1e-12)
    assert torch.equal(Ensemble(teachers[:1])(pictures()), teachers[0].logits)


def test_masked_classes_stay_masked():
    minus = float("-inf")
    got = Ensemble([Says([[minus, 1.0]]), Says([[minus, 3.0]])])(pictures())
    assert got.tolist() == [[minus, 2.0]]


def test_half_precision_is_lifted():
    got = Ensemble([Says(torch.ones(1, 2).bfloat16()), Says(torch.full((1, 2), 1.01))])(pictures())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.full((1, 2), 1.005))


def test_best_is_the_teacher_of_the_smallest_cross_entropy():
    teachers, target = three_teachers(), torch.tensor([3, 0, 1, 2, 0])
    got = Ensemble(teachers, choose="best")(pictures(), target)
    chosen = set()
    for sample in range(5):
        losses = [-np.log(softmax(t.logits[sample].numpy())[target[sample]]) for t in teachers]
        chosen.add(int(np.argmin(losses)))
        assert torch.equal(got[sample], teachers[int(np.argmin(losses))].logits[sample])
    assert len(chosen) > 1


def test_first_of_equal_teachers_is_best_and_nan_is_not_hidden():
    first, second = Says([[1.0, 0.0]]), Says([[2.0, 1.0]])
    assert Ensemble([first, second], choose="best")(pictures(), torch.tensor([0])).tolist() == [[1.0, 0.0]]
    broken = Ensemble([first, Says([[float("nan"), 0.0]])], choose="best")
    assert broken(pictures(), torch.tensor([0])).isnan().any()


def test_teachers_are_part_of_the_ensemble():
    ensemble = Ensemble([nn.Linear(2, 3), nn.Dropout()])
    assert len(list(ensemble.parameters())) == 2
    assert not ensemble.eval().teachers[1].training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teachers": []}, "expected at least one teacher, got none"),
        ({"choose": "median"}, "expected `choose` to be 'mean' or 'best', got 'median'"),
        ({"weights": [1.0]}, "expected one weight for each of 2 teachers, got 1"),
        ({"weights": [1.0, 0.0]}, "expected `weights` > 0 and finite, got 0.0"),
        ({"weights": [1.0, float("inf")]}, "expected `weights` > 0 and finite, got inf"),
        ({"weights": [1.0, 2.0], "choose": "best"}, "expected no `weights` where the best teacher is chosen"),
    ],
)
def test_ensembles_outside_their_rule_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Ensemble(**({"teachers": [nn.Identity(), nn.Identity()]} | options))


def test_teachers_that_disagree_and_best_without_a_target_are_refused():
    ensemble = Ensemble([Says(torch.zeros(2, 3)), Says(torch.zeros(2, 4))])
    with pytest.raises(ValueError, match=r"logits of one shape, got \(2, 3\), \(2, 4\)"):
        ensemble(pictures())
    with pytest.raises(ValueError, match="expected a target: the best teacher of a sample is the one with"):
        Ensemble([nn.Identity()], choose="best")(pictures())
