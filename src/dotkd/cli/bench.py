"""`dotkd bench`: what DOT costs against plain distillation, on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from dotkd.bench import Conditions, Measure, Quantity

EXAMPLE = """\
  dotkd bench
  dotkd bench --json bench.json --rounds 30
"""


def bench(
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures to this file.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int, typer.Option(metavar="N", help="CPU threads; with 1 the clock is CPU time.")] = 1,
    rounds: Annotated[
        int | None, typer.Option(metavar="N", help="Rounds of each measure. [15, fewer on a slow machine]")
    ] = None,
) -> None:
    """Measure what DOT costs, in about three minutes.

    All sides of a ratio are measured in turns in this one run: ours, the other, and the published implementation,
    transcribed. A missed goal is printed, and is no error. The figures are for a machine that does nothing else.
    """
    from dotkd.bench import MEASURES, Conditions
    from dotkd.cli import console

    if json_file is not None and (json_file.is_dir() or not json_file.absolute().parent.is_dir()):
        # Said before the measuring, not after it.
        raise ValueError(f"expected --json to name a file in a folder that exists, got {json_file}")
    conditions = Conditions(_device(device), threads, rounds)
    remarks = console.progress()
    found: dict[str, Measure] = {}
    for name, measure in MEASURES.items():
        # No moving bar: its thread would take part in what is measured.
        console.say(remarks, f"measuring {name}")
        found[name] = measure(conditions)
    origin = _origin(conditions)
    _show(console.results(), found, origin)
    if json_file is not None:
        _write(json_file, found, origin)


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"expected --device to be cpu, cuda or cuda:N, got {name}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def _origin(conditions: Conditions) -> dict[str, Any]:
    from dotkd.provenance import provenance

    # Others' load shows in the figures; where it cannot be told, null.
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        **provenance(conditions.device),
        "threads": conditions.threads,
        "device": str(conditions.device),
        "clock": conditions.clock,
        "load": load,
    }


def _show(out: Console, found: dict[str, Measure], origin: dict[str, Any]) -> None:
    from dotkd.cli import console

    table = console.table(out, "measure", "ratio", "IQR", "n", "goal", "limit", "official", "ours", "other")
    for name, measure in found.items():
        table.add_row(
            name,
            f"{measure.ratio.median:.3f}",
            _number(measure.ratio.interquartile),
            str(measure.ratio.n),
            _goal(measure),
            _number(measure.limit),
            _number(None if measure.official is None else measure.official.median),
            _amount(measure.ours, measure.unit),
            _amount(measure.other, measure.unit),
        )
    out.print(table)
    for name, measure in found.items():
        console.say(out, f"{name}: {measure.what}.")
    load = "unknown" if origin["load"] is None else f"{origin['load']:.1f}"
    console.say(
        out,
        f"Medians over n rounds and the distance between quartiles (IQR), by {origin['clock']} unless said otherwise; "
        f"limit: what arithmetic allows; official: the published implementation over the other; {origin['hardware']}, "
        f"{origin['threads']} thread{'s' if origin['threads'] > 1 else ''}, load {load}, "
        f"torch {origin['versions']['torch']}, commit {origin['commit'] or 'unknown'}.",
    )


def _goal(measure: Measure) -> str:
    if measure.goal is None:
        return "-"
    return f"<= {measure.goal:g} {'met' if measure.reached else 'MISSED'}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _amount(value: Quantity, unit: str) -> str:
    scale, name = (1e3, "ms") if unit == "seconds" else (2**-20, "MiB")
    spread = "" if value.interquartile is None else f" ({value.interquartile * scale:.3g})"
    return f"{value.median * scale:.4g}{spread} {name}"


def _write(file: Path, found: dict[str, Measure], origin: dict[str, Any]) -> None:
    import json

    ratios = {name: measure.ratio.median for name, measure in found.items()}
    detail = {**{name: measure.as_json() for name, measure in found.items()}, **origin}
    file.write_text(json.dumps({**ratios, "detail": detail}, indent=2) + "\n", encoding="utf-8")
