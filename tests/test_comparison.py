"""Comparisons made of run folders: cells, tables, pictures and the sentence.

The contract:
- a cell is compared, by pairs of seeds, with the plain trainer of its own method, `ce` with the first method's;
- the numbers of the table are those of the statistics; a diverged run is counted, and None where nothing exists;
- the sentence says "shown" where a paired, corrected test below 0.05 stands behind it and "not shown" everywhere else,
  and calls a gain explained only by what the controls did.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from dotkd.cli.tables import how_to_read, show_evidence
from dotkd.evidence import plots
from dotkd.evidence.comparison import Cell, check_names, make_cells, make_rows
from dotkd.evidence.numbers import as_json, runs_as_csv
from dotkd.evidence.runs import Run, Scores, read_evaluations, read_run
from dotkd.evidence.settings import Evidence, corrected, make_table
from dotkd.evidence.verdict import verdict
from run_folders import make_run, runs_of

TRAINERS = ["sgd", "dot", "dot-normalized", "sgd-matched"]


def evidence_of(cells: Sequence[Cell], runs: Mapping[str, Sequence[Run]]) -> Evidence:
    return corrected("t", [make_table("t", cells, runs)])


# --- cells


def test_cells_of_the_demo():
    cells = make_cells(["none", "kd"], TRAINERS)
    assert [(cell.name, cell.trainer, cell.against) for cell in cells] == [
        ("ce", "sgd", "kd"),
        ("kd", "sgd", None),
        ("kd+dot", "dot", "kd"),
        ("kd+dot-normalized", "dot-normalized", "kd"),
        ("kd+sgd-matched", "sgd-matched", "kd"),
    ]


def test_each_method_has_its_own_baseline():
    cells = make_cells(["kd", "dkd"], ["sgd", "dot"])
    assert {cell.name: cell.against for cell in cells} == {"kd": None, "kd+dot": "kd", "dkd": "kd", "dkd+dot": "dkd"}


def test_adamw_is_the_plain_trainer_of_its_own_kind():
    cells = make_cells(["none", "kd"], ["adamw", "dot-adamw"])
    assert [(cell.name, cell.trainer) for cell in cells] == [
        ("ce", "adamw"),
        ("kd", "adamw"),
        ("kd+dot-adamw", "dot-adamw"),
    ]
    assert [cell.name for cell in make_cells(["kd"], ["sgd", "adamw"])] == ["kd", "kd+adamw"]


def test_a_baseline_that_was_not_asked_for_is_not_invented():
    assert make_cells(["kd"], ["dot"]) == [Cell("kd+dot", "kd", "dot", None)]


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match="expected at least one name in `trainers`, got none"):
        make_cells(["kd"], [])
    with pytest.raises(ValueError, match="`trainers` names dot more than once"):
        make_cells(["kd"], ["dot", "sgd", "dot"])
    with pytest.raises(ValueError, match="expected --trainers to be one of sgd, dot, got 'dott'; did you mean 'dot'"):
        check_names("--trainers", ["sgd", "dott"], ["sgd", "dot"])


# --- the table


def test_rows_are_paired_and_count_divergence():
    runs = {"kd": runs_of([0.90, 0.92, 0.91]), "kd+dot": runs_of([0.91, None, 0.93])}
    baseline, dot = make_rows(make_cells(["kd"], ["sgd", "dot"]), runs)
    assert baseline.val_selected.mean == pytest.approx(0.91)
    assert baseline.gain.mean is None
    assert (dot.val_selected.mean, dot.val_selected.n, dot.val_selected.diverged) == (pytest.approx(0.92), 2, 1)
    assert (dot.gain.mean, dot.gain.n) == (pytest.approx(0.015), 2)
    assert (dot.task_test.n, dot.task_test.diverged) == (2, 1)


def test_a_loss_that_is_missing_from_one_run_counts_as_diverged():
    runs = runs_of([0.9, 0.9, 0.9])
    runs[1] = runs[1]._replace(test=Scores(0.9, None, 1.0))
    (row,) = make_rows(make_cells(["kd"], ["sgd"]), {"kd": runs})
    assert (row.task_test.n, row.task_test.diverged) == (2, 1)


def test_ce_is_measured_beside_kd_alone():
    ce = runs_of([0.9, 0.9], method="none")
    beside_kd = make_rows(make_cells(["none", "kd"], ["sgd"]), {"ce": ce, "kd": runs_of([0.9, 0.9])})
    beside_dkd = make_rows(make_cells(["none", "dkd"], ["sgd"]), {"ce": ce, "dkd": runs_of([0.9, 0.9])})
    assert beside_kd[0].distill_test.mean == 1.0
    assert beside_dkd[0].distill_test.mean is None


def shown(evidence: Evidence) -> str:
    out = io.StringIO()
    # As a terminal of that width shows it, control codes apart.
    show_evidence(Console(file=out, width=80, highlight=False, force_terminal=True, color_system=None), evidence)
    return out.getvalue()


def test_tables_fit_80_columns_and_lose_no_column():
    cells = make_cells(["none", "kd"], TRAINERS)
    runs = {cell.name: runs_of([0.9012, 0.95, 0.931]) for cell in cells}
    evidence = evidence_of(cells, runs)
    tables = shown(evidence).removesuffix(how_to_read(evidence) + "\n")
    assert max(map(len, tables.splitlines())) <= 80
    heads = ("test acc. %", "last epoch", "best of test", "gain on kd", "effect", "p Holm", "s / kd")
    for text in (*heads, "task, test", "distill., test", "agree %", "ECE", "kd+dot-normalized"):
        assert text in tables
    assert "\x1b" not in tables
    assert "…" not in tables


def test_one_seed_is_a_dash_and_never_a_zero():
    cells = make_cells(["kd"], ["sgd", "dot"])
    text = shown(evidence_of(cells, {"kd": runs_of([0.5]), "kd+dot": runs_of([0.75])}))
    assert "75.00 ± -" in text
    assert "+25.00 ± -" in text
    assert "one seed has no interval and no test" in text
    assert "0.000" not in text


def test_divergence_stands_beside_the_count():
    text = shown(evidence_of(make_cells(["kd"], ["sgd"]), {"kd": runs_of([0.9, None, 0.8])}))
    assert "2, 1 diverged" in text
    assert "runs that diverged are in no mean: 1 of kd; what is compared there are the seeds that survived" in text


def test_no_baseline_is_said():
    evidence = evidence_of(make_cells(["kd"], ["dot"]), {"kd+dot": runs_of([0.9, 0.8])})
    assert "no gains: there is no plain trainer" in how_to_read(evidence)


def test_json_and_csv_hold_the_same_runs(tmp_path: Path):
    runs = {"kd": runs_of([0.90, None], path=tmp_path / "kd")}
    evidence = evidence_of(make_cells(["kd"], ["sgd"]), runs)
    table = json.loads(json.dumps(as_json(evidence, [0, 1], tmp_path), allow_nan=False))
    assert table["settings"][0]["cells"][0]["val_selected"] == {"mean": 0.9, "half_width": None, "n": 1, "diverged": 1}
    lines = list(csv.DictReader(io.StringIO(runs_as_csv(evidence, tmp_path))))
    assert [line["status"] for line in lines] == ["done", "diverged"]
    assert lines[0]["test_accuracy_val_selected"] == "0.9"
    assert lines[1]["test_accuracy_val_selected"] == ""
    assert [(run["cell"], run["directory"]) for run in table["runs"]] == [("kd", "kd/seed-0"), ("kd", "kd/seed-1")]
    assert [list(run) for run in table["runs"]] == [[key for key in lines[0] if key != "recipe"]] * 2
    assert runs_as_csv(corrected("t", []), tmp_path) == ""


# --- the sentence

KD = [0.900, 0.905, 0.899, 0.902, 0.904]
BETTER = [0.920, 0.926, 0.918, 0.923, 0.924]
TASK, LOWER_TASK = [0.40, 0.41, 0.39, 0.40, 0.42], [0.35, 0.37, 0.34, 0.36, 0.37]
DISTILL, LOWER_DISTILL = [1.0, 1.1, 1.05, 1.02, 1.0], [0.8, 0.91, 0.84, 0.82, 0.83]


def told(dot: list[Run], **controls: list[Run]) -> str:
    runs = {"kd": runs_of(KD, TASK, DISTILL), "kd+dot": dot}
    runs |= {f"kd+{name.replace('_', '-')}": made for name, made in controls.items()}
    return sentence(runs)


def sentence(runs: Mapping[str, Sequence[Run]]) -> str:
    trainers = [name.removeprefix("kd+") if "+" in name else "sgd" for name in runs]
    (table,) = evidence_of(make_cells(["kd"], trainers), runs).tables
    return verdict(table)


def test_gain_is_shown_with_its_numbers():
    text = told(runs_of(BETTER, LOWER_TASK, LOWER_DISTILL))
    assert text.startswith(
        "Over 5 seeds, kd+dot was shown to beat kd in test accuracy (+2.02 ± 0.10 points, corrected p < 0.001)"
    )
    assert "both test losses ended lower" in text
    assert "no control was run" in text


def test_without_a_validation_split_the_last_epoch_is_what_is_compared():
    def unselected(runs):
        return [run._replace(val_selected=None) for run in runs]

    runs = {"kd": unselected(runs_of(KD)), "kd+dot": unselected(runs_of(BETTER))}
    assert sentence(runs) == sentence({"kd": runs_of(KD), "kd+dot": runs_of(BETTER)})
    (_, row) = make_rows(make_cells(["kd"], ["sgd", "dot"]), runs)
    assert row.val_selected.mean == pytest.approx(sum(BETTER) / len(BETTER))
    assert row.gain.n == len(KD)


def test_no_difference_is_not_shown_and_nothing_is_explained():
    noisy = [0.93, 0.88, 0.91, 0.90, 0.895]
    text = told(runs_of(noisy, TASK, LOWER_DISTILL), sgd_matched=runs_of(BETTER))
    assert "no difference in test accuracy between kd+dot and kd was shown" in text
    assert "that both test losses end lower was not shown: the task loss showed no change (+0, no test)" in text
    assert "the distillation loss ended lower (-0.194, corrected p < 0.001)" in text
    assert "without a gain there is nothing for the controls to explain" in text
    assert "kd+sgd-matched +2.02" in text


def test_loss_is_told_as_plainly_as_gain():
    mirrored = [2 * a - b for a, b in zip(KD, BETTER, strict=True)]
    text = told(runs_of(mirrored, [1.5 * loss for loss in TASK], DISTILL))
    assert "kd+dot was shown to be worse than kd in test accuracy" in text
    assert "the task loss ended higher" in text


def test_control_that_stays_behind_does_not_explain():
    text = told(runs_of(BETTER), sgd_matched=runs_of(KD[::-1]), dot_normalized=runs_of(BETTER[::-1]))
    assert "the loss weights alone do not explain it, kd+sgd-matched stays behind" in text
    assert "with the weights held (kd+dot-normalized) a gain remained" in text


def test_control_that_gains_as_well_may_explain():
    text = told(runs_of(BETTER), sgd_matched=runs_of(BETTER[::-1]), dot_normalized=runs_of(KD[::-1]))
    assert "the loss weights alone may explain it, kd+sgd-matched gains as well" in text
    assert "a gain was not shown" in text


def test_control_in_between_stays_open():
    between = [0.90, 0.95, 0.89, 0.92, 0.90]
    assert "whether the loss weights alone explain it stays open" in told(runs_of(BETTER), sgd_matched=runs_of(between))


def test_one_seed_says_nothing():
    text = sentence({"kd": runs_of([0.9, None]), "kd+dot": runs_of([0.95, 0.95])})
    assert text.startswith("Nothing is shown about kd+dot against kd")
    assert "one seed has (diverged, and compared are the seeds that did not: 1 of kd)" in text


# --- pictures


def test_pictures_are_drawn_from_folders(tmp_path: Path):
    cells = make_cells(["none", "kd"], ["sgd", "dot"])
    curves = {
        cell.name: [
            read_evaluations(
                make_run(
                    tmp_path / cell.name / str(seed),
                    accuracy=0.9 + 0.01 * seed,
                    task=0.4 + 0.01 * seed,
                    distill=None if cell.method == "none" else 0.2 + 0.01 * seed,
                )
            )
            for seed in range(2)
        ]
        for cell in cells
    }
    curves["kd+nothing yet"] = []
    plots.trade_off(curves, tmp_path / "new folder" / "trade-off.png", title="t")
    plots.accuracy_over_epochs(curves, tmp_path / "accuracy.png", title="t", teacher=0.95)
    for path in (tmp_path / "new folder" / "trade-off.png", tmp_path / "accuracy.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_missing_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ModuleNotFoundError, match=r"install the extra `plots`: pip install 'dotkd\[plots\]'"):
        plots.trade_off({}, tmp_path / "x.png", title="t")


def test_folders_and_table_agree(tmp_path: Path):
    runs = {"kd": [read_run(make_run(tmp_path / str(k), seed=k, accuracy=0.9 + 0.02 * k)) for k in range(2)]}
    (row,) = make_rows(make_cells(["kd"], ["sgd"]), runs)
    assert row.val_selected.mean == pytest.approx(0.91)
    assert row.seconds.mean == 12.5
