"""CIFAR-100 (Krizhevsky, 2009) with its fine labels: a hundred classes, 50000 training and 10000 test images of
32 x 32 pixels."""

from __future__ import annotations

from dotkd.data.cifar import Cifar, Form, read
from dotkd.data.dataset import Dataset

CIFAR100 = Cifar(
    source="cifar100",
    classes=100,
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
    forms=(
        Form(
            archive="cifar-100-binary.tar.gz",
            md5="03b5dce01913d631647c71ecec9e9cb8",
            name="cifar-100-binary",
            train=("train.bin",),
            test="test.bin",
            names="fine_label_names.txt",
            labels=2,
        ),
        Form(
            archive="cifar-100-python.tar.gz",
            md5="eb9058c3a382ffc7106e4002c42a8d85",
            name="cifar-100-python",
            train=("train",),
            test="test",
            names="meta",
            key="fine_labels",
            names_key="fine_label_names",
        ),
    ),
)


def load(argument: str, *, validation: float, image_size: int | None) -> Dataset:
    """See `dotkd.data.cifar.read`. mean and std: those of the published code of CRD, DKD and DOT."""
    return read(CIFAR100, argument, validation=validation, image_size=image_size)
