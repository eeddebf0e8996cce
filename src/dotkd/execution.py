"""How the passes of a step are computed, and what `auto` stands for.

    precision      bf16 on a CUDA device that computes in it by itself: the range of float32, so no loss scale, and
                   matrix units of twice the rate or more; fp32 elsewhere. A CPU without instructions for bf16 imitates
                   it. fp32 is torch's own: convolutions on Ampere and later round their factors to TF32, which
                   `torch.backends.cudnn.allow_tf32` turns off, other products do not.
    channels_last  on CUDA with 16 bits, where the matrix units want pictures so; elsewhere as torch has them. On a CPU
                   it gained little or lost (0.79 to 1.13 times the time of a step), and is refused: the backward pass
                   of a strided 1x1 convolution, as in every ResNet, writes beyond its memory there (torch 2.13, AVX2)
    compile        no: it has to be worth the minutes that compiling takes, which the device and the run decide

Whatever is chosen, weights, their gradients and the optimizer's state stay float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dotkd.config import Config

Precision = Literal["fp32", "bf16", "fp16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Execution(NamedTuple):
    """What a config's `precision`, `channels_last` and `compile` come to."""

    device: torch.device
    precision: Precision
    channels_last: bool
    compiled: bool

    @classmethod
    def of(cls, config: Config, device: torch.device, input_shape: tuple[int, ...]) -> Execution:
        """For inputs (N, *input_shape). Raises ValueError for `channels_last` on a CPU, or with inputs that are no
        images."""
        precision: Precision = "fp32"
        if config.precision != "auto":
            precision = config.precision
        elif device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
            precision = "bf16"
        images = len(input_shape) == 3
        if config.channels_last is True and not images:
            raise ValueError(f"channels_last needs inputs (C, H, W), {config.data} has {input_shape}: give auto")
        if config.channels_last is True and device.type == "cpu":
            raise ValueError(
                "channels_last: expected false or auto on a CPU, where torch's strided 1x1 convolutions write beyond "
                "their memory in that layout, got true"
            )
        wanted = device.type == "cuda" and precision != "fp32"
        channels_last = images and (wanted if config.channels_last == "auto" else config.channels_last)
        return cls(device, precision, channels_last, config.compile is True)

    def laid_out(self, model: nn.Module) -> nn.Module:
        """`model`, its kernels (4 dimensions) in the layout chosen."""
        if not self.channels_last:
            return model
        return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def arranged(self, inputs: Tensor) -> Tensor:
        """`inputs` in the layout chosen."""
        return inputs.contiguous(memory_format=torch.channels_last) if self.channels_last else inputs

    def autocast(self) -> AbstractContextManager[Any]:
        """Within, products are computed in `precision`."""
        return torch.autocast(self.device.type, _DTYPES[self.precision], enabled=self.precision != "fp32")

    def as_json(self) -> dict[str, object]:
        """For the summary of a run."""
        return {"precision": self.precision, "channels_last": self.channels_last, "compile": self.compiled}
