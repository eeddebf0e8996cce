"""What the tests of many devices share: a network, its batches, optimizers, and one loop for one process or many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import dotkd

STEPS = 20


class Net(nn.Module):
    """`auxiliary` serves the task loss alone, `projector` the distillation loss alone; no sample sees another one."""

    def __init__(self, norm: Callable[[], nn.Module] = nn.Identity) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 8), norm(), nn.Tanh(), nn.Linear(8, 7), nn.Tanh())
        self.head, self.auxiliary = nn.Linear(7, 4), nn.Linear(7, 4)
        self.projector = nn.Linear(7, 5, bias=False)
        self.double()

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.body(inputs)
        return self.head(hidden), self.auxiliary(hidden), self.projector(hidden)


class Trunk(nn.Module):
    """A network without its projector; returns what the projector takes in the place of what it gives."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.body, self.head, self.auxiliary = net.body, net.head, net.auxiliary

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.body(inputs)
        return self.head(hidden), self.auxiliary(hidden), hidden


class Part(NamedTuple):
    """Some samples of a batch."""

    inputs: Tensor
    targets: Tensor
    teacher: Tensor
    features: Tensor


def part(step: int, index: int, count: int) -> Part:
    """Every `count`-th sample of batch number `step`, from the `index`-th on."""
    generator = torch.Generator().manual_seed(step)
    inputs, teacher, features = (torch.randn(16, n, generator=generator, dtype=torch.float64) for n in (6, 4, 5))
    targets = torch.randint(4, (16,), generator=generator)
    return Part(*(tensor[index::count] for tensor in (inputs, targets, teacher, features)))


def losses_of(outputs: Sequence[Tensor], batch: Part, streams: Sequence[str]) -> dict[str, Tensor]:
    """Means over the samples, so that the mean over equal parts is that of the whole."""
    logits, auxiliary, projected = outputs
    losses = {
        "task": F.cross_entropy(logits, batch.targets) + 0.3 * F.cross_entropy(auxiliary, batch.targets),
        "distill": F.kl_div(logits.log_softmax(1), batch.teacher.softmax(1), reduction="batchmean")
        + F.mse_loss(projected, batch.features),
        "relation": 0.1 * logits.square().mean(),
    }
    return {name: losses[name] for name in streams}


def three_streams(params: Any, **options: Any) -> dotkd.StreamSGD:
    return dotkd.StreamSGD(params, momenta={"task": 0.8, "distill": 0.95, "relation": 0.5}, **options)


def two_groups(params: Any, **options: Any) -> dotkd.DOT:
    first, *others = params
    groups = [{"params": [first], "momentum": 0.8, "weight_decay": 0.1}, {"params": others}]
    return dotkd.DOT(groups, **{**options, "lr": torch.tensor(0.05, dtype=torch.float64)})


def dot(**more: Any) -> Callable[..., dotkd.DOT]:
    return lambda params, **options: dotkd.DOT(params, **options, **more)


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "DOT": dotkd.DOT,
    "normalize": dot(normalize=True),
    "nesterov": dot(nesterov=True),
    "dampening": dot(dampening=0.3),
    "maximize": dot(maximize=True),
    "no task momentum": dot(momentum=0.3, delta=0.3),
    "two groups": two_groups,
    "three streams": three_streams,
    "AdamW": dotkd.DOTAdamW,
}


class Loop(NamedTuple):
    """How to train; the same for one process and for many."""

    optimizer: str = "DOT"
    micro: int = 1  # micro-batches a step, all but the last under no_sync()
    join: bool = False
    clip: float = 0.0
    scale: float = 0.0  # a GradScaler's first one
    spoil: str = ""  # the stream whose loss is nan in step 3: on rank 1, or in the one process
    apart: bool = False  # keep the projector out of the DDP module
    ddp: dict[str, Any] = {}  # noqa: RUF012
    reduce: str | None = None  # None: leave it to the first backward pass

    def build(self, params: Any) -> Any:
        return OPTIMIZERS[self.optimizer](params, lr=0.05, weight_decay=0.01)


def wrapped(net: Net, group: Any, loop: Loop) -> tuple[nn.Module, Any]:
    """The network's forward pass through DDP, and the optimizer told of it."""
    inner = Trunk(net) if loop.apart else net
    ddp = DistributedDataParallel(inner, process_group=group, **loop.ddp)
    optimizer = loop.build(net.parameters())
    if loop.reduce is not None:
        optimizer.distribute(ddp, reduce=loop.reduce)
    return ddp, optimizer


def outputs_of(net: Net, model: nn.Module, loop: Loop, inputs: Tensor) -> Sequence[Tensor]:
    outputs = model(inputs)
    return (*outputs[:2], net.projector(outputs[2])) if loop.apart and model is not net else outputs


def train(
    net: Net, model: nn.Module, optimizer: Any, loop: Loop, steps: Sequence[int], rank: int = 0, ranks: int = 1
) -> Iterator[Any]:
    """Yields the optimizer after each backward pass that completes a step, before `step()`."""
    scaler = torch.amp.GradScaler("cpu", init_scale=loop.scale, growth_interval=7) if loop.scale else None
    parts = loop.micro if ranks > 1 or model is not net else 1
    for step in steps:
        for index in range(parts):
            batch = part(step, rank * parts + index, ranks * parts)
            quiet = model.no_sync() if index < parts - 1 else nullcontext()  # pyright: ignore
            with quiet:
                losses = losses_of(outputs_of(net, model, loop, batch.inputs), batch, optimizer.streams)
                losses = {name: loss / parts for name, loss in losses.items()}
                if loop.spoil and step == 3 and rank == min(1, ranks - 1):
                    losses[loop.spoil] = losses[loop.spoil] * float("nan")
                if scaler:
                    scaler.scale(optimizer.join(**losses)).backward()
                elif loop.join:
                    optimizer.join(**losses).backward()
                else:
                    optimizer.backward(**losses)
        if scaler:
            scaler.unscale_(optimizer)
        if loop.clip:
            optimizer.clip_grad_norm_(loop.clip)
        yield optimizer
        scaler.step(optimizer) if scaler else optimizer.step()
        if scaler:
            scaler.update()
        optimizer.zero_grad()


class Outcome(NamedTuple):
    weights: list[Tensor]
    skipped: int


def alone(loop: Loop) -> Outcome:
    """One process on the whole batches."""
    net = Net()
    optimizer = loop.build(net.parameters())
    for _ in train(net, net, optimizer, loop, range(STEPS)):
        pass
    return Outcome(weights(net), optimizer.skipped_steps)


def together(rank: int, group: Any, loop: Loop) -> Outcome:
    """One of several, each on its part of every batch."""
    net = Net()
    model, optimizer = wrapped(net, group, loop)
    for _ in train(net, model, optimizer, loop, range(STEPS), rank, group.size()):
        pass
    return Outcome(weights(net), optimizer.skipped_steps)


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def assert_same(outcomes: Sequence[Outcome], expected: Outcome) -> None:
    """The ranks agree to the bit, and with the one process to rounding."""
    for outcome in outcomes:
        assert outcome.skipped == expected.skipped
        for ours, first, theirs in zip(outcome.weights, outcomes[0].weights, expected.weights, strict=True):
            assert torch.equal(ours, first)
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
