"""A tuning folder: its protocol, so that a reader can judge how fair it was; the best of each trainer; all trials."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dotkd.evidence.statistics import Difference, Estimate
from dotkd.report.figures import Album, Axis, Forest, Interval, Lines, Series
from dotkd.report.markup import ABSENT, Content, Markup, Number, folded, joined, table, tag
from dotkd.report.tables import gain_bar
from dotkd.report.wording import count, digits, percent, points, probability

_WIDE = 10.0

Trials = Sequence[Mapping[str, Any]]


def tuning_part(contents: Mapping[str, Any], album: Album) -> Markup:
    """Raises KeyError, TypeError or ValueError where the contents are not those of a `tune.json`."""
    trainers: Mapping[str, Mapping[str, Any]] = contents["trainers"]
    trials: dict[str, Trials] = {name: found["trials"] for name, found in trainers.items()}
    styles = {name: place for place, name in enumerate(trainers)}
    return joined(
        [
            *_final(contents.get("final"), album),
            tag("h3", "What the trials chose"),
            _best(trainers, trials),
            tag("h3", "Protocol"),
            _protocol(contents["protocol"]),
            tag("h3", "Trials"),
            tag("div", *(album.show(figure) for figure in _scatters(trials, styles)), class_="figures"),
            folded(f"All {sum(map(len, trials.values()))} trials", _all_trials(trials)),
        ]
    )


def _best(trainers: Mapping[str, Mapping[str, Any]], trials: Mapping[str, Trials]) -> Markup:
    params = _params(trials)
    states = list(dict.fromkeys(str(trial["state"]) for found in trials.values() for trial in found))
    rows: list[list[Content]] = []
    for name, found in trainers.items():
        best: Mapping[str, Any] = found.get("best") or {}
        chosen: Mapping[str, Any] = best.get("params") or {}
        ended = [str(trial["state"]) for trial in trials[name]]
        rows.append(
            [
                name,
                _percent(best.get("val_accuracy")),
                *(_value(chosen.get(param)) for param in params),
                *(count(ended.count(state)) for state in states),
            ]
        )
    headers = ["trainer", "best validation accuracy %", *params, *(f"trials {state}" for state in states)]
    return table("The best of each trainer, chosen on the validation split", headers, rows)


def _final(final: Mapping[str, Any] | None, album: Album) -> list[Markup]:
    """The final test, on seeds that no trial had: the one result of a tuning."""
    if not final:
        words = "No final test was made. Accuracies that trials were chosen by are too high to be results."
        return [tag("p", words, class_="note")]
    against, seeds = str(final["against"]), final["seeds"]
    rows: list[list[Content]] = []
    bars: list[Interval] = []
    for name, found in final["trainers"].items():
        last, selected = Estimate(**found["last"]), Estimate(**found["val_selected"])
        line: list[Content] = [name, percent(last), percent(selected)]
        for quantity in ("gain", "gain_val_selected"):
            gain = Difference(**found[quantity]) if found.get(quantity) else None
            line += [ABSENT, ABSENT] if gain is None else [points(gain), probability(gain.p_corrected)]
            if gain is not None and gain.mean is not None and quantity == "gain":
                bars.append(gain_bar(f"{name} \N{MINUS SIGN} {against}", gain))
        rows.append([*line, count(last.n), count(last.diverged)])
    headers = ["trainer", "last epoch %", "val-selected %", f"gain on {against}, last epoch", "p corrected"]
    headers += [f"gain on {against}, val-selected", "p corrected", "n", "diverged"]
    caption = f"Final test: the best of each trainer on {len(seeds)} fresh seeds, test split; p by pairs, after Holm"
    parts = [tag("h3", "Final test"), table(caption, headers, rows)]
    if bars:
        what = "Difference in percentage points after the last epoch, mean and 95 % interval over paired seeds."
        axis = Axis("difference, percentage points", "difference")
        parts.insert(1, album.show(Forest("Gains in the final test", what, axis, bars)))
    return parts


def _protocol(protocol: Mapping[str, Any]) -> Markup:
    """Its sentences where it has some, with the numbers folded away."""
    rows: list[list[Content]] = [[str(key), _words(value)] for key, value in protocol.items() if key != "text"]
    numbers = table("How the search was done", ["what", "how"], rows, sortable=False)
    text = protocol.get("text")
    if not isinstance(text, list):
        return numbers
    return joined([tag("ul", *(tag("li", str(line)) for line in text)), folded("The protocol in numbers", numbers)])


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_words(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _scatters(trials: Mapping[str, Trials], styles: Mapping[str, int]) -> list[Lines]:
    """Validation accuracy against each number that was searched."""
    figures: list[Lines] = []
    for param in _params(trials):
        series: list[Series] = []
        for name, found in trials.items():
            points = [
                (
                    float(trial["params"][param]),
                    100 * float(trial["val_accuracy"]),
                    f"trial {trial['number']}, {trial['state']}",
                )
                for trial in found
                if _is_number(trial["params"].get(param)) and _is_number(trial.get("val_accuracy"))
            ]
            if points:
                x, y, notes = zip(*points, strict=True)
                series.append(Series(name, styles[name], x, y, joined=False, notes=notes))
        if not series:
            continue
        values = [value for one in series for value in one.x if value is not None]
        positive = min(values) > 0
        wide = positive and max(values) / min(values) > _WIDE
        figures.append(
            Lines(
                f"Validation accuracy against {param}",
                "One mark a trial; those that were pruned stand where they were stopped. The other values of a trial "
                "vary as well.",
                Axis(param, param, log=wide, switchable=positive),
                Axis("validation accuracy, %", "accuracy"),
                series,
            )
        )
    return figures


def _all_trials(trials: Mapping[str, Trials]) -> Markup:
    params = _params(trials)
    rows: list[list[Content]] = [
        [
            f"{name} {trial['number']}",
            str(trial["state"]),
            _percent(trial.get("val_accuracy")),
            _value(trial.get("epochs")),
            *(_value(trial["params"].get(param)) for param in params),
        ]
        for name, found in trials.items()
        for trial in found
    ]
    return table("All trials", ["trial", "state", "validation accuracy %", "epochs", *params], rows)


def _params(trials: Mapping[str, Trials]) -> list[str]:
    return list(dict.fromkeys(param for found in trials.values() for trial in found for param in trial["params"]))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _value(value: Any) -> Content:
    if value is None:
        return Number(ABSENT, None)
    if isinstance(value, float):
        return Number(digits(value), value)
    return Number(str(value), value) if _is_number(value) else _words(value)


def _percent(value: Any) -> Number:
    return Number(f"{100 * value:.2f}", float(value)) if _is_number(value) else Number(ABSENT, None)
