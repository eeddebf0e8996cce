"""CIFAR-10 (Krizhevsky, 2009): ten classes, 50000 training and 10000 test images of 32 x 32 pixels."""

from __future__ import annotations

from dotkd.data.cifar import Cifar, Form, read
from dotkd.data.dataset import Dataset

CIFAR10 = Cifar(
    source="cifar10",
    classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    forms=(
        Form(
            archive="cifar-10-binary.tar.gz",
            md5="c32a1d4ab5d03f1284b67883e8d87530",
            name="cifar-10-batches-bin",
            train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
            test="test_batch.bin",
            names="batches.meta.txt",
            labels=1,
        ),
        Form(
            archive="cifar-10-python.tar.gz",
            md5="c58f30108f718f92721af3b95e74349a",
            name="cifar-10-batches-py",
            train=tuple(f"data_batch_{number}" for number in range(1, 6)),
            test="test_batch",
            names="batches.meta",
            key="labels",
            names_key="label_names",
        ),
    ),
)


def load(argument: str, *, validation: float, image_size: int | None) -> Dataset:
    """See `dotkd.data.cifar.read`. mean and std: those that most published code on CIFAR-10 normalises with."""
    return read(CIFAR10, argument, validation=validation, image_size=image_size)
