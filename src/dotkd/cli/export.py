"""`dotkd export`: the student as safetensors and ONNX, each checked by running it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dotkd.cli import failures

EXAMPLE = """\
  dotkd export runs/mnist1d-dot-seed0
  dotkd export runs/mnist1d-dot-seed0 --format onnx --out exported
"""


def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The run folder.")],
    formats: Annotated[
        str, typer.Option("--format", metavar="NAMES", help="safetensors, onnx, with commas.")
    ] = "safetensors,onnx",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the files go. [DIR/export]")] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights of the run to export. [student.safetensors]")
    ] = None,
) -> None:
    """Write a student for use elsewhere.

    Each file is checked by running it beside the student on test samples. Their metadata holds the class names,
    and the mean and deviation that inputs must be normalised with.
    """
    from dotkd import export as exporting
    from dotkd.cli.console import results, say
    from dotkd.cli.evaluate import find_weights
    from dotkd.evidence.comparison import check_names

    kinds = [name.strip() for name in formats.split(",") if name.strip()]
    if not kinds:
        raise ValueError(f"expected --format to name some of {', '.join(exporting.FORMATS)}, got {formats!r}")
    check_names("--format", kinds, list(exporting.FORMATS))
    loaded = exporting.load_run(directory, None if weights is None else find_weights(directory, weights))
    failed = False
    for kind in kinds:
        check = exporting.export(loaded, kind, out or directory / "export")
        failed |= not check.passed
        say(
            results(),
            f"{check.path}: {'as the student' if check.passed else 'DIFFERS from the student'} on {check.samples} test "
            f"samples, largest difference of logits {check.max_difference:.1e} (allowed {check.allowed:.1e}), "
            f"same class in {100 * check.agreement:.1f} %",
        )
    if failed:
        raise failures.leave(
            failures.FAILURE, "an exported file does not compute what the student computes: do not use it"
        )
