"""`dotkd report` as a command.

The contract:
- the page lies in the first folder, or where --out says;
- damaged files are named on the page and on stderr, and the rest is shown: exit code 1;
- a folder that does not exist or holds nothing to show is wrong input: exit code 2, and nothing is written.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from dotkd.cli import app
from report_folders import comparison
from report_page import Page
from run_folders import make_run


def command(*words: object) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, words)])


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path: Path):
    folder = comparison(tmp_path / "c")
    (folder / "kd" / "seed-1" / "summary.json").write_text("{")
    (folder / "kd" / "seed-2" / "metrics.jsonl").write_text("{\n{}\n")
    (folder / "kd" / "seed-3" / "analysis.json").write_text('{"split": "train"}')
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "tune.json").write_text('{"trainers": 3}')
    found = command(folder, tmp_path / "t", "--out", tmp_path / "page.html")
    assert found.exit_code == 1
    shown = Page(tmp_path / "page.html")
    for told in (found.stderr, shown.text):
        assert re.search(r"kd.seed-1.summary\.json cannot be read as the summary of a run", told)
        assert re.search(r"kd.seed-2.metrics\.jsonl, line 1: not a JSON object", told)
        assert re.search(r"kd.seed-3.analysis\.json cannot be read as an analysis", told)
        assert "tune.json of t cannot be read" in told
    assert "4 files could not be read" in shown.text
    assert {row[0]: row for row in shown.tables["mnist1d: test accuracy and cost"]}["kd"][8] == "3"


def test_wrong_folders_are_refused_before_anything_is_written(tmp_path: Path):
    make_run(tmp_path / "runs" / "first")
    for words, message in (
        ([tmp_path / "runs" / "frist"], r"frist does not exist, did you mean `first`\?"),
        ([tmp_path / "runs" / "first" / "summary.json"], r"expected DIR to be a folder, .*summary\.json is a file"),
        ([tmp_path / "empty"], r"expected runs, a comparison or a tuning in .*empty, found none"),
        ([tmp_path / "begun"], r"found none; not finished: begun \(3 epochs done\)"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        make_run(tmp_path / "begun").joinpath("summary.json").unlink()
        found = command(*words)
        assert found.exit_code == 2
        assert re.search(message, found.stderr), found.stderr
    assert not list(tmp_path.rglob("report.html"))


def test_the_page_lies_in_the_first_folder(tmp_path: Path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", seed=1)
    found = command(tmp_path / "a", tmp_path / "b")
    assert (found.exit_code, found.stdout.strip()) == (0, f"written: {tmp_path / 'a' / 'report.html'}")
    assert "2 runs" in Page(tmp_path / "a" / "report.html").text
