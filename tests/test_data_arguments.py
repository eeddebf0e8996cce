"""The arguments of `data.load` and `data.batches`. The contract:

- One of another type is refused by TypeError, one out of its range by ValueError, both at the call, with the rule and
  the value; `True` is no integer.
- A misspelt name is answered with the nearest one, upper case or lower.
"""

from __future__ import annotations

import re

import pytest
import torch

from dotkd import data
from dotkd.data.arguments import check_name, hint
from dotkd.data.dataset import Dataset, Split, assemble


@pytest.fixture
def dataset() -> Dataset:
    split = Split(torch.rand(6, 3, 4, 4), torch.arange(6) % 2)
    return assemble("made", {"train": split, "test": split}, class_names=["a", "b"], fingerprint="0" * 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": "0.1"}, "expected `validation` to be a number, got '0.1' (str)"),
        ({"validation": None}, "expected `validation` to be a number, got None (NoneType)"),
        ({"validation": True}, "expected `validation` to be a number, got True (bool)"),
        ({"image_size": 8.5}, "expected `image_size` to be an integer, got 8.5 (float)"),
        ({"image_size": True}, "expected `image_size` to be an integer, got True (bool)"),
        ({"image_size": "8"}, "expected `image_size` to be an integer, got '8' (str)"),
    ],
)
def test_load_refuses_other_types(options: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        data.load("imagefolder:nowhere", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 2.0}, "expected `batch_size` to be an integer, got 2.0 (float)"),
        ({"batch_size": True}, "expected `batch_size` to be an integer, got True (bool)"),
        ({"epoch": 1.5}, "expected `epoch` to be an integer, got 1.5 (float)"),
        ({"seed": "1"}, "expected `seed` to be an integer, got '1' (str)"),
        ({"start": 0.0}, "expected `start` to be an integer, got 0.0 (float)"),
        ({"mix_alpha": "1"}, "expected `mix_alpha` to be a number, got '1' (str)"),
    ],
)
def test_batches_refuses_other_types(dataset: Dataset, options: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        data.batches(dataset, "train", **{"batch_size": 2, **options})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda _: data.load("CIFAR10"), "; did you mean 'cifar10'?"),
        (lambda _: data.load("tiny_imagenet:x"), "; did you mean 'tiny-imagenet'?"),
        (lambda dataset: data.batches(dataset, "trian", batch_size=2), "got 'trian'; did you mean 'train'?"),
        (
            lambda dataset: data.batches(dataset, "train", batch_size=2, augment="Crop_Flip"),
            "got 'Crop_Flip'; did you mean 'crop-flip'?",
        ),
        (
            lambda dataset: data.batches(dataset, "train", batch_size=2, mix=None),
            "expected `mix` to be 'none', 'mixup' or 'cutmix', got 'None'; did you mean 'none'?",
        ),
    ],
)
def test_misspelt_names_are_answered_with_the_nearest(dataset: Dataset, call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=re.escape(message)):
        call(dataset)


def test_nothing_is_near_a_name_that_is_none_of_them() -> None:
    assert hint("xyz", ["train", "test"]) == ""
    with pytest.raises(ValueError, match=r"expected `kind` to be 'train' or 'test', got 'xyz'$"):
        check_name("kind", "xyz", ["train", "test"])
    check_name("kind", "test", ["train", "test"])
