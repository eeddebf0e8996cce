"""DOT on one page: stochastic gradient descent in which every loss has a momentum of its own.

With task loss gradient g_task, distillation loss gradient g_distill, parameters theta, learning rate lr, momentum mu
(``momentum``), Delta (``delta``) and weight decay lambda (``weight_decay``), one step is

    v_task    <- (mu - Delta) v_task    + g_task + lambda theta
    v_distill <- (mu + Delta) v_distill + g_distill
    theta     <- theta - lr (v_task + v_distill)

(Zhao et al., DOT: A Distillation-Oriented Trainer, arXiv 2307.08436, section 4.) A buffer starts as its first gradient,
as in torch.optim.SGD. With Delta = 0 this is SGD with momentum on the sum of both losses.

In a steady state momentum m multiplies a gradient by 1 / (1 - m): Delta also re-weights the two losses.
``normalize=True`` multiplies each stream's contribution by (1 - m) / (1 - mu), which takes that effect out and leaves
the difference in memory alone. It is the control for the question whether momentum or weight is what helps.

Deviations from the published implementation, each deliberate:

* A parameter that one loss alone reaches in a step uses momentum mu and weight decay, from its first step on (the
  published code leaves the decay out of the first step of a parameter that only the distillation loss reaches).
  (A model that is put through torch.compile by itself hands out zeros where an uncompiled one hands out nothing: such a
  parameter counts as reached by every loss that leaves that graph. `dotkd.whole_step` has no such exception.)
* mu + Delta >= 1 is refused; there it runs with a momentum of 1 or more, and diverges.
* The buffer of a stream that does not reach a parameter in a step waits, neither decayed nor applied, as torch leaves a
  parameter without a gradient alone.
* Groups, accumulation, clipping, loss scaling and missing gradients are treated alike for all streams.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dotkd.optim.rules import check_delta
from dotkd.optim.stream_sgd import StreamSGD
from dotkd.optim.streams import StreamOptimizer


class DOT(StreamSGD):
    """The published optimizer: streams ``task`` and ``distill`` with momentum ``momentum`` -/+ ``delta``.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = DOT(model.parameters(), lr=0.1, momentum=0.9, delta=0.075)
    >>> out = model(torch.ones(4, 2))
    >>> optimizer.backward(task=0.1 * out.square().mean(), distill=0.9 * (out - 1).square().mean())
    >>> optimizer.step()
    >>> optimizer.zero_grad()

    Args:
        lr: learning rate, a float or a tensor of shape (); > 0 moves, 0 is allowed.
        momentum: mu, in [0, 1).
        delta: Delta, in [0, min(mu, 1 - mu)]; mu + delta = 1 is refused. The paper uses 0.075, on ImageNet 0.09.
        weight_decay: lambda, added to the task stream's gradient (not decoupled).

    The other arguments are those of :class:`StreamSGD`. Raises ValueError for any value outside its rule.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        delta: float = 0.075,
        weight_decay: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        normalize: bool = False,
        gradients_in_buffers: bool = False,
    ) -> None:
        self._in_buffers = gradients_in_buffers
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "delta": delta,
            "decay_stream": "task",
            "weight_decay": weight_decay,
            "dampening": dampening,
            "nesterov": nesterov,
            "maximize": maximize,
            "normalize": normalize,
        }
        StreamOptimizer.__init__(self, params, defaults, ("task", "distill"))

    def _momenta(self, group: Mapping[str, Any]) -> dict[str, float]:
        return {"task": group["momentum"] - group["delta"], "distill": group["momentum"] + group["delta"]}

    def _check_group(self, group: Mapping[str, Any]) -> None:
        check_delta("momentum", group["momentum"], group["delta"])
        super()._check_group(group)

    def _translated(self, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
        if "momentum_kd" not in theirs:
            return super()._translated(theirs, ours)
        task, distill = theirs["momentum"], theirs["momentum_kd"]
        rest = {key: theirs[key] for key in theirs if key in ours and key != "momentum"}
        return {**rest, "momentum": (task + distill) / 2, "delta": (distill - task) / 2}
