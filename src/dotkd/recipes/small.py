"""Recipes that a CPU finishes: two embedded data sets, and a folder of small pictures."""

from __future__ import annotations

from dotkd.config import Config

MNIST1D = Config(
    data="mnist1d",
    teacher="resnet1d",
    teacher_options={"depth": 8, "width": 32},
    teacher_epochs=20,
    teacher_lr=0.1,
    student="resnet1d",
    student_options={"depth": 8, "width": 4},
    # Below the learning rate that suits KD, DOT is ahead, and a control says why; at or above it, it is not: LOG.md.
    lr=0.005,
    epochs=30,
    batch_size=64,
    schedule="cosine",
)

DIGITS = Config(
    data="digits",
    teacher="mlp",
    teacher_options={"depth": 2, "width": 256},
    student="mlp",
    student_options={"depth": 1, "width": 16},
    epochs=30,
    batch_size=64,
    schedule="cosine",
    log_every=10,
)

IMAGEFOLDER = Config(
    data="imagefolder:PATH",  # refused until it is replaced, see dotkd.config_sources
    image_size=64,
    augment="crop-flip",
    teacher="resnet2d",
    teacher_options={"depth": 14, "width": 32},
    student="resnet2d",
    student_options={"depth": 8, "width": 16},
    epochs=30,
    batch_size=64,
    schedule="cosine",
)
