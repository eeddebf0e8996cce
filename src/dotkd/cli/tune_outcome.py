"""What a tuning leaves behind: tune.json, a configuration for each trainer's best, tables, and the next command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.console import Console

from dotkd.cli import console as consoles
from dotkd.cli.console import results, say
from dotkd.evidence.statistics import Difference, Estimate
from dotkd.report import write_report
from dotkd.tuning import final
from dotkd.tuning.protocol import Protocol, as_json
from dotkd.tuning.space import at_edge
from dotkd.tuning.study import Record, best_of, load_optuna

DASH = "-"


def publish(
    protocol: Protocol,
    records: Mapping[str, list[Record]],
    samples: int,
    *,
    failed: Collection[str],
    seeds: Sequence[int],
    command: str,
) -> None:
    """Writes the files into `protocol.out` and prints the tables.

    samples: of the validation split. failed: names of trials that failed now, "TRAINER trial N". seeds: of the final
    test. command: what continues the tuning.
    """
    from dotkd.atomic_file import write_atomically

    best = {name: found for name in records if (found := best_of(records[name]))}
    told_by = as_json(protocol, samples)
    told_by["sampler"]["library"] = f"optuna {load_optuna().__version__}"
    table: dict[str, Any] = {"recipe": protocol.name, "protocol": told_by, "trainers": {}}
    for name, made in records.items():
        chosen = best.get(name)
        told = None if chosen is None else {"params": chosen.params, "val_accuracy": chosen.val_accuracy}
        trials = [{**r._asdict(), "state": _state(name, r, failed)} for r in made]
        table["trainers"][name] = {"best": told, "trials": trials}
    runs = final.read_finals(protocol.out, list(best), seeds)
    rows = final.make_rows(runs) if any(runs.values()) else []
    if rows:
        table["final"] = final.as_json(rows, runs, seeds)
    written = [protocol.out / "tune.json"]
    write_atomically(written[0], json.dumps(table, indent=1, allow_nan=False) + "\n")
    for name, record in best.items():
        written.append(protocol.out / f"best-{name}.yaml")
        write_atomically(written[-1], protocol.configured(name, record.params).to_yaml())
    written.append(write_report([protocol.out], protocol.out / "report.html").path)
    out = results()
    _show_trials(out, protocol, records, best)
    if rows:
        _show_final(out, rows, seeds)
    else:
        say(
            out,
            "\nno final test yet: the accuracies above are those that the trials were chosen by, too high as results",
        )
    say(out, "\nwritten: " + ", ".join(str(path) for path in written))
    if not rows:
        say(out, f"next: {command} --final-seeds 8")
    elif best:
        ahead = max(best, key=lambda name: best[name].val_accuracy or 0.0)
        say(out, f"next: dotkd train {shlex.quote(str(protocol.out / f'best-{ahead}.yaml'))} --out runs/tuned")


def _state(trainer: str, record: Record, failed: Collection[str]) -> str:
    # One that is open although all has ended can only have failed.
    return "failed" if record.state == "open" or f"{trainer} trial {record.number}" in failed else record.state


def _show_trials(
    console: Console, protocol: Protocol, records: Mapping[str, list[Record]], best: Mapping[str, Record]
) -> None:
    keys = list(dict.fromkeys(key for space in protocol.spaces.values() for key in space))
    ended = ("complete", "pruned", "diverged", "epochs")
    table = consoles.table(console, "trainer", "val acc. %", "as given", "trial", *keys, *ended)
    remarks: list[str] = []
    for name, made in records.items():
        record = best.get(name)
        given = next((r.val_accuracy for r in made if r.number == 0 and r.state == "complete"), None)
        counts = [sum(r.state == state for r in made) for state in ended[:3]]
        params = {} if record is None else record.params
        table.add_row(
            name,
            DASH if record is None else _percent(record.val_accuracy),
            _percent(given),
            DASH if record is None else str(record.number),
            *(_number(params[key]) if key in params else DASH for key in keys),
            *(str(count) for count in counts),
            str(sum(r.epochs for r in made)),
        )
        if record is not None:
            remarks += [
                f"{key} of {name} ends at the edge of {protocol.spaces[name][key]}: --space {key}=... in a new folder "
                "could find better"
                for key in at_edge(protocol.configs[name], protocol.spaces[name], record.params)
            ]
    say(console, "\nbest of each trainer on the validation split (as given: trial 0)")
    console.print(table)
    for remark in remarks:
        say(console, remark)


def _show_final(console: Console, rows: Sequence[final.Row], seeds: Sequence[int]) -> None:
    against = rows[0].trainer
    table = consoles.table(
        console, "trainer", "last epoch %", "val-selected %", "n", f"gain on {against}", "p", "p Holm", "g"
    )
    for row in rows:
        n = f"{row.last.n}, {row.last.diverged} diverged" if row.last.diverged else str(row.last.n)
        gain = row.gain
        told = [DASH] * 4
        if gain is not None:
            effect = DASH if gain.effect_size is None else f"{gain.effect_size:+.2f}"
            told = [_points(gain), _p(gain.p), _p(gain.p_corrected), effect]
        table.add_row(row.trainer, _mean(row.last), _mean(row.val_selected), n, *told)
    say(console, f"\nfinal test: each at its own best, test split, fresh seeds {seeds[0]} to {seeds[-1]}")
    console.print(table)
    say(
        console,
        "mean ± 95 % t-interval over n seeds; gain and p: paired t-test of the last epoch's accuracy on equal seeds; p "
        "Holm: corrected for the number of trainers; g: Hedges' effect size; what another search would have chosen is "
        "not in the intervals.",
    )


def _percent(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.2f}"


def _number(value: float | None) -> str:
    return "null" if value is None else f"{value:.4g}"


def _mean(value: Estimate) -> str:
    if value.mean is None:
        return DASH
    return f"{100 * value.mean:.2f} ± {DASH if value.half_width is None else f'{100 * value.half_width:.2f}'}"


def _points(value: Difference) -> str:
    if value.mean is None:
        return DASH
    return f"{100 * value.mean:+.2f} ± {DASH if value.half_width is None else f'{100 * value.half_width:.2f}'}"


def _p(value: float | None) -> str:
    return DASH if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"
