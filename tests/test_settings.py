"""The settings of a comparison, as far as their numbers go.

The contract:
- all tests of a quantity, over cells and settings, are one family for Holm; a test of the same runs is one test;
- the tests of DOT against its matched control are in the family of the accuracies, and losses in families of their own;
- n = 1, a diverged run and differences without spread take no part, and stand in table, JSON, CSV and LaTeX;
- the LaTeX table has the same columns in every line and prints every name as it is.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import scipy.stats
from rich.console import Console

from dotkd.cli.tables import how_to_read, show_evidence
from dotkd.evidence import plots
from dotkd.evidence.comparison import make_cells
from dotkd.evidence.latex import as_latex, escaped
from dotkd.evidence.numbers import as_json, cells_as_csv, runs_as_csv
from dotkd.evidence.runs import Run
from dotkd.evidence.settings import Evidence, Table, corrected, make_table
from dotkd.report.ablation import ablations
from run_folders import runs_of

KD = [0.900, 0.905, 0.899, 0.902, 0.904]
DOT = [0.911, 0.909, 0.905, 0.918, 0.907]
HIGHER = [0.921, 0.913, 0.915, 0.920, 0.917]
MATCHED = [0.905, 0.911, 0.908, 0.903, 0.909]
LOSSES = [0.40, 0.42, 0.39, 0.41, 0.44]
SHARED = Path("delta=0.05/kd")


def table(delta: float, dot: Sequence[float | None], shared: Path | None = SHARED, **more: list[Run]) -> Table:
    """A setting whose plain runs are those of `shared`, or its own."""
    home = Path(f"delta={delta}")
    runs = {
        "kd": runs_of(KD, LOSSES, path=shared or home / "kd"),
        "kd+dot": runs_of(dot, [0.9 * loss + 0.01 * k for k, loss in enumerate(LOSSES)], path=home / "kd+dot"),
        **more,
    }
    cells = make_cells(["kd"], ["sgd", *(name.removeprefix("kd+") for name in runs if "+" in name)])
    return make_table(f"delta={delta}", cells, runs, recipe="r", varied={"delta": delta}, directory=home.as_posix())


def p_value(candidate: Sequence[float], baseline: Sequence[float]) -> float:
    return float(scipy.stats.ttest_rel(candidate, baseline).pvalue)


def gains(evidence: Evidence, cell: str) -> list[tuple[float | None, float | None]]:
    rows = [found.row(cell) for found in evidence.tables]
    return [(row.gain.p, row.gain.p_corrected) for row in rows if row is not None]


# --- the family


def test_tests_of_all_settings_are_one_family():
    evidence = corrected("t", [table(0.05, DOT), table(0.075, HIGHER)])
    low, high = sorted([p_value(DOT, KD), p_value(HIGHER, KD)])
    assert evidence.tests == 2
    ((_, first), (_, second)) = sorted(gains(evidence, "kd+dot"), key=lambda pair: pair[0] or 0.0)
    assert first == pytest.approx(min(1.0, 2 * low), rel=1e-9)
    assert second == pytest.approx(max(2 * low, high), rel=1e-9)


def test_dot_against_its_control_is_in_the_family():
    control = {"kd+sgd-matched": runs_of(MATCHED, path=Path("m"))}
    evidence = corrected("t", [table(0.05, DOT, **control)])
    (found,) = evidence.tables
    tests = [p_value(DOT, KD), p_value(MATCHED, KD), p_value(DOT, MATCHED)]
    assert evidence.tests == 3
    assert found.against_matched["kd"].p == pytest.approx(tests[2], rel=1e-9)
    # The largest of three is multiplied by one, or raised to the others.
    assert found.against_matched["kd"].p_corrected == pytest.approx(max(tests[2], 2 * sorted(tests)[1]), rel=1e-9)


def test_a_test_of_the_same_runs_is_one_test():
    """As those of sgd-matched or ce would be that settings share."""
    same = {"kd+adamw": runs_of(DOT, path=Path("delta=0.05/kd+adamw"))}
    evidence = corrected("t", [table(0.05, HIGHER, **same), table(0.075, MATCHED, **same)])
    assert evidence.tests == 3
    assert len(set(gains(evidence, "kd+adamw"))) == 1
    apart = {"kd+adamw": runs_of(DOT, path=Path("delta=0.075/kd+adamw"))}
    assert corrected("t", [table(0.05, HIGHER, **same), table(0.075, MATCHED, **apart)]).tests == 4


def test_losses_are_families_of_their_own():
    evidence = corrected("t", [table(0.05, DOT), table(0.075, DOT)])
    changes = [row.task_change for found in evidence.tables if (row := found.row("kd+dot")) is not None]
    assert [change.p_corrected for change in changes] == pytest.approx([2 * (changes[0].p or 0.0)] * 2, rel=1e-9)
    # Distillation losses are all alike here: no spread, no test, nothing in their family.
    assert [row.distill_change.p_corrected for found in evidence.tables for row in found.rows] == [None] * 4


def test_one_setting_with_one_test_is_not_corrected():
    evidence = corrected("t", [table(0.05, DOT)])
    assert evidence.tests == 1
    assert gains(evidence, "kd+dot") == [(pytest.approx(p_value(DOT, KD)),) * 2]


def test_what_has_no_test_takes_no_part():
    one = make_table("one", make_cells(["kd"], ["sgd", "dot"]), {"kd": runs_of([0.9]), "kd+dot": runs_of([0.95])})
    level = table(0.1, [value + 0.25 for value in KD])
    lost = table(0.09, [None, None, *DOT[2:]])
    evidence = corrected("t", [one, level, lost, table(0.05, DOT)])
    assert evidence.tests == 2
    found = [row.gain for made in evidence.tables if (row := made.row("kd+dot")) is not None]
    assert [(change.n, change.p_corrected is None) for change in found] == [
        (1, True),
        (5, True),
        (3, False),
        (5, False),
    ]
    assert found[2].p == pytest.approx(p_value(DOT[2:], KD[2:]))
    assert "2 of kd+dot (delta=0.09); what is compared there are the seeds that survived" in how_to_read(evidence)


# --- what is written


def test_json_is_what_others_read():
    evidence = corrected("t", [table(0.05, DOT), table(0.075, [None, *HIGHER[1:]])])
    found = json.loads(json.dumps(as_json(evidence, [0, 1, 2, 3, 4], Path()), allow_nan=False))
    assert (found["comparison"], found["seeds"]) == ("t", [0, 1, 2, 3, 4])
    assert found["family"] == {"tests": 2, "correction": "holm", "alpha": 0.05}
    first, second = found["settings"]
    assert {key: first[key] for key in ("name", "recipe", "varied", "directory")} == {
        "name": "delta=0.05",
        "recipe": "r",
        "varied": {"delta": 0.05},
        "directory": "delta=0.05",
    }
    cell = second["cells"][1]
    assert [cell[key] for key in ("name", "method", "trainer", "against")] == ["kd+dot", "kd", "dot", "kd"]
    estimates = ("val_selected", "last", "best_of_test", "task_test", "task_train", "distill_test", "distill_train")
    for key in (*estimates, "seconds", "agreement", "calibration_error"):
        assert set(cell[key]) == {"mean", "half_width", "n", "diverged"}
        assert (cell[key]["n"], cell[key]["diverged"]) == (4, 1)
    for key in ("gain", "task_change", "distill_change"):
        assert set(cell[key]) == {"mean", "half_width", "p", "p_corrected", "effect_size", "n"}
    assert "was shown to beat kd" in first["verdicts"]["kd"] or "no difference" in first["verdicts"]["kd"]
    runs = found["runs"]
    assert len(runs) == 20
    assert {run["status"] for run in runs} == {"done", "diverged"}
    # The shared runs stand in both settings, and lie where they were trained.
    kd = [run for run in runs if run["cell"] == "kd" and run["seed"] == 0]
    assert [(run["setting"], run["directory"]) for run in kd] == [
        ("delta=0.05", "delta=0.05/kd/seed-0"),
        ("delta=0.075", "delta=0.05/kd/seed-0"),
    ]
    assert (kd[0]["test_agreement"], kd[0]["test_calibration_error"]) == (0.8, 0.04)


def test_csv_has_a_column_for_each_varied_key_and_both_p_values():
    evidence = corrected("t", [table(0.05, DOT), table(0.075, HIGHER)])
    runs = list(csv.DictReader(io.StringIO(runs_as_csv(evidence, Path()))))
    assert [run["delta"] for run in runs] == ["0.05"] * 10 + ["0.075"] * 10
    cells = list(csv.DictReader(io.StringIO(cells_as_csv(evidence))))
    assert [(cell["delta"], cell["cell"], cell["against"]) for cell in cells] == [
        ("0.05", "kd", ""),
        ("0.05", "kd+dot", "kd"),
        ("0.075", "kd", ""),
        ("0.075", "kd+dot", "kd"),
    ]
    assert 2 * float(cells[3]["gain_p"]) == float(cells[3]["gain_p_corrected"])
    assert cells[0]["gain_p"] == ""


def shown(evidence: Evidence) -> str:
    out = io.StringIO()
    show_evidence(Console(file=out, width=80, highlight=False, force_terminal=True, color_system=None), evidence)
    return out.getvalue()


def test_tables_of_several_settings_fit_80_columns():
    long = table(0.05, DOT)._replace(name="student_options={depth: 8, width: 2, norm: group}, delta=0.05")
    text = shown(corrected("t", [long, table(0.075, [*HIGHER[:4], None])]))
    tables = text.partition("mean ± 95 %")[0]
    assert max(map(len, tables.splitlines())) <= 80
    for words in ("delta=0.075", "  kd+dot", "4, 1 diverged", "p Holm", "s / kd"):
        assert words in tables
    assert "…" not in tables
    assert "all 2 tests of accuracy" in text


# --- LaTeX


def test_latex_has_the_same_columns_in_every_line():
    lost = table(0.075, [None, *HIGHER[1:]])
    for tables in ([table(0.05, DOT)], [table(0.05, DOT), lost._replace(name="student_options={a: 1}_50%~&#\\^")]):
        lines = as_latex(corrected("a\nb", tables)).splitlines()
        (columns,) = [re.fullmatch(r"\\begin\{tabular\}\{(l?r*)\}", line) for line in lines if "begin{tab" in line]
        assert columns is not None
        body = [line for line in lines if line.endswith(r"\\")]
        assert len(body) == 1 + 2 * len(tables) + (len(tables) if len(tables) > 1 else 0)
        for line in body:
            spanned = re.match(r"\\multicolumn\{(\d+)\}", line)
            count = int(spanned[1]) if spanned else len(re.split(r"(?<!\\)&", line))
            assert count == len(columns[1])
            assert line.count("$") % 2 == 0 or r"\$" in line
        assert lines[-1] == r"\end{tabular}"
        assert all(line.startswith("%") for line in lines[:2])
    text = as_latex(corrected("t", tables))
    assert r"student\_options=\{a: 1\}\_50\%\textasciitilde{}\&\#\textbackslash{}\textasciicircum{}" in text
    assert "4 (1 diverged)" in text


def test_latex_marks_what_was_shown():
    text = as_latex(corrected("t", [table(0.05, HIGHER)]))
    assert re.search(r"\+\d\.\d\d \\pm \d\.\d\d\^\{\*\}\$", text)
    assert "^{*}" not in as_latex(corrected("t", [table(0.05, KD[::-1])]))
    assert escaped("kd+dot-normalized <0.1|") == r"kd+dot-normalized \textless{}0.1\textbar{}"


# --- ablations


def drawn(tables: Sequence[Table], folder: Path) -> list[str]:
    return [path.name for path in plots.ablations(corrected("t", tables), folder) if path.is_file()]


def test_a_picture_for_each_varied_number(tmp_path: Path):
    several = [table(0.05, DOT), table(0.075, HIGHER)]
    assert drawn(several, tmp_path) == ["ablation-delta.png"]
    grid = [made._replace(varied={**made.varied, "lr": lr}) for made in several for lr in (0.01, 1)]
    assert drawn(grid, tmp_path) == ["ablation-delta.png", "ablation-lr.png"]
    texts: list[Mapping[str, object]] = [{"norm": "group"}, {"norm": "batch"}]
    assert drawn([made._replace(varied=text) for made, text in zip(several, texts, strict=True)], tmp_path) == []
    assert drawn(several[:1], tmp_path) == []
    nothing = [made._replace(runs={"kd": []}) for made in several]
    assert drawn(nothing, tmp_path) == []


def titles_and_styles(tables: Sequence[Table]) -> dict[str, list[tuple[str, int]]]:
    figures = ablations(corrected("t", tables).tables, {"kd": 0, "kd+dot": 1}, compared=True)
    return {figure.title: [(one.name, one.style) for one in figure.series] for figure in figures}


def test_the_page_has_plots_of_its_own_for_each_recipe():
    two = [table(0.05, DOT), table(0.075, HIGHER)]
    alone = titles_and_styles(two)
    assert alone["Test accuracy against delta"] == [("kd", 0), ("kd+dot", 1)]
    both = titles_and_styles([*two, *(made._replace(recipe="s") for made in two)])
    assert sorted(both) == sorted(f"{title} ({recipe})" for title in alone for recipe in ("r", "s"))
    assert both["Gain against delta (s)"] == [("kd+dot", 1)]


def test_lines_of_one_cell_look_different_in_the_page():
    grid = [
        made._replace(varied={**made.varied, "lr": lr})
        for made in (table(0.05, DOT), table(0.075, HIGHER))
        for lr in (0.01, 1)
    ]
    lines = titles_and_styles(grid)["Test accuracy against delta"]
    assert sorted(name for name, _ in lines) == ["kd+dot, lr=0.01", "kd+dot, lr=1", "kd, lr=0.01", "kd, lr=1"]
    assert len({style for _, style in lines}) == len(lines)
