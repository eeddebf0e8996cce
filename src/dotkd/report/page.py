"""The page: what was found, put in order, style and script inside; nothing is fetched from anywhere."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import NamedTuple

import dotkd
from dotkd.evidence.runs import DiagnosticPoint, EvalPoint, Run, read_diagnostics, read_evaluations
from dotkd.evidence.settings import Table
from dotkd.report.ablation import ablations
from dotkd.report.analyses import read_analyses
from dotkd.report.analysis import analysis_part
from dotkd.report.configs import configs_part, provenance_part
from dotkd.report.curves import Curves, diagnostics, over_epochs, trade_offs
from dotkd.report.figures import Album, Figure
from dotkd.report.folders import Findings, Subject
from dotkd.report.markup import Markup, embedded, escaped, joined, tag
from dotkd.report.tables import (
    accuracy_table,
    ends_part,
    gains_forest,
    how_to_read,
    likeness_table,
    losses_table,
    verdict_part,
)
from dotkd.report.tuning import tuning_part

SCRIPTS = ("scales.js", "lines.js", "forest.js", "heat.js", "page.js")


class _Part(NamedTuple):
    """A section of the page. first: its heading where it is the only one, and the page has its title."""

    kind: str
    title: str
    first: str
    body: Markup


def render(findings: Findings) -> tuple[str, list[str]]:
    """The page, and all problems met: those of `findings` and those of files that are read for the page alone."""
    album, problems = Album(), list(findings.problems)
    parts: list[_Part] = []
    for subject in findings.subjects:
        parts.append(_subject(subject, f"part-{len(parts)}", album, problems))
    for found in findings.tunings:
        try:
            parts.append(_Part("Tuning", found.title, "The best of each trainer", tuning_part(found.contents, album)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problems.append(f"tune.json of {found.title} cannot be read: {type(error).__name__}: {error}")
    if not parts:
        raise ValueError("nothing can be shown:\n" + "\n".join(f"  {problem}" for problem in problems))
    alone = len(parts) == 1
    title = parts[0].title if alone else f"{len(parts)} results"
    kind = parts[0].kind if alone else ", ".join(dict.fromkeys(part.kind for part in parts))
    sections = [
        # The title of a page with one part is that of the part, which need not be said twice.
        tag(
            "section",
            tag("h2", part.first) if alone else tag("h2", tag("span", part.kind, class_="kind"), " ", part.title),
            part.body,
            id=f"part-{number}",
            data_subject="",
        )
        for number, part in enumerate(parts)
    ]
    style, script = _asset("page.css"), "(() => {\n" + "".join(map(_asset, SCRIPTS)) + "})();\n"
    filled = {
        "title": escaped(title),
        "kind": escaped(kind),
        "contents": Markup("") if alone else _contents([part.title for part in parts]),
        "problems": joined([_problems(problems), _unfinished(findings.unfinished)]),
        "sections": joined(sections),
        "version": escaped(dotkd.__version__),
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
        "figures": embedded(album.data),
    }
    # In one pass, so that a name that looks like a placeholder stays a name.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: filled[match[1]], _asset("page.html")), problems


def _asset(name: str) -> str:
    return (resources.files("dotkd.report") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What the page's own policy knows its style and script by; no other may run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _contents(titles: Sequence[str]) -> Markup:
    links = [tag("li", tag("a", title, href=f"#part-{number}")) for number, title in enumerate(titles)]
    return tag("nav", tag("ul", *links), aria_label="Contents")


def _problems(problems: Sequence[str]) -> Markup:
    if not problems:
        return Markup("")
    heading = tag("h2", f"{len(problems)} file{'s' if len(problems) > 1 else ''} could not be read")
    items = [tag("li", problem) for problem in problems]
    note = tag("p", "Everything below was made without what they hold.")
    return tag("section", heading, tag("ul", *items), note, class_="notice")


def _unfinished(names: Sequence[str]) -> Markup:
    if not names:
        return Markup("")
    items = [tag("li", name) for name in names]
    return tag("section", tag("h2", f"Not finished: {len(names)}"), tag("ul", *items), class_="notice")


def _subject(subject: Subject, identity: str, album: Album, problems: list[str]) -> _Part:
    tables, compared = subject.evidence.tables, subject.compared
    several = len(tables) > 1
    names = list(dict.fromkeys(row.cell.name for part in tables for row in part.rows))
    styles = {name: place for place, name in enumerate(names)}
    kind = "Comparison" if compared else "Run" if sum(map(_runs_of, tables)) == 1 else "Runs side by side"
    parts: list[Markup] = []
    if compared:
        parts.append(verdict_part(subject.evidence))
        forest = gains_forest(tables)
        if forest is not None:
            parts.append(album.show(forest))
    varied = ablations(tables, styles, compared=compared)
    if varied:
        parts += [tag("h3", "Against what was varied"), _grid(album, varied)]
    if several:
        parts.append(tag("div", class_="choice"))
    for number, part in enumerate(tables):
        unfinished = subject.unfinished.get(part.name, ())
        album.place = part.name if several else ""
        inside = _setting(part, styles, unfinished, album, problems, compared=compared, level=4 if several else 3)
        if several:
            heading = tag("h3", part.name)
            inside = tag("section", heading, inside, id=f"{identity}-{number}", data_setting=part.name)
        parts.append(inside)
    album.place = ""
    parts += [
        tag("h3", "Configurations side by side"),
        configs_part(tables),
        tag("h3", "Provenance"),
        provenance_part(tables),
    ]
    return _Part(kind, subject.title, "What was shown" if compared else "Results", joined(parts))


def _runs_of(part: Table) -> int:
    return sum(len(runs) for runs in part.runs.values())


def _setting(
    part: Table,
    styles: Mapping[str, int],
    unfinished: Sequence[str],
    album: Album,
    problems: list[str],
    *,
    compared: bool,
    level: int,
) -> Markup:
    def heading(text: str) -> Markup:
        return tag(f"h{level}", text)

    curves = _read_curves(part, styles, problems)
    teacher = next((run.teacher_accuracy for runs in part.runs.values() for run in runs if run.teacher_accuracy), None)
    likeness = likeness_table(part)
    recorded = diagnostics(curves)
    analysed = read_analyses(part, problems)
    parts: list[Markup] = [
        heading("Accuracy and cost"),
        accuracy_table(part, compared=compared),
        tag("p", how_to_read(part.rows, compared=compared), class_="note"),
        ends_part(part, unfinished),
        heading("Losses"),
        losses_table(part, compared=compared),
        _grid(album, trade_offs(curves)),
    ]
    if likeness is not None:
        parts += [heading("Agreement and calibration"), likeness]
    parts += [heading("Over the epochs"), _grid(album, over_epochs(curves, teacher))]
    if recorded:
        parts += [heading("What the streams did"), _grid(album, recorded)]
    if analysed:
        parts += [heading("Analysis of the finished students"), analysis_part(part, analysed, styles, album)]
    return joined(parts)


def _grid(album: Album, figures: Sequence[Figure]) -> Markup:
    return tag("div", *(album.show(figure) for figure in figures), class_="figures") if figures else Markup("")


def _read_curves(part: Table, styles: Mapping[str, int], problems: list[str]) -> list[Curves]:
    curves: list[Curves] = []
    for row in part.rows:
        runs = part.runs.get(row.cell.name, ())
        evaluations: list[Sequence[EvalPoint]] = []
        recorded: list[Sequence[DiagnosticPoint]] = []
        diverged: dict[str, Sequence[EvalPoint]] = {}
        for run in runs:
            points, found = _read_metrics(run, problems)
            if run.diverged:
                diverged[f"{row.cell.name} seed {run.seed} (diverged)"] = points
            else:
                evaluations.append(points)
                recorded.append(found)
        curves.append(Curves(row.cell, styles[row.cell.name], evaluations, recorded, diverged))
    return curves


def _read_metrics(run: Run, problems: list[str]) -> tuple[Sequence[EvalPoint], Sequence[DiagnosticPoint]]:
    try:
        return read_evaluations(run.path), read_diagnostics(run.path)
    except (ValueError, TypeError, KeyError, OSError) as error:
        problems.append(f"{run.path}: {error}" if str(run.path) not in str(error) else str(error))
        return [], []
