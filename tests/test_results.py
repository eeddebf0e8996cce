"""The pages of docs/results/. Their contract: every table of a page, its picture and its origin are what its CSV gives,
so that no figure can drift from its data; every page is that of a study, and names its command, its data and its
picture.
"""

from __future__ import annotations

import importlib
import re
import shutil
from pathlib import Path
from typing import Any

import page
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs" / "results").glob("*.csv"))


def study_of(path: Path):
    return importlib.import_module(path.stem.replace("-", "_"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_tables_of_a_page_are_what_its_data_give(path: Path, tmp_path: Path):
    copy = tmp_path / "page.md"
    shutil.copy(path.with_suffix(".md"), copy)
    page.renew(copy, {"origin": page.origin_of(path), **study_of(path).blocks(page.read_rows(path))})
    assert copy.read_text() == path.with_suffix(".md").read_text()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_picture_of_a_page_is_what_its_data_give(path: Path, tmp_path: Path):
    """Byte by byte: matplotlib is pinned, and brings its fonts."""
    study_of(path).picture(page.read_rows(path), tmp_path / "drawn.svg")
    assert (tmp_path / "drawn.svg").read_bytes() == path.with_suffix(".svg").read_bytes()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_names_its_command_and_its_picture_and_its_data(path: Path):
    text = path.with_suffix(".md").read_text()
    script = f"studies/{path.stem.replace('-', '_')}.py"
    assert (ROOT / script).is_file()
    assert f"python {script}" in text
    assert f"({path.name})" in text
    for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text):
        assert (path.parent / picture).is_file()


def test_changed_data_are_noticed(tmp_path: Path):
    path = tmp_path / "page.md"
    path.write_text("# A page\n\n<!-- one -->\n\nold\n\n<!-- /one -->\n")
    page.renew(path, {"one": "new"})
    assert path.read_text() == "# A page\n\n<!-- one -->\n\nnew\n\n<!-- /one -->\n"
    with pytest.raises(ValueError, match=r"expected the markers two in .*page.md, got one"):
        page.renew(path, {"two": "new"})


def test_rows_are_read_as_they_were_written_to_five_digits(tmp_path: Path):
    rows = [
        {"setting": "a", "cell": "kd", "seed": 0, "status": "done", "accuracy": 91.234567},
        {"setting": "a", "cell": "kd", "seed": 1, "status": "diverged", "accuracy": None},
    ]
    page.write_rows(tmp_path / "x.csv", rows, ["commit: c", "hardware: h"])
    read = page.read_rows(tmp_path / "x.csv")
    assert [row["accuracy"] for row in read] == [91.235, None]
    assert page.origin_of(tmp_path / "x.csv") == "commit: c; hardware: h."
    assert page.column(read, "a", "kd") == {0: 91.235}
    found = page.mean(read, "a", "kd")
    assert (found.n, found.diverged) == (1, 1)


def test_a_study_of_data_that_are_not_at_hand_wants_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def never(*_given: object) -> Any:
        raise AssertionError("nothing is trained without data")

    for given, told in (([], "expected PATH, the folder of pictures\n"), (["nowhere"], "got nowhere\n")):
        monkeypatch.setattr("sys.argv", ["study", *given])
        with pytest.raises(SystemExit):
            page.main("study", "About it.", never, never, source="pictures")
        assert capsys.readouterr().err.endswith(told)
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["study", str(tmp_path), "--jobs", "3"])
    seen: list[object] = []

    def run(_out: Path, *given: object) -> tuple[list[page.Row], list[str]]:
        seen.append(given)
        return [], []

    with pytest.raises(FileNotFoundError, match=r"study\.md"):
        page.main("study", None, run, lambda _: {}, source="pictures")
    assert seen == [(3, tmp_path)]
