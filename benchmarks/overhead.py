"""Where the time and the memory of a DOT step go: the figures, the picture and the tables of docs/overhead.md.

    python benchmarks/overhead.py [--docs docs] [--steps 8] [--threads 1] [--quick]

ResNet32x4 -> ResNet8x4, batch 64 of 32x32, crop and flip. Runs the measures of `dotkd bench`, then a profile of three
loops (torch.profiler, wall time of named parts; medians over steps), then peaks of tensor memory. Writes overhead.csv
and overhead.svg into the folder, and puts the tables between the markers of its overhead.md. For a machine that does
nothing else; it takes about six minutes there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from step_profile import CLASSES, CPU, FULL, HYPER, LOOPS, QUICK, SHAPE, Size, picture, profiled, time_table, write_csv
from torch import Tensor

from dotkd import DOT, losses
from dotkd.activation_checkpointing import checkpoint_activations
from dotkd.bench import MEASURES, Conditions, Measure
from dotkd.bench.flops import flops
from dotkd.bench.memory import peak_bytes
from dotkd.provenance import provenance

START, END = "<!-- figures: made by make overhead -->", "<!-- end of figures -->"


def memory_table(size: Size) -> list[str]:
    """The peak of a step in each mode, over plain distillation's."""
    modes: dict[str, dict[str, bool]] = {
        "KD": {},
        "KD, activations recomputed": {"recompute": True},
        "KD + DOT": {"dot": True},
        "KD + DOT, low_memory": {"dot": True, "low": True},
        "KD + DOT, activations recomputed": {"dot": True, "recompute": True},
        "KD + DOT, both": {"dot": True, "low": True, "recompute": True},
    }
    peaks = {name: peak_bytes(lambda mode=mode: _lived(size, **mode), CPU) for name, mode in modes.items()}
    lines = ["| mode | peak, MiB | over KD |", "|---|---|---|"]
    lines += [f"| {name} | {peak / 2**20:.1f} | {peak / peaks['KD']:.3f} |" for name, peak in peaks.items()]
    return lines


def _lived(size: Size, *, dot: bool = False, low: bool = False, recompute: bool = False) -> object:
    torch.manual_seed(0)
    student = size.model(size.student).train()
    if recompute:
        checkpoint_activations(student)
    if dot:
        optimizer = DOT(student.parameters(), **HYPER, gradients_in_buffers=low)
    else:
        optimizer = torch.optim.SGD(student.parameters(), **HYPER)
    inputs, targets = torch.randn(size.batch, *SHAPE), torch.randint(CLASSES, (size.batch,))
    taught = torch.randn(size.batch, CLASSES)
    for samples in (2, size.batch):  # the first makes the buffers
        logits = student(inputs[:samples])
        task: Tensor = 0.1 * F.cross_entropy(logits, targets[:samples])
        distill = 0.9 * losses.kd(logits, taught[:samples], temperature=4.0)
        if isinstance(optimizer, DOT):
            optimizer.backward(task=task, distill=distill)
        else:
            (task + distill).backward()
        optimizer.step()
        optimizer.zero_grad()
    return student, optimizer, inputs


def operations_table(size: Size) -> list[str]:
    """Floating-point operations of a step of each kind."""
    shape = (size.batch, *SHAPE)
    own = flops(size.model(size.student), shape)
    teacher = flops(size.model(size.teacher).requires_grad_(False), shape).forward
    kinds = {
        "KD, teacher cached": own.plain_step,
        "KD": own.plain_step + teacher,
        "KD + DOT, teacher cached": own.exact_step,
        "KD + DOT": own.exact_step + teacher,
    }
    lines = [
        f"Operations: a forward pass takes {own.forward / 1e9:.1f} GFLOP of the student and {teacher / 1e9:.1f} of the "
        f"teacher, a backward pass {own.backward / 1e9:.1f} of the student.",
        "",
        "| step | GFLOP | over KD |",
        "|---|---|---|",
    ]
    return lines + [f"| {name} | {count / 1e9:.1f} | {count / kinds['KD']:.2f} |" for name, count in kinds.items()]


def bench_table(found: dict[str, Measure]) -> list[str]:
    """What `dotkd bench` prints."""
    lines = ["| measure | ours | IQR | n | goal | limit | official |", "|---|---|---|---|---|---|---|"]
    for name, measure in found.items():
        limit = "-" if measure.limit is None else f"{measure.limit:.3f}"
        official = "-" if measure.official is None else f"{measure.official.median:.4g}"
        spread = "-" if measure.ratio.interquartile is None else f"{measure.ratio.interquartile:.2g}"
        goal = f"<= {measure.goal:g}, {'met' if measure.reached else 'missed'}"
        lines.append(
            f"| `{name}` | {measure.ratio.median:.4g} | {spread} | {measure.ratio.n} | {goal} | {limit} | {official} |"
        )
    return lines


def rewrite(page: Path, lines: list[str]) -> None:
    """Put the lines between the markers; raises ValueError where the page has none."""
    text = page.read_text(encoding="utf-8")
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(f"expected the lines {START} and {END} once each in {page}")
    before, after = text.split(START)[0], text.split(END)[1]
    page.write_text("\n".join([before + START, "", *lines, "", END + after]), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of overhead.md")
    parser.add_argument("--steps", type=int, help="that are profiled")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="small models, no measures of dotkd bench")
    args = parser.parse_args()
    size = QUICK if args.quick else FULL
    size = size._replace(steps=args.steps or size.steps)
    conditions = Conditions(CPU, threads=args.threads)
    found = {} if args.quick else {name: measure(conditions) for name, measure in MEASURES.items()}
    with conditions.held():
        times = {name: profiled(size, **loop) for name, loop in LOOPS.items()}
        memory = memory_table(size)
    write_csv(times, args.docs / "overhead.csv")
    picture(times, args.docs / "overhead.svg")
    origin = provenance(CPU)
    threads = f"{args.threads} thread{'s' if args.threads > 1 else ''}"
    lines = [
        f"{size.teacher} -> {size.student}, batch {size.batch} of 32x32, {CLASSES} classes; {origin['hardware']}, "
        f"{threads}, torch {origin['versions']['torch']}, commit {origin['commit'] or 'unknown'}.",
        "",
        *(["`make bench`:", "", *bench_table(found), ""] if found else []),
        f"Time of the parts of a step, medians over {size.steps} steps:",
        "",
        *time_table(times),
        "",
        *operations_table(size),
        "",
        "The most tensor memory held in a step, n = 1 (byte counts repeat exactly):",
        "",
        *memory,
    ]
    rewrite(args.docs / "overhead.md", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
