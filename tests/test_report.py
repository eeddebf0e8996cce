"""The page that `dotkd report` writes, as text.

The contract:
- numbers are those of the run folders, by the statistics of `dotkd.evidence`, whatever a `comparison.json` says;
- a gain, a loss and "not shown" are told alike; runs that diverged or have not ended are named;
- no name or value of a run becomes markup, and nothing on the page is fetched from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dotkd.report import write_report
from report_folders import BASES, METHODS, SEEDS, comparison, full_run, tuning
from report_page import Page, page
from run_folders import make_run

MINUS = "\N{MINUS SIGN}"
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison `c` of one setting, one `d` of two, and a tuning `t`."""
    home = tmp_path_factory.mktemp("home")
    comparison(home / "c")
    comparison(home / "d", deltas=(0.0, 0.075))
    tuning(home / "t")
    return home


@pytest.fixture(scope="module")
def one(home: Path) -> Page:
    return page(home / "one", home / "c")


@pytest.fixture(scope="module")
def two(home: Path) -> Page:
    return page(home / "two", home / "d", home / "t")


def test_the_numbers_are_those_of_the_runs(home: Path, one: Page):
    accuracies = {
        cell: [
            json.loads((home / "c" / cell / f"seed-{seed}" / "summary.json").read_text())["test_accuracy"]["last"]
            for seed in SEEDS
        ]
        for cell in METHODS
    }
    stats = pytest.importorskip("scipy.stats")
    rows = {row[0]: row for row in one.tables["mnist1d: test accuracy and cost"]}
    assert rows["cell"][4:7] == ["gain on kd, points", "p", "p corrected"]
    for cell, values in accuracies.items():
        mean, width = sum(values) / len(values), stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
        assert rows[cell][1] == f"{100 * mean:.2f} ± {100 * width:.2f}"
    differences = [a - b for a, b in zip(accuracies["ce"], accuracies["kd"], strict=True)]
    gain = 100 * sum(differences) / len(differences)
    width = 100 * stats.sem(differences) * stats.t.ppf(0.975, len(differences) - 1)
    assert rows["ce"][4] == f"{gain:+.2f} ± {width:.2f} ▼ worse".replace("-", MINUS)
    drawn = {row["name"]: row for row in one.figures["Gains in test accuracy"]["rows"]}[f"ce {MINUS} kd"]
    assert [drawn[key] for key in ("mean", "low", "high")] == pytest.approx(
        [gain, gain - width, gain + width], rel=1e-4
    )
    assert drawn["verdict"] == "loss"


def test_gains_losses_and_what_was_not_shown_are_told_alike(two: Page):
    verdicts = {row["name"]: row["verdict"] for row in two.figures["Gains in test accuracy"]["rows"]}
    assert verdicts[f"delta=0.075: kd+dot {MINUS} kd"] == "gain"
    assert verdicts[f"delta=0.075: kd+sgd-matched {MINUS} kd"] == "loss"
    assert "Differences in test accuracy that were tested: 6." in two.text
    counted = [list(verdicts.values()).count(kind) for kind in ("gain", "loss", "none")]
    assert f"gains: {counted[0]}; shown to be losses: {counted[1]}; not shown, which is" in two.text
    for word in ("▲ better", "▼ worse"):
        assert word in two.text


def test_the_verdict_comes_before_every_table(one: Page):
    assert 0 < one.source.index("Over 4 seeds, kd+dot was shown to beat kd") < one.source.index("<table")


def test_runs_that_diverged_or_have_not_ended_are_named(tmp_path: Path):
    shown = page(tmp_path, comparison(tmp_path / "c", faults=True))
    assert "Diverged: 1kd+dot seed 3" in shown.text
    assert "Not finished: 1kd seed-3 (12 epochs done)" in shown.text
    rows = {row[0]: row for row in shown.tables["mnist1d: test accuracy and cost"]}
    assert rows["kd+dot"][8] == "3, 1 diverged"
    names = [one["name"] for one in shown.figures["Test accuracy"]["series"]]
    assert "kd+dot seed 3 (diverged)" in names


def test_what_has_not_ended_is_named(tmp_path: Path):
    full_run(tmp_path / "runs" / "ended", "kd", 0)
    (full_run(tmp_path / "runs" / "begun", "kd", 1) / "summary.json").unlink()
    (tmp_path / "runs" / "compared").mkdir()
    (tmp_path / "runs" / "compared" / "comparison.yaml").write_text("data: mnist1d\n")
    shown = page(tmp_path, tmp_path / "runs")
    assert "Not finished: 2begun (12 epochs done)compared (a comparison, no run has ended)" in shown.text


def test_what_comparison_json_says_in_numbers_is_not_taken(tmp_path: Path):
    """An older file has its cells at the top and all sorts of numbers; a comparison that goes on has none at all."""
    folder = comparison(tmp_path / "c")
    new = page(tmp_path, folder).tables["mnist1d: test accuracy and cost"]
    contents = json.loads((folder / "comparison.json").read_text())
    cells = [{**cell, "last": {"mean": 0.123}} for cell in contents["settings"][0]["cells"]]
    runs = [{"cell": "kd", "seed": 0, "test_accuracy_last": 0.123}]
    old = {"comparison": "mnist1d", "seeds": SEEDS, "cells": cells, "runs": runs}
    (folder / "comparison.json").write_text(json.dumps(old))
    assert page(tmp_path, folder).tables["mnist1d: test accuracy and cost"] == new
    (folder / "comparison.json").unlink()
    (folder / "comparison.yaml").write_text("data: mnist1d\n")
    assert page(tmp_path, folder).tables["c: test accuracy and cost"] == new


def test_everything_recorded_is_drawn(home: Path, one: Page, two: Page):
    drawn = set(one.figures)
    assert {"Trade-off", "Test accuracy", "Task loss", "Agreement with the teacher", "Calibration error"} <= drawn
    assert {"Gradient norm, task", "Gradient norm, distill", "Share of the update, distill"} <= drawn
    assert {"Signal to noise, distill", "Cosine between gradients, task and distill", "Buffer norm, task"} <= drawn
    assert {"Landscape along a line, task loss", "Landscape over a plane, kd", "Likeness to the teacher, kd"} <= drawn
    assert {"Largest eigenvalue of the Hessian", "Trace of the Hessian, normalised"} <= drawn
    assert {"Test accuracy against delta", "Gain against delta", "Trade-off (delta=0.075)"} <= set(two.figures)
    assert {"Validation accuracy against lr", "Gains in the final test"} <= set(two.figures)
    accuracy = {series["name"]: series for series in one.figures["Test accuracy"]["series"]}["kd"]
    last = [json.loads((home / f"c/kd/seed-{seed}/summary.json").read_text()) for seed in SEEDS]
    assert accuracy["y"][-1] == pytest.approx(25 * sum(run["test_accuracy"]["last"] for run in last), rel=1e-4)
    plane = one.figures["Landscape over a plane, kd"]
    assert plane["z"][0][2] == pytest.approx(0.3 + 3 * (0.36 + 0.3 + 1.5), rel=1e-4)  # beta -1, alpha -0.6


def test_every_figure_has_its_caption_and_its_numbers(one: Page, two: Page):
    for shown in (one, two):
        assert shown.source.count("<figure>") == shown.source.count("<figcaption>") == len(shown.figures)
        assert shown.source.count("<summary>The numbers of “") == len(shown.figures)


def test_runs_by_themselves_stand_side_by_side(tmp_path: Path):
    for lr in (0.01, 0.1):
        for seed in (0, 1):
            full_run(tmp_path / f"lr-{lr}-seed{seed}", "kd+dot", seed, shift=lr, lr=lr)
    shown = page(tmp_path / "out", tmp_path)
    assert [row[0] for row in shown.tables["4 runs: test accuracy and cost"]] == ["cell", "lr-0.01", "lr-0.1"]
    assert shown.tables["Keys that differ"] == [["cell", "lr"], ["lr-0.01", "0.01"], ["lr-0.1", "0.1"]]
    assert [one["x"] for one in shown.figures["Test accuracy against lr"]["series"]] == [[0.01, 0.1]]
    alone = page(tmp_path / "out", tmp_path / "lr-0.1-seed0")
    assert "Differences in test accuracy" not in alone.text
    assert ["method", "kd"] in alone.tables["All 5 keys"]


def test_provenance_is_told(one: Page):
    header, line = one.tables["Where the runs come from"]
    assert line[: len(header) - 1] == ["16", "0.1.0", "2.13.0", "3.11", "0123456789ab", "a machine, 2 cores", "1"]


def test_names_and_values_never_become_markup(tmp_path: Path):
    folder = tmp_path / "<b>evil & 'c'"
    comparison(folder, deltas=(0.025, 0.05))
    text = (folder / "comparison.json").read_text().replace("mnist1d", "{{script}}" + EVIL.replace("/", "\\/"))
    (folder / "comparison.json").write_text(text.replace("delta=0.05", f"<!-- {EVIL}".replace("/", "\\/")))
    full_run(tmp_path / "run" / '"><img src=x onerror=alert(1)>', "kd", 0, student=EVIL, **{f"</table>{EVIL}": 1})
    shown = page(tmp_path, folder, tmp_path / "run")
    assert EVIL in shown.text
    assert "{{script}}" in shown.text
    assert [attributes.get("type") for attributes, _ in shown.scripts] == ["application/json", None]
    tags = {tag for tag, _, _ in shown.attributes}
    assert not tags & {"img", "b"}
    assert not [name for _, name, _ in shown.attributes if name.startswith("on")]
    ((_, data),) = [entry for entry in shown.scripts if entry[0]]
    assert not re.search(r"[<>&]", data)


def test_nothing_is_fetched(two: Page):
    shown = two  # a page with everything on it
    assert "http:" not in shown.source
    assert "https:" not in shown.source
    assert not re.search(r"url\((?!#)", shown.source)
    assert "@import" not in shown.source
    links = [value for _, name, value in shown.attributes if name in ("src", "href", "srcset", "action")]
    assert links
    assert all(value is not None and value.startswith("#") for value in links)
    ((policy,),) = [
        [v] for tag, name, v in shown.attributes if tag == "meta" and name == "content" and "'none'" in str(v)
    ]
    script = shown.scripts[-1][1]
    style = shown.source.partition("<style>")[2].partition("</style>")[0]
    for text in (script, style):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in str(policy)
    assert not [name for _, name, _ in shown.attributes if name == "style"], "the policy would refuse it"


def test_headings_are_in_order(one: Page, two: Page):
    for shown in (one, two):
        headings = shown.headings
        assert headings[0] == 1
        assert headings.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(headings))


def test_a_hundred_runs_make_less_than_two_megabytes(tmp_path: Path):
    for number in range(100):
        cell = list(BASES)[number % len(BASES)]
        full_run(tmp_path / "runs" / f"run-{number}", cell, 0, epochs=60, lr=0.01 + number / 1000)
    written = write_report([tmp_path / "runs"], tmp_path / "report.html")
    assert written.path.stat().st_size < 2e6
    shown = Page(written.path)
    accuracy = shown.figures["Test accuracy"]
    assert len(accuracy["series"]) == 100
    assert accuracy["series"][0]["x"][-1] == 60
    assert "evenly chosen epochs of 60 are drawn" in shown.text


def test_no_torch_is_needed(tmp_path: Path):
    make_run(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from dotkd.report import write_report\n"
        "write_report([Path(sys.argv[1])], Path(sys.argv[1]) / 'report.html'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False).returncode == 0
