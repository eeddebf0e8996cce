"""What the pages of docs/results/ are made of: a CSV of runs, and tables and a picture that are drawn from it alone.

A study is a script with three functions: `run` trains and returns the rows of its CSV, `blocks` makes the page's tables
from the rows, `picture` its figure. `main` puts them together. The prose of a page is written by hand; what stands
between two markers, `<!-- name -->` and `<!-- /name -->`, is made from the CSV and renewed by the script.

A row is one run: its setting, cell and seed, how it ended, and its figures; what does not exist is empty.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dotkd.evidence.runs import Run, read_run
from dotkd.evidence.statistics import Difference, Estimate, correct, estimate, paired_difference

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
KEYS = ("setting", "cell", "seed", "status")
_TEXTS = ("setting", "cell", "status")

Row = dict[str, Any]
Study = Callable[..., tuple[list[Row], list[str]]]


def main(
    name: str,
    about: str | None,
    run: Study,
    blocks: Callable[[Sequence[Row]], Mapping[str, str]],
    picture: Callable[[Sequence[Row], Path], None] | None = None,
    *,
    source: str | None = None,
) -> None:
    """The command line of a study; `run(folder, jobs)` returns the rows and the lines of where they come from.

    A study of data that are not at hand names them as `source`, and takes their folder: `run(folder, jobs, path)`.
    """
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    if source is not None:
        parser.add_argument("path", type=Path, nargs="?", help=source)
    parser.add_argument("--out", type=Path, default=Path("runs") / name, help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--page", action="store_true", help="train nothing: renew the page from its CSV")
    args = parser.parse_args()
    if not args.page:
        if source is not None and not (args.path and args.path.is_dir()):
            parser.error(f"expected PATH, the folder of {source}" + (f", got {args.path}" if args.path else ""))
        given = [] if source is None else [args.path]
        rows, origin = run(args.out.resolve(), args.jobs, *given)
        write_rows(RESULTS / f"{name}.csv", rows, origin)
    rows = read_rows(RESULTS / f"{name}.csv")
    if picture is not None:
        picture(rows, RESULTS / f"{name}.svg")
    renew(RESULTS / f"{name}.md", {"origin": origin_of(RESULTS / f"{name}.csv"), **blocks(rows)})


# --- runs -------------------------------------------------------------------------------------------------------------


def dotkd(*words: str) -> None:
    """Run one `dotkd` command, and say it first; ends the script where it fails, except by divergence alone."""
    sys.stderr.write(f"dotkd {shlex.join(words)}\n")
    done = subprocess.run([sys.executable, "-m", "dotkd", *words], stdout=subprocess.DEVNULL)
    if done.returncode not in (0, 3):
        sys.exit(f"exit code {done.returncode}")


def row_of(setting: str, cell: str, run: Run) -> Row:
    """The figures of a run folder that every page can use: accuracies in percent, losses unweighted."""
    return {
        "setting": setting,
        "cell": cell,
        "seed": run.seed,
        "status": run.status,
        "accuracy": _percent(run.last),
        "val_selected": _percent(run.val_selected),
        "best_of_test": _percent(run.best_of_test),
        "test_task": run.test.task_loss,
        "test_distill": run.test.distill_loss,
        "train_task": run.train.task_loss,
        "train_distill": run.train.distill_loss,
    }


def comparison_rows(setting: str, folder: Path) -> list[Row]:
    """The rows of all finished runs in the folder of one comparison."""
    folders = sorted(path.parent for path in folder.glob("*/seed-*/summary.json"))
    return sorted((row_of(setting, path.parent.name, read_run(path)) for path in folders), key=_order)


def origin_lines(folders: Iterable[Path]) -> list[str]:
    """Commit, hardware and versions of every run in the folders, each said once."""
    found: dict[str, set[str]] = {"commit": set(), "hardware": set(), "torch": set()}
    for folder in folders:
        for path in folder.glob("**/summary.json"):
            summary = json.loads(path.read_text(encoding="utf-8"))
            found["commit"].add(str(summary["commit"]))
            found["hardware"].add(f"{summary['hardware']}, {summary['threads']} thread a run")
            found["torch"].add(summary["versions"]["torch"])
    return [f"{what}: {', '.join(sorted(values))}" for what, values in found.items()]


def write_rows(path: Path, rows: Sequence[Row], origin: Sequence[str]) -> None:
    """The CSV of a page: where it comes from as comments, then one line a run, five significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = list(dict.fromkeys([*KEYS, *(key for row in rows for key in row)]))
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(f"# {line}\n" for line in origin)
        writer = csv.DictWriter(file, keys, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _short(value) for key, value in row.items()} for row in rows)


def read_rows(path: Path) -> list[Row]:
    """The rows that `write_rows` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {key: text if key in _TEXTS else (float(text) if text else None) for key, text in row.items()}
            for row in csv.DictReader(line for line in file if not line.startswith("#"))
        ]


def origin_of(path: Path) -> str:
    """The comments of a CSV as a sentence."""
    lines = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return "; ".join(lines) + "."


# --- statistics -------------------------------------------------------------------------------------------------------


def column(rows: Sequence[Row], setting: str, cell: str, key: str = "accuracy") -> dict[int, float | None]:
    """{seed: value} of the runs of a cell that did not diverge."""
    mine = (row for row in rows if row["setting"] == setting and row["cell"] == cell and row["status"] == "done")
    return {int(row["seed"]): row[key] for row in mine}


def mean(rows: Sequence[Row], setting: str, cell: str, key: str = "accuracy") -> Estimate:
    """Mean and interval of a cell; runs that diverged are counted."""
    all_of_it = [row for row in rows if row["setting"] == setting and row["cell"] == cell]
    finished = [row[key] for row in all_of_it if row["status"] == "done"]
    return estimate(finished, diverged=len(all_of_it) - len(finished))


def change(rows: Sequence[Row], setting: str, cell: str, baseline: str, key: str = "accuracy") -> Difference:
    """Paired difference of two cells of a setting over their common seeds."""
    return paired_difference(column(rows, setting, cell, key), column(rows, setting, baseline, key))


def ends(rows: Sequence[Row], setting: str, cell: str, keys: tuple[str, str]) -> tuple[list[float], list[float]]:
    """Two figures of every finished run of a cell that has both."""
    first, second = (column(rows, setting, cell, key) for key in keys)
    both = [(a, b) for a, b in zip(first.values(), second.values(), strict=True) if a is not None and b is not None]
    return [a for a, _ in both], [b for _, b in both]


def comparison_table(
    rows: Sequence[Row], settings: Sequence[str], cells: Sequence[str], baseline: str, key: str, *, digits: int
) -> str:
    """A line a setting: the baseline's mean, then each other cell's with its paired difference to the baseline.

    p is corrected by Holm over all differences of the table.
    """
    others = [cell for cell in cells if cell != baseline]
    changes = {(s, cell): change(rows, s, cell, baseline, key) for s in settings for cell in others}
    told = told_together(changes, digits=digits)
    heads = ["setting", "n", baseline, *others]
    lines: list[list[str]] = []
    for setting in settings:
        own = mean(rows, setting, baseline, key)
        line = [setting, str(own.n), estimate_text(own, digits)]
        for cell in others:
            value = mean(rows, setting, cell, key)
            line.append(f"{estimate_text(value, digits)} ({told[setting, cell]})" if value.n else "-")
        lines.append(line)
    return table(heads, lines)


def told_together(changes: Mapping[Any, Difference], *, digits: int = 2) -> dict[Any, str]:
    """The text of each difference, its p corrected by Holm over all of them."""
    return {key: change_text(found, digits) for key, found in correct(changes).items()}


# --- pages ------------------------------------------------------------------------------------------------------------


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *lines])


def estimate_text(value: Estimate, digits: int = 2) -> str:
    """A mean with its interval, n where runs are missing from it."""
    if value.mean is None:
        return "-" if not value.diverged else f"all {value.diverged} diverged"
    width = "" if value.half_width is None else f" ± {value.half_width:.{digits}f}"
    return f"{value.mean:.{digits}f}{width}" + (f" ({value.diverged} diverged)" if value.diverged else "")


def change_text(value: Difference, digits: int = 2) -> str:
    """A difference with its interval and corrected p; bold where that is below 0.05."""
    if value.mean is None:
        return "-"
    width = "" if value.half_width is None else f" ± {value.half_width:.{digits}f}"
    text = f"{value.mean:+.{digits}f}{width}"
    if value.p_corrected is None:
        return text
    told = "p < 0.001" if value.p_corrected < 0.001 else f"p = {value.p_corrected:.3f}"
    return f"**{text}**, {told}" if value.shown else f"{text}, {told}"


def renew(page: Path, blocks: Mapping[str, str]) -> None:
    """Put each block between its markers; ValueError where a marker of the page or a block is left over."""
    text = page.read_text(encoding="utf-8")
    marked = re.findall(r"<!-- ([\w-]+) -->", text)
    if sorted(marked) != sorted(blocks):
        raise ValueError(f"expected the markers {', '.join(sorted(blocks))} in {page}, got {', '.join(sorted(marked))}")
    for name, block in blocks.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, count = re.subn(
            pattern, lambda found, block=block: f"{found[1]}\n{block}\n\n{found[2]}", text, flags=re.S
        )
        if count != 1:
            raise ValueError(f"expected <!-- {name} --> and <!-- /{name} --> once each in {page}, got {count} pairs")
    page.write_text(text, encoding="utf-8")


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _short(value: Any) -> Any:
    return f"{value:.5g}" if isinstance(value, float) else value


def _order(row: Row) -> tuple[Any, ...]:
    return row["setting"], row["cell"], row["seed"]
