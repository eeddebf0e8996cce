"""The loss around a trained model, along random directions (Li et al. 2018, arXiv 1712.09913).

    L(alpha)       = loss(theta + alpha d)                    a line
    L(alpha, beta) = loss(theta + alpha d + beta e)           a plane

The directions are filter-normalised: each filter of a Gaussian d is brought to the norm of the model's own filter,

    d_f <- |theta_f| d_f / |d_f|

so that a model whose filters are scaled up, where a norm layer takes the scale out again, has the same picture. A
filter is an index of the first axis of a parameter of two or more dimensions: an output channel of a convolution, a row
of a linear layer. All other parameters, biases and those of norm layers, stay as they are, as the authors' default has
it; scaling them as well would mix into the picture what the filters' scale means for them.

Norm layers are taken as the model stands: in eval mode, as `dotkd analyse` puts it, with the running statistics of the
trained weights. To recompute them at each point is the alternative; it is another loss, of another network, and takes a
pass over the data more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dotkd.methods.activations import logits_of

Direction = Mapping[str, Tensor]
# What is told of a batch's logits, (N, C), and of what the batch holds beside its inputs: a mean over the batch, ().
Score = Callable[..., Tensor]
# (inputs, ...): what follows the inputs is handed to the scores.
Samples = Sequence[tuple[Tensor, ...]]


def filter_norms(weight: Tensor) -> Tensor | None:
    """The norm of each filter, (filters, 1, ...), of as many dimensions as the parameter; None where it has none."""
    return weight.detach().flatten(1).norm(dim=1).view(-1, *[1] * (weight.dim() - 1)) if weight.dim() > 1 else None


def random_direction(model: nn.Module, *, seed: int, number: int = 0) -> dict[str, Tensor]:
    """Filter-normalised direction `number` of `seed`, by the names of the parameters that it moves.

    Models of one architecture get the same Gaussian draw, and so pictures that can be compared.
    """
    generator = torch.Generator().manual_seed(seed + 1_000_003 * number)
    direction: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        norms = filter_norms(weight)
        if norms is not None:
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight)
            own = filter_norms(drawn)
            assert own is not None
            direction[name] = drawn / own * norms
    return direction


def line(
    model: nn.Module, samples: Samples, direction: Direction, scores: Mapping[str, Score], *, alphas: Sequence[float]
) -> dict[str, list[float]]:
    """Each score at theta + alpha d, for each of `alphas`."""
    found = [_scored(model, samples, scores, ((alpha, direction),)) for alpha in alphas]
    return {name: [values[name] for values in found] for name in scores}


def plane(
    model: nn.Module,
    samples: Samples,
    directions: tuple[Direction, Direction],
    scores: Mapping[str, Score],
    *,
    alphas: Sequence[float],
    betas: Sequence[float],
) -> dict[str, list[list[float]]]:
    """Each score at theta + alpha d + beta e: a row for each of `alphas`, in it a value for each of `betas`."""
    first, second = directions
    found = [[_scored(model, samples, scores, ((alpha, first), (beta, second))) for beta in betas] for alpha in alphas]
    return {name: [[values[name] for values in row] for row in found] for name in scores}


@torch.no_grad()
def _scored(
    model: nn.Module, samples: Samples, scores: Mapping[str, Score], steps: Sequence[tuple[float, Direction]]
) -> dict[str, float]:
    """The scores' means over all samples with the parameters moved by `steps`; the model is left as it is."""
    held: dict[str, Tensor] = dict(model.named_parameters())
    moved: dict[str, Tensor] = {}
    for length, along in steps:
        moved |= {name: moved.get(name, held[name]) + length * step for name, step in along.items()}
    totals = dict.fromkeys(scores, 0.0)
    for inputs, *rest in samples:
        logits = logits_of(functional_call(model, moved, (inputs,)))
        for name, score in scores.items():
            totals[name] += len(inputs) * float(score(logits, *rest))
    count = sum(len(inputs) for inputs, *_ in samples)
    return {name: total / count for name, total in totals.items()}
