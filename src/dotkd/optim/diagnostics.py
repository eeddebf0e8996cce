"""What the streams do while they train: norms, alignment, signal against noise, and who moves the parameters.

Of stream s, with gradient g, buffer v and momentum m, over all parameters, after a step:

    grad_norm      |g|
    buffer_norm    |v|, of AdamW the first moment; with m = 0 what would be in it
    cosine         <g_s, g_s'> / (|g_s| |g_s'|), for each pair of streams
    update_share   <u_s, u> / |u|^2, where u = sum_s u_s is what the step took from the parameters and u_s the part of
                   stream s (lr, ``normalize``, ``nesterov`` and weight decay as applied; of AdamW without its decoupled
                   decay). The shares sum to 1, and one is negative where the stream is carried along against itself.
                   Where decay is taken from no buffer (``nesterov``, m = 0) it is that of theta after the step.
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
denominators, which follow from grad_norm and buffer_norm. A negative |G|^2 is 0; snr is None where V is not positive
beyond rounding, in the first step and without momentum. SGD's weight decay lambda enters a buffer like a gradient:
A lambda theta is taken out of it first, as if theta had been the same over that time; of AdamW there is nothing to take
out. The learning rate plays no part. SGD does not store t: the reader says it. A buffer that was loaded from elsewhere,
or that waited because its stream did not reach a parameter, is of another age: this matters while m^t does.

All follow from one small matrix, the products of all pairs of gradients, buffers and parameters, which is formed on the
device, piece by piece so that it takes a few MiB. Nothing waits for the device until that matrix is read.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dotkd.optim.buffer_rules import WEIGHTS, Row, Rule, Vector, buffer, gradient, rows_of, rules_of
from dotkd.optim.dot_adamw import StreamAdamW
from dotkd.optim.shards import mesh_of, reduce_over
from dotkd.optim.stream_sgd import StreamSGD
from dotkd.optim.streams import StreamOptimizer

_PIECE = 1 << 18  # numbers of each row at a time: what float32 sums well, and little memory
_ROUNDING = 1e-6  # what the sums are good for

Found = dict[str, dict[str, "float | None"]]


class _Cell(NamedTuple):
    """Parameters with the same rules, and the rows that their products are of."""

    rows: tuple[Row, ...]
    rules: Mapping[str, Rule]
    lr: float | Tensor


class _Products:
    """The products <a, b> of sums a and b of rows, over the parameters of one cell."""

    def __init__(self, cell: _Cell, values: Sequence[float]) -> None:
        self.rules, self.lr, self.rows = cell.rules, float(cell.lr), cell.rows
        self._of = dict(zip(((one, other) for one in cell.rows for other in cell.rows), values, strict=True))

    def __call__(self, one: Vector, other: Vector) -> float:
        return sum(a * b * self._of[x, y] for x, a in one.items() for y, b in other.items())


class Measurement:
    """What :func:`measure` found, still on the device."""

    def __init__(self, streams: Sequence[str], cells: Sequence[_Cell], values: Tensor) -> None:
        self._streams, self._cells, self._values = streams, cells, values

    def read(self, steps: int | None = None) -> Found | None:
        """The quantities by name, then by stream, or "one,other" for cosines. Waits for the device.

        Where gradients or buffers were not known, what follows from them is an empty dict, and snr is None. None
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
        cells: list[_Products] = []
        for cell in self._cells:
            count = len(cell.rows) ** 2
            cells.append(_Products(cell, values[:count]))
            values = values[count:]
        by_stream = {name: [of for of in cells if name in of.rules] for name in self._streams}
        return {
            "grad_norm": {
                name: _norm(found, gradient(name)) for name, found in by_stream.items() if _kept(found, name)
            },
            "buffer_norm": _buffer_norms(by_stream),
            "update_share": _update_shares(self._streams, cells),
            "snr": {name: _snr(name, found, steps) for name, found in by_stream.items()},
            "cosine": {
                f"{one},{other}": _cosine(cells, one, other)
                for one, other in combinations(self._streams, 2)
                if _kept(by_stream[one], one) and _kept(by_stream[other], other)
            },
        }


@torch.no_grad()
def measure(optimizer: StreamOptimizer) -> Measurement:
    """Measure the last step. Call it after ``step()`` and before ``zero_grad()``; it changes nothing.

    Only then do gradients and buffers belong together, unscaled and clipped as they entered the step. After
    ``zero_grad()``, and where gradients are never kept (``gradients_in_buffers``), the buffers alone are measured. In
    several processes all of them call it, and what differs between them is left out: with ``reduce="momenta"`` the
    gradients, and the buffers too unless ``average_buffers()`` came first.

    Raises:
        TypeError: an optimizer that is neither a StreamSGD nor a StreamAdamW.
        RuntimeError: no step was taken yet.
    """
    if not isinstance(optimizer, (StreamSGD, StreamAdamW)):
        raise TypeError(f"expected a StreamSGD or a StreamAdamW, got {type(optimizer).__name__}")
    if optimizer._skips is None:
        raise RuntimeError("measure() before the first step(): there is nothing to measure yet")
    skipped = optimizer.last_step_skipped
    wide = torch.float32 if skipped.device.type == "mps" else torch.float64
    cells: list[_Cell] = []
    sums: list[Tensor] = [skipped.to(wide).reshape(1)]
    for group in optimizer.param_groups:
        lr = group["lr"].detach().clone() if isinstance(group["lr"], Tensor) else group["lr"]
        alike: dict[Any, list[list[Tensor]]] = defaultdict(list)
        for p in group["params"]:
            reached, rows = rows_of(optimizer, group, p)
            if rows:
                alike[p.device, p.dtype, reached, tuple(rows)].append([row.reshape(-1) for row in rows.values()])
        for (_, _, reached, rows), tensors in alike.items():
            cells.append(_Cell(rows, rules_of(optimizer, group, reached, rows), lr))
            found = list(_products(tensors))
            sums.append(torch.stack(found).to(skipped.device, wide).sum(0).flatten())
    values = torch.cat(sums)
    reduce_over(mesh_of(optimizer._params()), values[1:])
    return Measurement(optimizer.streams, cells, values)


def _products(params: Sequence[Sequence[Tensor]]) -> Iterator[Tensor]:
    """The products of all pairs of rows, (rows, rows), of so many parameters at a time as make a piece, or less.

    ``params``: for each parameter its rows, with one dimension and equally many elements.
    """
    wide = torch.promote_types(params[0][0].dtype, torch.float32)
    pieces: list[Sequence[Tensor]] = []
    for rows in params:
        pieces += [rows] if rows[0].numel() <= _PIECE else zip(*(row.split(_PIECE) for row in rows), strict=True)
    waiting: list[Sequence[Tensor]] = []
    count = 0
    for number, piece in enumerate(pieces, 1):
        waiting.append(piece)
        count += piece[0].numel()
        if number == len(pieces) or count + pieces[number][0].numel() > _PIECE:
            table = torch.stack([torch.cat(row) for row in zip(*waiting, strict=True)]).to(wide)
            with torch.autocast(table.device.type, enabled=False):
                yield table @ table.T
            waiting, count = [], 0


def _kept(cells: Sequence[_Products], name: str) -> bool:
    return bool(cells) and all(gradient(name) in of.rows for of in cells)


def _norm(cells: Sequence[_Products], row: Row) -> float:
    return math.sqrt(sum(of({row: 1.0}, {row: 1.0}) for of in cells))


def _cosine(cells: Sequence[_Products], one: str, other: str) -> float | None:
    """Where one stream alone reaches a parameter, the other's gradient counts as 0."""
    a, b = gradient(one), gradient(other)
    size = _norm([of for of in cells if a in of.rows], a) * _norm([of for of in cells if b in of.rows], b)
    product = sum(of({a: 1.0}, {b: 1.0}) for of in cells if a in of.rows and b in of.rows)
    return product / size if size else None


def _buffer_norms(by_stream: Mapping[str, Sequence[_Products]]) -> dict[str, float | None]:
    norms: dict[str, float | None] = {}
    for name, cells in by_stream.items():
        held = [(of, of.rules[name].held) for of in cells]
        if held and all(vector for _, vector in held):
            norms[name] = math.sqrt(max(0.0, sum(of(vector, vector) for of, vector in held)))
    return norms


def _update_shares(streams: Sequence[str], cells: Sequence[_Products]) -> dict[str, float | None]:
    along = dict.fromkeys(streams, 0.0)
    for of in cells:
        parts = {name: rule.applied for name, rule in of.rules.items()}
        if not all(parts.values()):
            return {}
        for name, part in parts.items():
            along[name] += of.lr**2 * sum(of(part, other) for other in parts.values())
    total = sum(along.values())
    return {name: value / total for name, value in along.items()} if total > 0 else {}


def _snr(name: str, cells: Sequence[_Products], steps: int | None) -> float | None:
    """|G|^2 / V of one stream, each summed over the cells, which may differ in momentum."""
    signal = noise = size = 0.0
    for of in cells:
        rule = of.rules[name]
        if not rule.momentum or steps == 1 or not {gradient(name), buffer(name)} <= set(of.rows):
            return None
        left = 0.0 if steps is None else rule.momentum ** (steps - 1)  # m^(t-1)
        total = rule.first * left + rule.later * (1 - left) / (1 - rule.momentum)
        squares = rule.first**2 * left**2 + rule.later**2 * (1 - left**2) / (1 - rule.momentum**2)
        r = squares / total**2
        average = {buffer(name): 1 / total, **({WEIGHTS: -rule.decay} if rule.decay else {})}
        now, mean = of({gradient(name): 1.0}, {gradient(name): 1.0}), of(average, average)
        signal += (mean - r * now) / (1 - r)
        noise += (now - mean) / (1 - r)
        size += now
    return max(0.0, signal) / noise if noise > _ROUNDING * size else None
