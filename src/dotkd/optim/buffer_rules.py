"""How the buffers of a parameter came about, and what a step took of them: for those who look at a step afterwards.

Everything is a sum of *rows*: the gradients and buffers of the streams, what AdamW makes of its buffers, and the
parameter. Which of them are known depends on where the step took place (see `dotkd.optim.diagnostics`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from dotkd.optim.dot_adamw import StreamAdamW
from dotkd.optim.shards import local
from dotkd.optim.stream_sgd import StreamSGD

Row = tuple[str, str]  # what, and the stream
Vector = Mapping[Row, float]  # a sum of rows
WEIGHTS: Row = ("weights", "")


def gradient(stream: str) -> Row:
    """The row of a stream's gradient."""
    return "gradient", stream


def buffer(stream: str) -> Row:
    """The row of a stream's momentum buffer, of AdamW its first moment."""
    return "buffer", stream


def taken(stream: str) -> Row:
    """The row of what AdamW takes from the parameters for a stream, over lr."""
    return "taken", stream


class Rule(NamedTuple):
    """One stream of a parameter.

    momentum: that of its buffer. first, later: the weights with which gradients enter it. decay: lambda, where it
    enters too. held: what is in the buffer. applied: what the step takes, over lr. Empty where not known.
    """

    momentum: float
    first: float
    later: float
    decay: float
    held: Vector
    applied: Vector


def rows_of(
    optimizer: StreamSGD | StreamAdamW, group: Mapping[str, Any], p: Tensor
) -> tuple[tuple[str, ...], dict[Row, Tensor]]:
    """The streams that reached ``p`` in the last step, and the rows of ``p`` that are known, this rank's shards.

    After ``zero_grad()`` the streams that ever did.
    """
    ranks, gradients, sgd = optimizer._ranks, optimizer._gradients, isinstance(optimizer, StreamSGD)
    several = ranks is not None and ranks.world > 1
    kept = gradients.of and not (several and gradients.state != "averaged")
    state: Mapping[str, Any] = optimizer.state.get(p, {})
    kind = "momentum" if sgd else "moment"
    of_streams: Mapping[str, Tensor] = gradients.of.get(p, {})
    reached = tuple(of_streams) if kept else tuple(n for n in optimizer.streams if f"{kind}_{n}" in state)
    rows = {gradient(name): local(grad) for name, grad in of_streams.items()} if kept else {}
    if ranks is None or not several or not ranks.apart:
        momenta = _momenta(optimizer, group, reached)
        for name in reached:
            # Without momentum SGD leaves a buffer from earlier as it was, where it does not add to it in place.
            if f"{kind}_{name}" in state and (
                momenta[name] or not isinstance(optimizer, StreamSGD) or optimizer._in_buffers
            ):
                rows[buffer(name)] = local(state[f"{kind}_{name}"])
                if not sgd:
                    size = (local(state["square"]) / state["square_weight"]).sqrt_().add_(group["eps"])
                    rows[taken(name)] = rows[buffer(name)] / size.mul_(state[f"moment_{name}_weight"])
    if sgd and reached and group["weight_decay"]:
        rows[WEIGHTS] = local(p)
    return reached, rows


def rules_of(
    optimizer: StreamSGD | StreamAdamW, group: Mapping[str, Any], reached: Sequence[str], rows: Collection[Row]
) -> dict[str, Rule]:
    """The rule of each stream, for parameters that these streams reached and of which these rows are known."""
    momenta = _momenta(optimizer, group, reached)
    if isinstance(optimizer, StreamSGD):
        return {name: _of_sgd(group, name, momenta[name], reached, rows) for name in reached}
    return {name: _of_adamw(name, momenta[name], rows) for name in reached}


def _momenta(
    optimizer: StreamSGD | StreamAdamW, group: Mapping[str, Any], reached: Sequence[str]
) -> Mapping[str, float]:
    """The momentum that each stream had: where one of several alone reaches a parameter, the group's."""
    sgd = isinstance(optimizer, StreamSGD)
    if len(reached) == 1 and len(optimizer.streams) > 1:
        return {reached[0]: group["momentum"] if sgd else group["betas"][0]}
    return optimizer._momenta(group) if sgd else optimizer._beta1s(group)


def _of_sgd(
    group: Mapping[str, Any], name: str, momentum: float, reached: Sequence[str], rows: Collection[Row]
) -> Rule:
    decaying = group["decay_stream"] if group["decay_stream"] in reached else reached[0]
    decay = group["weight_decay"] if name == decaying else 0.0
    entered: dict[Row, float] = {}
    if gradient(name) in rows:
        entered = {gradient(name): -1.0 if group["maximize"] else 1.0, **({WEIGHTS: decay} if decay else {})}
    # Without momentum what entered is all that would be in a buffer.
    held = {buffer(name): 1.0} if buffer(name) in rows else {} if momentum else entered
    step = held
    if group["nesterov"] and momentum:
        step = {buffer(name): momentum, **entered} if held and entered else {}
    share = (1 - momentum) / (1 - group["momentum"]) if group["normalize"] else 1.0
    applied = {row: share * factor for row, factor in step.items()}
    return Rule(momentum, 1.0, 1 - group["dampening"], decay, held, applied)


def _of_adamw(name: str, beta: float, rows: Collection[Row]) -> Rule:
    known = buffer(name) in rows
    held, applied = ({buffer(name): 1.0}, {taken(name): 1.0}) if known else ({}, {})
    return Rule(beta, 1 - beta, 1 - beta, 0.0, held, applied)
