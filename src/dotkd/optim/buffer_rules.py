"""How the buffers of a parameter came about, and what a step took of them: for those who look at a step afterwards.

Everything is a sum of *rows*: the gradients and buffers of the streams, what AdamW makes of its buffers, and the
parameter. Which of them are known depends on where the step took place (see `dotkd.optim.diagnostics`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def rules_of(
    optimizer: StreamSGD | StreamAdamW, group: Mapping[str, Any], p: Tensor
) -> tuple[dict[str, Rule], dict[Row, Tensor]]:
    """For each stream that reached ``p`` in the last step its rule; and the rows that are known, this rank's shards.

    After ``zero_grad()`` the streams that ever did.
    """
    ranks, gradients, sgd = optimizer._ranks, optimizer._gradients, isinstance(optimizer, StreamSGD)
    several = ranks is not None and ranks.world > 1
    kept = bool(gradients.of) and not (several and gradients.state != "averaged")
    equal = not (several and ranks is not None and ranks.apart)
    state: Mapping[str, Any] = optimizer.state.get(p, {})
    keys = {name: f"{'momentum' if sgd else 'moment'}_{name}" for name in optimizer.streams}
    of_streams: Mapping[str, Tensor] = gradients.of.get(p, {})
    reached = list(of_streams) if kept else [name for name in optimizer.streams if keys[name] in state]
    momenta = _momenta(optimizer, group, reached)
    rows = {gradient(name): local(of_streams[name]) for name in reached} if kept else {}
    for name in reached if equal else ():
        # Without momentum SGD leaves a buffer from earlier as it was, where it does not add to it in place.
        if keys[name] in state and (momenta[name] or not isinstance(optimizer, StreamSGD) or optimizer._in_buffers):
            rows[buffer(name)] = local(state[keys[name]])
    if sgd:
        return _of_sgd(group, momenta, p, rows), rows
    return _of_adamw(group, momenta, state, rows), rows


def _momenta(optimizer: StreamSGD | StreamAdamW, group: Mapping[str, Any], reached: Iterable[str]) -> dict[str, float]:
    """The momentum that each stream had: where one of several alone reaches a parameter, the group's."""
    names = list(reached)
    if len(names) == 1 and len(optimizer.streams) > 1:
        return {names[0]: group["momentum"] if isinstance(optimizer, StreamSGD) else group["betas"][0]}
    own = optimizer._momenta(group) if isinstance(optimizer, StreamSGD) else optimizer._beta1s(group)
    return {name: own[name] for name in names}


def _of_sgd(
    group: Mapping[str, Any], momenta: Mapping[str, float], p: Tensor, rows: dict[Row, Tensor]
) -> dict[str, Rule]:
    decaying = group["decay_stream"] if group["decay_stream"] in momenta else next(iter(momenta), None)
    if momenta and group["weight_decay"]:
        rows[WEIGHTS] = local(p)
    rules: dict[str, Rule] = {}
    for name, momentum in momenta.items():
        decay = group["weight_decay"] if name == decaying else 0.0
        entered = {gradient(name): -1.0 if group["maximize"] else 1.0, **({WEIGHTS: decay} if decay else {})}
        if gradient(name) not in rows:
            entered = {}
        # Without momentum what entered is all that would be in a buffer.
        held = {buffer(name): 1.0} if buffer(name) in rows else {} if momentum else entered
        taken = held
        if group["nesterov"] and momentum:
            taken = {buffer(name): momentum, **entered} if held and entered else {}
        share = (1 - momentum) / (1 - group["momentum"]) if group["normalize"] else 1.0
        applied = {row: share * factor for row, factor in taken.items()}
        rules[name] = Rule(momentum, 1.0, 1 - group["dampening"], decay, held, applied)
    return rules


def _of_adamw(
    group: Mapping[str, Any], momenta: Mapping[str, float], state: Mapping[str, Any], rows: dict[Row, Tensor]
) -> dict[str, Rule]:
    rules: dict[str, Rule] = {}
    for name, beta in momenta.items():
        held: dict[Row, float] = {}
        applied: dict[Row, float] = {}
        if buffer(name) in rows:
            size = (local(state["square"]) / state["square_weight"]).sqrt_().add_(group["eps"])
            taken: Row = ("taken", name)
            rows[taken] = rows[buffer(name)] / size.mul_(state[f"moment_{name}_weight"])
            held, applied = {buffer(name): 1.0}, {taken: 1.0}
        rules[name] = Rule(beta, 1 - beta, 1 - beta, 0.0, held, applied)
    return rules
