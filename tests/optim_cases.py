"""What the optimizer tests share: losses with chosen gradients, a small network, optimizers, snapshots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dotkd

Grads = Mapping[str, Sequence["Tensor | None"]]

STREAMS = ("task", "distill")


def three_streams(params: Iterable[Tensor], **options: object) -> dotkd.StreamSGD:
    momenta = {"task": 0.825, "distill": 0.975, "relation": 0.5}
    return dotkd.StreamSGD(params, momenta=momenta, **options)


# name -> constructor; every one takes lr= and weight_decay= and has its streams in `.streams`
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "DOT": dotkd.DOT,
    "DOTAdamW": dotkd.DOTAdamW,
    "StreamSGD": three_streams,
}


def linear_losses(params: Sequence[Tensor], grads: Grads) -> dict[str, Tensor]:
    """One scalar per stream whose gradient at a parameter is exactly the tensor given (None: not reached)."""
    losses: dict[str, Tensor] = {}
    for name, by_param in grads.items():
        loss = torch.zeros((), dtype=torch.float64, requires_grad=True) * 1.0  # differentiable, reaches no parameter
        for p, g in zip(params, by_param, strict=True):
            if g is not None:
                loss = loss + (p * g).sum()
        losses[name] = loss
    return losses


def fill(optimizer: torch.optim.Optimizer, params: Sequence[Tensor], grads: Grads, *, join: bool = False) -> None:
    losses = linear_losses(params, grads)
    if join:
        optimizer.join(**losses).backward()
    else:
        optimizer.backward(**losses)


def random_grads(params: Sequence[Tensor], streams: Iterable[str], generator: torch.Generator) -> Grads:
    def one(p: Tensor) -> Tensor:
        return torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)

    return {name: [one(p) for p in params] for name in streams}


def make_params(
    shapes: Sequence[tuple[int, ...]] = ((3, 2), (4,), ()),
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]


def snapshot(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of every parameter and of every tensor the optimizer's state_dict holds, in a fixed order."""
    tensors = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    state = optimizer.state_dict()["state"]
    for index in sorted(state):
        tensors += [torch.as_tensor(state[index][key]).detach().clone() for key in sorted(state[index])]
    return tensors


def identical(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Equal bit for bit, in number, shape and type too (NaN never compares equal: none is ever expected)."""
    return len(left) == len(right) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(left, right, strict=True)
    )


def assert_close(left: Sequence[Tensor], right: Sequence[Tensor], tolerance: float = 1e-12) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=tolerance, atol=tolerance)


class Student(nn.Module):
    """BatchNorm in the body; `auxiliary` serves the task loss alone, `projector` the distillation loss alone.

    No bias stands before a BatchNorm: its gradient would be rounding noise, which Adam scales up to full steps.
    """

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator_state = torch.get_rng_state()
        torch.manual_seed(seed)
        self.body = nn.Sequential(
            nn.Linear(6, 8, bias=False),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Linear(8, 8, bias=False),
            nn.BatchNorm1d(8),
        )
        self.head = nn.Linear(8, 4)
        self.auxiliary = nn.Linear(8, 4)
        self.projector = nn.Linear(8, 5, bias=False)
        self.unused = nn.Linear(2, 2)
        torch.set_rng_state(generator_state)
        self.to(dtype)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = torch.relu(self.body(inputs))
        return self.head(hidden), self.auxiliary(hidden), self.projector(hidden)


class Batch:
    """Inputs, labels, teacher logits and teacher features of step number `step`: always the same ones."""

    def __init__(self, step: int, dtype: torch.dtype = torch.float64, size: int = 12) -> None:
        generator = torch.Generator().manual_seed(1000 + step)

        def normal(width: int) -> Tensor:
            return torch.randn(size, width, generator=generator, dtype=torch.float64).to(dtype)

        self.inputs, self.teacher, self.features = normal(6), normal(4) * 2, normal(5)
        self.targets = torch.randint(4, (size,), generator=generator)


def student_losses(student: nn.Module, batch: Batch, streams: Sequence[str] = STREAMS) -> dict[str, Tensor]:
    logits, auxiliary, projected = student(batch.inputs)
    task = F.cross_entropy(logits, batch.targets) + 0.3 * F.cross_entropy(auxiliary, batch.targets)
    kl = F.kl_div(logits.log_softmax(1), batch.teacher.softmax(1), reduction="batchmean")
    losses = {"task": 0.5 * task, "distill": 0.9 * kl + 0.2 * F.mse_loss(projected, batch.features)}
    if "relation" in streams:
        losses["relation"] = 0.05 * (logits @ logits.T - batch.teacher @ batch.teacher.T).abs().mean()
    return losses


def train(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: Iterable[int],
    *,
    dtype: torch.dtype = torch.float64,
    sign: float = 1.0,
) -> None:
    """The plain loop. `sign` -1 turns every loss round, for optimizers that maximize."""
    for step in steps:
        losses = student_losses(student, Batch(step, dtype), optimizer.streams)
        optimizer.backward(**{name: sign * loss for name, loss in losses.items()})
        optimizer.step()
        optimizer.zero_grad()


def train_on_sum(
    student: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[int], *, sign: float = 1.0
) -> None:
    """The same loop for torch's own optimizers, on the sum of the losses."""
    for step in steps:
        (sign * sum(student_losses(student, Batch(step)).values())).backward()
        optimizer.step()
        optimizer.zero_grad()


def take(optimizer: torch.optim.Optimizer, params: Sequence[Tensor], grads: Grads, *, join: bool = False) -> None:
    """One whole step with the chosen gradients."""
    fill(optimizer, params, grads, join=join)
    optimizer.step()
    optimizer.zero_grad()
