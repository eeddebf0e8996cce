"""Numbers as the page writes them: accuracies in %, differences in points, a dash for what does not exist."""

from __future__ import annotations

import math
from typing import Literal

from dotkd.evidence.statistics import Difference, Estimate
from dotkd.report.markup import ABSENT, Markup, Number, joined, tag

Shown = Literal["gain", "loss", "none"]

# A gain and a loss have the same weight on the page: one sign each, of one size.
_SIGNS: dict[Shown, tuple[str, str]] = {"gain": ("▲", "better"), "loss": ("▼", "worse"), "none": ("○", "not shown")}


def shown(change: Difference, *, lower_is_better: bool = False) -> Shown:
    """What a test showed: a gain, a loss, or neither."""
    if not change.shown or not change.mean:
        return "none"
    return "gain" if (change.mean > 0) != lower_is_better else "loss"


def sign(found: Shown) -> Markup:
    """The sign of an outcome with its word."""
    mark, word = _SIGNS[found]
    return tag("span", tag("span", mark, aria_hidden="true"), f" {word}", class_=f"outcome {found}")


def percent(value: Estimate) -> Number:
    """A fraction in % with its 95 % half width."""
    if value.mean is None:
        return Number(ABSENT, None)
    return Number(_with_width(f"{100 * value.mean:.2f}", _width(value.half_width, 100)), value.mean)


def amount(value: Estimate) -> Number:
    """A loss, a time, an eigenvalue: three significant digits and the half width."""
    if value.mean is None:
        return Number(ABSENT, None)
    return Number(_with_width(digits(value.mean), _beside(value.mean, value.half_width)), value.mean)


def points(change: Difference) -> Number:
    """A difference of accuracies in percentage points, and what its test showed."""
    return _judged(points_alone(change), change, lower_is_better=False)


def points_alone(change: Difference) -> str:
    """The same without what its test showed."""
    return (
        "" if change.mean is None else _with_width(minus(f"{100 * change.mean:+.2f}"), _width(change.half_width, 100))
    )


def loss_change(change: Difference) -> Number:
    """A difference of losses, and what its test showed; lower is better."""
    return _judged(change_alone(change), change, lower_is_better=True)


def change_alone(change: Difference) -> str:
    """A difference of amounts without what its test showed."""
    if change.mean is None:
        return ""
    return _with_width(("+" if change.mean > 0 else "") + digits(change.mean), _beside(change.mean, change.half_width))


def _judged(text: str, change: Difference, *, lower_is_better: bool) -> Number:
    if change.mean is None:
        return Number(ABSENT, None)
    return Number(joined([text, " ", sign(shown(change, lower_is_better=lower_is_better))]), change.mean)


def probability(p: float | None) -> Number:
    """A p-value."""
    if p is None:
        return Number(ABSENT, None)
    return Number("< 0.001" if p < 0.001 else f"{p:.3f}", p)


def plain(value: float | None) -> Number:
    """A number by itself."""
    return Number(ABSENT if value is None else digits(value), value)


def count(value: int) -> Number:
    """A whole number."""
    return Number(str(value), value)


def digits(value: float) -> str:
    """Three significant digits; no exponent for what a person would write out."""
    if value == 0 or 1e-4 <= abs(value) < 1e5:
        return minus(f"{value:.{_decimals(value)}f}")
    return minus(f"{value:.1e}")


def _decimals(value: float) -> int:
    return 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))


def _beside(mean: float, half_width: float | None) -> str | None:
    """A half width with as many decimals as its mean has."""
    if half_width is None:
        return None
    if 1e-4 <= abs(mean) < 1e5 and half_width >= 0.5 * 10.0 ** -_decimals(mean):
        return f"{half_width:.{_decimals(mean)}f}"
    return digits(half_width)


def minus(text: str) -> str:
    """A true minus sign in place of the hyphen."""
    return text.replace("-", "\N{MINUS SIGN}")


def _width(half_width: float | None, scale: int) -> str | None:
    return None if half_width is None else f"{scale * half_width:.2f}"


def _with_width(mean: str, width: str | None) -> str:
    return mean if width is None else f"{mean} ± {width}"
