"""What every optimizer with streams can do when it runs in several processes; ``data_parallel.py`` says how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from dotkd.optim.gradients import StreamGradients

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel

    from dotkd.optim.data_parallel import DataParallel
    from dotkd.optim.streams import StreamOptimizer


class ManyDevices(torch.optim.Optimizer, ABC):
    """The part of :class:`StreamOptimizer` that concerns other ranks."""

    # Whether the step is linear in the gradients, so that the ranks can keep momenta of their own.
    linear = False

    _gradients: StreamGradients
    # Neither copied nor pickled: a copy finds its DistributedDataParallel module anew.
    _ranks: DataParallel | None = None
    _looked_for_ranks = False

    def distribute(
        self, *modules: DistributedDataParallel, reduce: Literal["momenta", "gradients"] | None = None
    ) -> None:
        """Average over the ranks in every backward pass through ``modules``. All ranks call it, before the first one.

        Where nobody calls it, the first ``backward()`` looks for the modules that hold these parameters, and does.
        Parameters that are in none of the modules become those of the first rank, and are averaged too.

        Args:
            reduce: "momenta" sends as much as one loss does, but allows neither clipping nor a GradScaler; "gradients"
                sends every stream. By default the first where the step is linear in the gradients (SGD).

        Raises:
            ValueError: ``reduce`` is unknown or does not fit; the modules do not fit together, or to this optimizer.
            RuntimeError: gradients are pending, or are not kept (``gradients_in_buffers``).
        """
        from dotkd.optim.data_parallel import DataParallel
        from dotkd.optim.rank_state import share

        self._ranks = DataParallel(cast("StreamOptimizer", self), modules, reduce)
        share(self._ranks.rest(), self._ranks.group)

    def average_buffers(self) -> None:
        """Give all ranks the mean of their momenta, which changes no later step. All ranks call it before they save."""
        if self._ranks is not None:
            self._ranks.average_buffers()

    def state_dict(self) -> dict[str, Any]:
        """As in torch. Raises RuntimeError where the ranks' momenta differ: call :meth:`average_buffers` first."""
        if self._ranks is not None and self._ranks.apart:
            raise RuntimeError(
                "each rank has momenta of its own: call optimizer.average_buffers() on all ranks before state_dict(), "
                'or optimizer.distribute(ddp, reduce="gradients") before training'
            )
        return super().state_dict()

    # --- for subclasses ---------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def streams(self) -> tuple[str, ...]:
        """The names of the streams."""

    @abstractmethod
    def _update(self, group: dict[str, Any], found: Mapping[torch.device, Tensor]) -> None:
        """Update the group's parameters; ``found[device]`` is 1 where the step must be skipped, else 0, shape ()."""

    def _add_directions(self, grads: Mapping[Tensor, Mapping[str, Tensor]], out: Mapping[Tensor, Tensor]) -> None:
        """Add what a step would take from each parameter, divided by lr, to ``out``. Where ``linear``."""
        raise NotImplementedError

    # --- inside -----------------------------------------------------------------------------------------------------

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _look_for_ranks(self) -> None:
        """Find the DDP modules that nobody told of, once: they would average one stream and leave the others local."""
        if self._ranks is not None or self._looked_for_ranks:
            return
        self._looked_for_ranks = True
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return
        from dotkd.optim.data_parallel import DataParallel
        from dotkd.optim.ddp_module import modules_around
        from dotkd.optim.rank_state import refuse_unequal

        modules: Sequence[DistributedDataParallel] = modules_around(self._params())
        if modules:
            self._ranks = DataParallel(cast("StreamOptimizer", self), modules, None)
            refuse_unequal(self._ranks.rest(), self._ranks.group)

    def _started_state(self) -> bool:
        """Whether all there is are gradients of zeros that belong to no stream, at lr 0. Then makes state of zeros.

        By such a step torch.distributed.checkpoint makes the state that it then loads into.
        """
        params = [p for p in self._params() if p.grad is not None]
        if self._gradients.of or self.state or not params or any(float(group["lr"]) for group in self.param_groups):
            return False
        self._gradients.add(params, {name: [torch.zeros_like(p) for p in params] for name in self.streams})
        for group in self.param_groups:
            self._update(group, {p.device: torch.zeros((), device=p.device) for p in params})
        for state in self.state.values():
            for value in state.values():
                value.zero_()
        self._gradients.clear()
        return True
