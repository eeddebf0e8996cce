"""The parameter counts that papers and public repositories state for the models of this package.

They are held against what `parameter_count` finds, so that a misread architecture shows. A figure is here only where a
source gives it for the same layers as ours. For some models of the distillation literature no table states one: theirs
is what the published code has when it is run, and the tests count layer by layer besides.
"""

from __future__ import annotations

from typing import NamedTuple

_HUNDREDTH = 5_000  # half a unit of the last digit of a figure such as 0.47 million
_TENTH = 50_000  # the same of a figure such as 0.7 million


class Published(NamedTuple):
    """What a source states of one model.

    `parameters` is the count, right to `within` of it (0 where the source gives every digit), for `num_classes`
    outputs and inputs of `input_shape` = (channels, height, width).
    """

    parameters: int
    within: int
    num_classes: int
    input_shape: tuple[int, int, int]
    source: str

    def agrees(self, counted: int) -> bool:
        """Tell whether `counted` parameters round to the published figure."""
        return abs(counted - self.parameters) <= self.within


_CIFAR = (3, 32, 32)
_IMAGENET = (3, 224, 224)
_OSMR = "osmr/imgclsmob, table of PyTorch models for CIFAR-100"
_CHENYAOFO = "chenyaofo/pytorch-cifar-models, table for CIFAR-100"
_ATTENTION = "Zagoruyko and Komodakis, arXiv 1612.03928, table 1"
_NEURALFUSE = "Sun et al., arXiv 2306.16869, table of base models on CIFAR-10"
_COUNTED = "counted in the code of megvii-research/mdistiller"
_TORCHVISION = "torchvision, table of classification weights"

PUBLISHED: dict[str, Published] = {
    "resnet8": Published(83_892, 0, 100, _CIFAR, _COUNTED),
    "resnet14": Published(181_108, 0, 100, _CIFAR, _COUNTED),
    "resnet20": Published(278_324, 0, 100, _CIFAR, _OSMR),
    "resnet32": Published(470_000, _HUNDREDTH, 100, _CIFAR, _CHENYAOFO),
    "resnet44": Published(670_000, _HUNDREDTH, 100, _CIFAR, _CHENYAOFO),
    "resnet56": Published(861_620, 0, 100, _CIFAR, _OSMR),
    "resnet110": Published(1_736_564, 0, 100, _CIFAR, _OSMR),
    "resnet8x4": Published(1_233_540, 0, 100, _CIFAR, _COUNTED),
    "resnet32x4": Published(7_433_860, 0, 100, _CIFAR, _COUNTED),
    "wrn_16_1": Published(200_000, _TENTH, 10, _CIFAR, _ATTENTION),
    "wrn_16_2": Published(700_000, _TENTH, 10, _CIFAR, _ATTENTION),
    "wrn_40_1": Published(600_000, _TENTH, 10, _CIFAR, _ATTENTION),
    "wrn_40_2": Published(2_200_000, _TENTH, 10, _CIFAR, _ATTENTION),
    "vgg8": Published(3_965_028, 0, 100, _CIFAR, _COUNTED),
    "vgg11": Published(9_231_114, 0, 10, _CIFAR, _NEURALFUSE),
    "vgg13": Published(9_462_180, 0, 100, _CIFAR, _COUNTED),
    "vgg16": Published(14_728_266, 0, 10, _CIFAR, _NEURALFUSE),
    "vgg19": Published(20_040_522, 0, 10, _CIFAR, _NEURALFUSE),
    "mobilenet_v2_cifar": Published(812_836, 0, 100, _CIFAR, _COUNTED),
    "mobilenet_v2_tiny": Published(2_497_480, 0, 200, (3, 64, 64), _COUNTED),
    "shufflenet_v1": Published(949_258, 0, 100, _CIFAR, _COUNTED),
    "shufflenet_v2": Published(1_355_528, 0, 100, _CIFAR, _COUNTED),
    "mobilenet_v1": Published(4_200_000, _TENTH, 1000, _IMAGENET, "Howard et al., arXiv 1704.04861, table 8"),
    "resnet18": Published(11_689_512, 0, 1000, _IMAGENET, _TORCHVISION),
    "resnet34": Published(21_797_672, 0, 1000, _IMAGENET, _TORCHVISION),
    "resnet50": Published(25_557_032, 0, 1000, _IMAGENET, _TORCHVISION),
    "resnet18_small": Published(11_173_962, 0, 10, _CIFAR, _NEURALFUSE),
    "resnet50_small": Published(23_520_842, 0, 10, _CIFAR, _NEURALFUSE),
}
