r"""A comparison as a LaTeX table: a line a cell, in a plain `tabular`.

The rules are booktabs' \toprule, \midrule and \bottomrule, which the text defines as \hline where that package is not
loaded, so that it compiles in either case. Percent and percentage points; ± is the half width of the 95 % interval; an
asterisk marks a gain whose corrected p is below 0.05.
"""

from __future__ import annotations

from collections.abc import Sequence

from dotkd.evidence.comparison import Row
from dotkd.evidence.settings import Evidence
from dotkd.evidence.statistics import Difference, Estimate

_DASH = "--"
_ESCAPED = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}
_RULES = ("toprule", "midrule", "bottomrule")
_HEADS = ("cell", "test acc. (\\%)", "last", "best of test", "$n$", "gain", "$g$", "$p$", "$p_{\\mathrm{Holm}}$", "s")


def escaped(text: str) -> str:
    """`text` as LaTeX prints it."""
    return "".join(_ESCAPED.get(sign, sign) for sign in text)


def as_latex(evidence: Evidence) -> str:
    """The table with everything it needs to be read by `\\input`."""
    width = len(_HEADS)
    lines = [
        f"% {' '.join(evidence.name.split())}: mean and 95 % half width over n seeds; gain: paired difference, points,",
        f"% *: shown; g: Hedges' g of the pairs; Holm over {evidence.tests} tests of accuracy; s: seconds a run",
        *(rf"\providecommand{{\{rule}}}{{\hline}}" for rule in _RULES),
        rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}",
        r"\toprule",
        _line(_HEADS),
    ]
    for table in evidence.tables:
        lines.append(r"\midrule")
        if len(evidence.tables) > 1:
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{{escaped(table.name)}}} \\")
        lines += [_line(_cells(row)) for row in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cells(row: Row) -> list[str]:
    gain, counted = row.gain, row.val_selected
    diverged = f" ({counted.diverged} diverged)" if counted.diverged else ""
    return [
        escaped(row.cell.name),
        _percent(counted),
        _percent(row.last),
        _percent(row.best_of_test),
        f"{counted.n}{diverged}",
        _gain(gain),
        _DASH if gain.effect_size is None else f"${gain.effect_size:+.2f}$",
        _p(gain.p),
        _p(gain.p_corrected),
        _DASH if row.seconds.mean is None else f"{row.seconds.mean:.1f}",
    ]


def _percent(value: Estimate) -> str:
    if value.mean is None:
        return _DASH
    return f"${100 * value.mean:.2f}{_half_width(value.half_width)}$"


def _gain(change: Difference) -> str:
    if change.mean is None:
        return _DASH
    return f"${100 * change.mean:+.2f}{_half_width(change.half_width)}{'^{*}' if change.shown else ''}$"


def _half_width(value: float | None) -> str:
    return "" if value is None else rf" \pm {100 * value:.2f}"


def _p(value: float | None) -> str:
    if value is None:
        return _DASH
    return "$<0.001$" if value < 0.001 else f"${value:.3f}$"
