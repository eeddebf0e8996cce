"""Tables and picture of docs/results/auto-delta.md, from its CSV: a row a cell, with the accuracy of each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import page
import pictures
from auto_cells import AUTO, CELLS, FIXED, RIVALS, SETTINGS
from page import Row

from dotkd.evidence.statistics import estimate, holm, paired_difference

GROUPS = ("digits", "mlp", "resnet")
DRAWN = ("delta 0.075", "matched 0.075", "sensitivity", "rate, displacement")


def accuracy(rows: Sequence[Row], setting: str, cell: str) -> dict[int, float | None]:
    found = [row for row in rows if row["setting"] == setting and row["cell"] == cell]
    return {
        int(key[5:]): value
        for row in found
        for key, value in row.items()
        if key.startswith("seed_") and value is not None
    }


def blocks(rows: Sequence[Row]) -> Mapping[str, str]:
    tables = {group: accuracies(rows, [s for s in SETTINGS if s.startswith(group)]) for group in GROUPS}
    return {**tables, "verdict": verdict(rows), "rivals": rivals(rows), "losses": losses(rows), "found": found(rows)}


def accuracies(rows: Sequence[Row], settings: Sequence[str]) -> str:
    """A line a cell, a column a setting: KD, then paired differences to it; p by Holm over the table."""
    settings = [setting for setting in settings if accuracy(rows, setting, "kd")]
    cells = [cell for cell in CELLS if any(accuracy(rows, setting, cell) for setting in settings)]
    changes = {
        (setting, cell): paired_difference(accuracy(rows, setting, cell), accuracy(rows, setting, "kd"))
        for setting in settings
        for cell in cells
        if cell != "kd"
    }
    told = page.told_together(changes)
    own = {setting: estimate(list(accuracy(rows, setting, "kd").values())) for setting in settings}
    first = ["kd", *(f"{page.estimate_text(own[setting])} (n = {own[setting].n})" for setting in settings)]
    rest = [[cell, *(told[setting, cell] for setting in settings)] for cell in cells if cell != "kd"]
    return page.table(["cell", *settings], [first, *rest])


def verdict(rows: Sequence[Row]) -> str:
    """A line a rule: in how many settings it was behind KD, and behind the fixed Delta with the best mean there.

    Shown: p < 0.05, first as it comes, then by Holm over the settings of the line.
    """
    lines: list[list[str]] = []
    for cell in (*FIXED, *AUTO, *RIVALS):
        settings = [setting for setting in SETTINGS if accuracy(rows, setting, cell) and accuracy(rows, setting, "kd")]
        line = [cell, str(len(settings))]
        for baseline in (dict.fromkeys(settings, "kd"), {s: best_fixed(rows, s) for s in settings}):
            changes = {
                setting: paired_difference(accuracy(rows, setting, cell), accuracy(rows, setting, baseline[setting]))
                for setting in settings
                if cell != baseline[setting]
            }
            p = {setting: change.p for setting, change in changes.items() if change.p is not None}
            corrected = holm(p)
            behind = [setting for setting, change in changes.items() if (change.mean or 0) < 0]
            shown = [sum(values.get(s, 1.0) < 0.05 for s in behind) for values in (p, corrected)]
            worst = min(changes, key=lambda s: changes[s].mean or 0.0, default=None)
            text = (
                "-" if worst is None else f"{changes[worst].mean:+.2f} ± {changes[worst].half_width or 0:.2f} ({worst})"
            )
            line += [f"{len(behind)} / {shown[0]} / {shown[1]}", text]
        lines.append(line)
    heads = [
        "cell",
        "settings",
        "behind KD / shown / by Holm",
        "most",
        "behind the best Delta / shown / by Holm",
        "most",
    ]
    return page.table(heads, lines)


def rivals(rows: Sequence[Row]) -> str:
    """Paired differences of the rule that did best to what must be beaten, p by Holm over the table."""
    others = ("matched 0.075", *RIVALS)
    settings = [setting for setting in SETTINGS if any(accuracy(rows, setting, other) for other in others)]
    changes = {
        (setting, other): paired_difference(accuracy(rows, setting, "sensitivity"), accuracy(rows, setting, other))
        for setting in settings
        for other in others
    }
    told = page.told_together(changes)
    return page.table(["setting", *others], [[s, *(told[s, other] for other in others)] for s in settings])


def best_fixed(rows: Sequence[Row], setting: str) -> str:
    """The fixed Delta, 0 included, whose mean is the best."""
    means = {
        cell: estimate(list(accuracy(rows, setting, cell).values())).mean for cell in FIXED if "matched" not in cell
    }
    return max((cell for cell in means if means[cell] is not None), key=lambda cell: means[cell] or 0.0)


def losses(rows: Sequence[Row]) -> str:
    """Final training losses, task / distillation, means over the seeds that did not diverge."""
    cells = ("kd", "delta 0.05", "delta 0.075", "delta 0.09", "matched 0.075", "sensitivity", "rate, displacement")
    told = {
        (r["setting"], r["cell"]): f"{r['train_task']:.3f} / {r['train_distill']:.3f}" for r in rows if r["train_task"]
    }
    settings = [setting for setting in SETTINGS if (setting, "kd") in told]
    return page.table(["setting", *cells], [[s, *(told.get((s, cell), "-") for cell in cells)] for s in settings])


def found(rows: Sequence[Row]) -> str:
    """Mean Delta in the first, third, sixth and last tenth of training."""
    cells = [cell for cell in (*AUTO, *RIVALS) if any(row["cell"] == cell for row in rows)]
    told = {(r["setting"], r["cell"]): " ".join(f"{r[f'delta_{k}']:.3f}"[1:] for k in (1, 3, 6, 10)) for r in rows}
    settings = [setting for setting in SETTINGS if any(row["setting"] == setting for row in rows)]
    return page.table(["setting", *cells], [[s, *(told.get((s, cell), "-") for cell in cells)] for s in settings])


def picture(rows: Sequence[Row], path: Path) -> None:
    """What DRAWN gain on KD in every setting."""
    figure, axes = pictures.panels(len(GROUPS), width=4.6, height=5.0)
    for panel, group in zip(axes, GROUPS, strict=True):
        lines = [
            (
                f"{setting.removeprefix(group).strip()}: {cell}",
                paired_difference(accuracy(rows, setting, cell), accuracy(rows, setting, "kd")),
                place,
            )
            for setting in SETTINGS
            if setting.startswith(group)
            for place, cell in enumerate(DRAWN)
        ]
        pictures.forest(panel, lines, title=f"{group}, logarithmic beyond 2")
        panel.set_xscale("symlog", linthresh=2)
        panel.set_xticks([-30, -5, -1, 0, 1, 5, 30], ["-30", "-5", "-1", "0", "1", "5", "30"])
        panel.set_xlim(-45, 45)
    pictures.save(figure, path)
