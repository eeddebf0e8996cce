"""What a test reads of a page that `dotkd report` wrote."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from dotkd.report import write_report


class Page(HTMLParser):
    """The tables of a page as {caption: rows of cell texts}, its figures' data, its scripts, all text that is shown."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tables: dict[str, list[list[str]]] = {}
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.headings: list[int] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self._open: list[str] = []
        self._caption, self._rows, self.text = "", [], ""
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag == "caption":
            self._caption = ""
        elif tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in ("meta", "br", "link", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"{tag} closes nothing"
        if tag == "table":
            self.tables.setdefault(self._caption, self._rows)

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data
        elif "style" not in self._open:
            self.text += data
            if "caption" in self._open:
                self._caption += data
            elif "td" in self._open or "th" in self._open:
                self._rows[-1][-1] += data

    @property
    def all_figures(self) -> list[dict[str, Any]]:
        ((_, text),) = [entry for entry in self.scripts if entry[0].get("id") == "figures"]
        return json.loads(text)

    @property
    def figures(self) -> dict[str, dict[str, Any]]:
        return {figure["title"]: figure for figure in self.all_figures}


def page(out: Path, *directories: Path) -> Page:
    return Page(write_report(directories, out / "report.html").path)
