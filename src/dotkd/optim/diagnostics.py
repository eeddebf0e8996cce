"""What the streams do while they train: norms, alignment, signal against noise, and who moves the parameters.

Of stream s, with gradient g, buffer v and momentum m, over all parameters, after a step:

    grad_norm      |g|
    buffer_norm    |v|, of AdamW the first moment; with m = 0 what would be in it
    cosine         <g_s, g_s'> / (|g_s| |g_s'|), for each pair of streams
    update_share   <u_s, u> / |u|^2, where u = sum_s u_s is what the step took from the parameters and u_s the part of
                   stream s (lr, ``normalize``, ``nesterov`` and weight decay as applied; of AdamW without its decoupled
                   decay). The shares sum to 1, and one is negative where the stream is carried along against itself.
    snr            |E g|^2 / tr Var g

**Signal and noise from one buffer.** Let a buffer be the sum of the gradients g_i of steps 1 .. t with weights w_i. A
gradient enters with weight e (1; with dampening 1 less that; of AdamW 1 - beta), the first with f (1; of AdamW as the
others), so that w_1 = f m^(t-1) and w_i = e m^(t-i) for i > 1. Take the g_i as independent, with one mean G and one
trace V of their covariance, over the about 1 / (1 - m) steps that a buffer remembers. With

    A = sum_i w_i = f m^(t-1) + e (1 - m^(t-1)) / (1 - m)
    r = sum_i w_i^2 / A^2 = (f^2 m^(2t-2) + e^2 (1 - m^(2t-2)) / (1 - m^2)) / A^2
                                                  (SGD and AdamW: (1 - m) / (1 + m)  (1 + m^t) / (1 - m^t))

the average b = v / A has E b = G and, because the cross terms of independent steps vanish, E |b|^2 = |G|^2 + r V; also
E |g|^2 = |G|^2 + V. These are two equations in expectations, so that it does not matter that g is itself a part of b:

    |G|^2 = (|b|^2 - r |g|^2) / (1 - r),        V = (|g|^2 - |b|^2) / (1 - r)

both without bias, their ratio nearly so. Each is one draw: over several records take the mean of numerators and
denominators, which follow from grad_norm and buffer_norm. A negative |G|^2 is 0; snr is None where V is not positive,
in the first step and without momentum. SGD's weight decay lambda enters a buffer like a gradient: A lambda theta is
taken out of it first, as if theta had been the same over that time (of AdamW there is nothing to take out). The learning
rate plays no part. t is not stored by SGD: the reader says it. A buffer that was loaded from elsewhere, or that waited
because its stream did not reach a parameter, is younger or older than t: this matters while m^t does.

All follow from one small matrix, the products of all pairs of gradients, buffers and parameters, which is formed piece
by piece on the device (5 products a number with two streams, and 5 MiB). Nothing waits until it is read.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dotkd.optim.dot_adamw import StreamAdamW
from dotkd.optim.shards import local, mesh_of, reduce_over
from dotkd.optim.stream_sgd import StreamSGD

_PIECE = 1 << 18  # numbers of each row at a time: what float32 sums well, and little memory

_Row = tuple[str, str]  # "gradient", "buffer" or "applied", and the stream; or "weights", ""
_Vector = Mapping[_Row, float]  # a sum of rows
_WEIGHTS: _Row = ("weights", "")


class _Rule(NamedTuple):
    """How the buffer of one stream came about; ``applied``: what the step takes of it over lr, None if not known."""

    momentum: float
    first: float
    later: float
    decay: float
    buffer: _Vector
    applied: _Vector | None


class _Cell(NamedTuple):
    """Parameters with the same rules, and the rows that their products are of."""

    rows: tuple[_Row, ...]
    rules: Mapping[str, _Rule]
    lr: float | Tensor


class Measurement:
    """What :func:`measure` found, still on the device."""

    def __init__(self, streams: Sequence[str], cells: Sequence[_Cell], values: Tensor) -> None:
        self._streams, self._cells, self._values = streams, cells, values

    def read(self, steps: int | None = None) -> dict[str, dict[str, float | None]] | None:
        """The quantities by name, then by stream, or "one,other" for cosines. Waits for the device.

        Where gradients or buffers were not known, what follows from them is an empty dict; snr is then None. None
        instead of everything where the step was skipped, or the numbers left the range of float32.

        Args:
            steps: how many were taken (skipped ones do not count) up to the one measured; None: so many that the
                beginning is forgotten.

        Raises:
            ValueError: ``steps`` < 1.
        """
        if steps is not None and steps < 1:
            raise ValueError(f"expected `steps` >= 1, got {steps}")
        skipped, *values = self._values.tolist()
        if skipped or not all(map(math.isfinite, values)):
            return None
        products: list[_Products] = []
        for cell in self._cells:
            count = len(cell.rows) ** 2
            products.append(_Products(cell.rows, values[:count]))
            values = values[count:]
        cells = list(zip(self._cells, products, strict=True))
        return {
            "grad_norm": self._grad_norm(cells),
            "buffer_norm": self._buffer_norm(cells),
            "update_share": self._update_share(cells),
            "snr": {name: _snr(name, cells, steps) for name in self._streams},
            "cosine": self._cosine(cells),
        }

    def _grad_norm(self, cells: _Cells) -> dict[str, float | None]:
        squares = {name: _total(cells, ("gradient", name), ("gradient", name)) for name in self._streams}
        return {name: math.sqrt(square) for name, square in squares.items() if square is not None}

    def _cosine(self, cells: _Cells) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        norms = self._grad_norm(cells)
        for one, other in combinations(norms, 2):
            size = (norms[one] or 0.0) * (norms[other] or 0.0)
            product = _total(cells, ("gradient", one), ("gradient", other)) or 0.0
            found[f"{one},{other}"] = max(-1.0, min(1.0, product / size)) if size else None
        return found

    def _buffer_norm(self, cells: _Cells) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for name in self._streams:
            held = [(cell.rules[name].buffer, of) for cell, of in cells if name in cell.rules]
            if held and all(buffer for buffer, _ in held):
                found[name] = math.sqrt(max(0.0, sum(of(buffer, buffer) for buffer, of in held)))
        return found

    def _update_share(self, cells: _Cells) -> dict[str, float | None]:
        along = dict.fromkeys(self._streams, 0.0)
        for cell, of in cells:
            parts = {name: rule.applied for name, rule in cell.rules.items()}
            for name, part in parts.items():
                for other in parts.values():
                    if part is None or other is None:
                        return {}
                    along[name] += float(cell.lr) ** 2 * of(part, other)
        total = sum(along.values())
        return {name: value / total for name, value in along.items()} if total > 0 else {}


class _Products:
    """<a, b> for sums a and b of the rows of one cell."""

    def __init__(self, rows: Sequence[_Row], values: Sequence[float]) -> None:
        pairs = ((one, other) for one in rows for other in rows)
        self._of = dict(zip(pairs, values, strict=True))

    def __call__(self, one: _Vector, other: _Vector) -> float:
        return sum(a * b * self._of[x, y] for x, a in one.items() for y, b in other.items())


_Cells = Sequence[tuple[_Cell, _Products]]


@torch.no_grad()
def measure(optimizer: StreamSGD | StreamAdamW) -> Measurement:
    """Measure the last step. Call it after ``step()`` and before ``zero_grad()``; it changes nothing.

    Only then do gradients and buffers belong together, unscaled and clipped as they entered the step. After
    ``zero_grad()``, and where the gradients are never kept (``gradients_in_buffers``), the buffers alone are measured.
    In several processes all of them call it, and what differs between them is left out: with ``reduce="momenta"`` the
    gradients, and the buffers too unless ``average_buffers()`` came first.

    Raises:
        TypeError: not one of this library's optimizers.
        RuntimeError: no step was taken yet.
    """
    if not isinstance(optimizer, (StreamSGD, StreamAdamW)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"expected a StreamSGD or StreamAdamW, got {type(optimizer).__name__}")
    if optimizer._skips is None:
        raise RuntimeError("measure() before the first step(): there are no buffers yet")
    products: dict[Any, list[Tensor]] = defaultdict(list)
    cells: dict[Any, _Cell] = {}
    for index, group in enumerate(optimizer.param_groups):
        lr = group["lr"].detach().clone() if isinstance(group["lr"], Tensor) else group["lr"]
        for p in group["params"]:
            rules, rows = _rules(optimizer, group, p)
            if rows:
                key = index, p.device, tuple(rules), tuple(rows)
                cells.setdefault(key, _Cell(tuple(rows), rules, lr))
                products[key] += _products(list(rows.values()))
    home = optimizer._skips.device
    wide = torch.float32 if home.type == "mps" else torch.float64
    sums = [torch.stack(found).sum(0, dtype=wide).flatten().to(home) for found in products.values()]
    values = reduce_over(mesh_of(optimizer._params()), torch.cat(sums)) if sums else torch.zeros(0, device=home)
    values = torch.cat([optimizer.last_step_skipped.to(wide).reshape(1), values])
    return Measurement(optimizer.streams, list(cells.values()), values)


def _products(rows: Sequence[Tensor]) -> Iterator[Tensor]:
    """The products of all pairs of tensors with equally many elements, piece by piece: (rows, rows) each."""
    wide = torch.promote_types(rows[0].dtype, torch.float32)
    for pieces in zip(*(row.reshape(-1).split(_PIECE) for row in rows), strict=True):
        piece = torch.stack(pieces).to(wide)
        with torch.autocast(piece.device.type, enabled=False):
            yield piece @ piece.T


def _rules(
    optimizer: StreamSGD | StreamAdamW, group: Mapping[str, Any], p: Tensor
) -> tuple[dict[str, _Rule], dict[_Row, Tensor]]:
    """For each stream that reaches a parameter its rule, and the rows that are known."""
    ranks, gradients = optimizer._ranks, optimizer._gradients
    several = ranks is not None and ranks.world > 1
    kept = gradients.of and not (several and gradients.state != "averaged")
    sgd = isinstance(optimizer, StreamSGD)
    kind = "momentum" if sgd else "moment"
    state: Mapping[str, Any] = optimizer.state.get(p, {})
    reached = gradients.of.get(p, {}) if kept else [n for n in optimizer.streams if f"{kind}_{n}" in state]
    alone = len(reached) == 1 and len(optimizer.streams) > 1
    usual = group["momentum"] if sgd else group["betas"][0]
    momenta = optimizer._momenta(group) if sgd else optimizer._beta1s(group)
    momenta = {name: usual if alone else momenta[name] for name in reached}
    rows = {("gradient", name): local(gradients.of[p][name]) for name in reached} if kept else {}
    if not (several and ranks is not None and ranks.apart):
        held = [n for n in reached if f"{kind}_{n}" in state and (momenta[n] or not sgd or optimizer._in_buffers)]
        rows |= {("buffer", name): local(state[f"{kind}_{name}"]) for name in held}
    if sgd:
        decaying = group["decay_stream"] if group["decay_stream"] in reached else next(iter(reached), None)
        decay = {name: group["weight_decay"] if name == decaying else 0.0 for name in reached}
        if any(decay.values()):
            rows[_WEIGHTS] = local(p)
        return {name: _sgd_rule(group, name, momenta[name], decay[name], rows) for name in reached}, rows
    rules: dict[str, _Rule] = {}
    for name in reached:
        enters, buffer, applied = 1 - momenta[name], ("buffer", name), ("applied", name)
        if buffer in rows:
            scale = (local(state["square"]) / state["square_weight"]).sqrt_().add_(group["eps"])
            rows[applied] = rows[buffer] / scale.mul_(state[f"moment_{name}_weight"])
        known = buffer in rows
        rules[name] = _Rule(
            momenta[name], enters, enters, 0.0, {buffer: 1.0} if known else {}, {applied: 1.0} if known else None
        )
    return rules, rows


def _sgd_rule(group: Mapping[str, Any], name: str, momentum: float, decay: float, rows: Mapping[_Row, Tensor]) -> _Rule:
    share = (1 - momentum) / (1 - group["momentum"]) if group["normalize"] else 1.0
    entered: dict[_Row, float] = {("gradient", name): -1.0 if group["maximize"] else 1.0}
    if decay:
        entered[_WEIGHTS] = decay
    if ("gradient", name) not in rows:
        entered = {}
    buffer: dict[_Row, float] = {("buffer", name): 1.0} if ("buffer", name) in rows else {}
    if not momentum and not buffer:
        buffer = entered  # which is all that would be in it
    applied = {row: share * factor for row, factor in buffer.items()}
    if group["nesterov"] and momentum:
        ahead = {row: momentum * factor for row, factor in applied.items()}
        applied = {**ahead, **{row: share * factor for row, factor in entered.items()}} if ahead and entered else {}
    return _Rule(momentum, 1.0, 1 - group["dampening"], decay, buffer, applied or None)


def _total(cells: _Cells, one: _Row, other: _Row) -> float | None:
    """<one, other> over all parameters that have both; None where there is no such row at all."""
    if not any(one in cell.rows for cell, _ in cells):
        return None
    return sum(of({one: 1.0}, {other: 1.0}) for cell, of in cells if one in cell.rows and other in cell.rows)


def _snr(name: str, cells: _Cells, steps: int | None) -> float | None:
    signal = noise = 0.0
    for cell, of in cells:
        if name not in cell.rules:
            continue
        rule = cell.rules[name]
        if not rule.momentum or steps == 1 or not {("gradient", name), ("buffer", name)} <= set(cell.rows):
            return None
        left = 0.0 if steps is None else rule.momentum ** (steps - 1)  # m^(t-1)
        total = rule.first * left + rule.later * (1 - left) / (1 - rule.momentum)
        squares = rule.first**2 * left**2 + rule.later**2 * (1 - left**2) / (1 - rule.momentum**2)
        r = squares / total**2
        average = {row: factor / total for row, factor in rule.buffer.items()}
        if rule.decay:
            average[_WEIGHTS] = -rule.decay
        now, mean = of({("gradient", name): 1.0}, {("gradient", name): 1.0}), of(average, average)
        signal += (mean - r * now) / (1 - r)
        noise += (now - mean) / (1 - r)
    return max(0.0, signal) / noise if noise > 0 else None
