"""The curvature of a loss at a trained model: the largest eigenvalues of its Hessian, and its trace.

    H = d^2 loss / d theta^2,   loss: the mean over all samples

Products with H are those of curvlinops (extra `analysis`), exact and without ever holding the matrix; the largest
eigenvalues lambda_i and their vectors, the columns of V, are found by scipy's Lanczos iteration (ARPACK). The trace is

    tr H = sum_i lambda_i + E[g^T (I - V V^T) H (I - V V^T) g],   g: entries +1 or -1 at random

with the mean over draws of g in the place of E: Hutchinson's estimate of what the known eigenvalues leave. That is the
split of Hutch++ (Meyer et al. 2021, arXiv 2010.09649), with converged eigenvectors as its subspace instead of a sketch,
which costs no product more. A model of few parameters gets its whole matrix.

H alone does not tell flat from sharp: weights in front of a norm layer, or the layers of a ReLU network against each
other, can be scaled so that the model computes the same and H is any size (Dinh et al. 2017, arXiv 1703.04933).
`normalised` therefore measures in units of the filters:

    S H S,   S = |theta_f| / sqrt(n_f)      |theta_f|: norm of the filter that a weight is in, n_f: its weights' number

without the parameters that have no filters. Scaling a filter by c divides its rows and columns of H by c and multiplies
S by it: S H S stays. Its trace is the mean of d^2 L(alpha) / d alpha^2 at 0 over all filter-normalised directions of
`dotkd.evidence.landscape`, for which E[d d^T] = S^2: the curvature of the pictures.

Products are computed in the dtype of the model, the iteration in float64. In float32 a product with the Hessian of a
small residual network differed from that in float64 by 6e-7 of its norm, far below the tolerance of the eigenvalues.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from dotkd.evidence.landscape import Samples, Score, filter_norms
from dotkd.methods.activations import logits_of

_DRAWS = 16
_RELATIVE_TOLERANCE = 1e-3  # of an eigenvalue; seeds differ by far more
_WHOLE = 64  # parameters; up to here the matrix itself is cheaper than the estimates


class Trace(NamedTuple):
    """Mean over `samples` draws; exact, with an error of 0, where `samples` is 0."""

    mean: float
    standard_error: float
    samples: int


class Curvature(NamedTuple):
    """eigenvalues: the largest ones, descending."""

    eigenvalues: list[float]
    trace: Trace


def curvature(
    model: nn.Module, samples: Samples, loss: Score, *, normalised: bool = False, top: int = 5, seed: int = 0
) -> Curvature:
    """The `top` largest eigenvalues and the trace of the Hessian of a mean loss in the model's parameters.

    loss: (logits, what a batch of `samples` holds beside its inputs) -> mean over the batch, twice differentiable under
    `torch.func`. seed: of the start of the iteration and of the draws. Large batches are quicker, and take more memory.

    Raises:
        ValueError: a model that is not in eval mode or has nothing to differentiate by, `top` < 1.
        ModuleNotFoundError: curvlinops is missing; names the extra.
    """
    if top < 1:
        raise ValueError(f"expected `top` >= 1, got {top}")
    if any(module.training for module in model.modules()):
        raise ValueError("expected a model in eval mode: in training mode the samples of a batch depend on each other")
    coordinates = _Coordinates(model, loss, normalised=normalised)
    if not len(coordinates.moved):
        raise ValueError("expected a model with a parameter of two dimensions or more, got none")
    with _exact_products():
        # A batch is a mapping, which the operator hands on as it is; the labels are in it, and what it takes for a
        # prediction is the loss already.
        operator = _curvlinops().HessianLinearOperator(
            coordinates,
            _Taken(),
            list(coordinates.moved),
            [({"batch": batch}, torch.empty(0)) for batch in samples],
            check_deterministic=False,  # it draws from torch's generator
            batch_size_fn=_batch_size,
        )
        matrix = operator.to_scipy(dtype=np.dtype(np.float64))
        size = int(operator.shape[0])
        if size <= max(_WHOLE, 2 * top):
            whole = matrix @ np.eye(size)
            values = np.linalg.eigvalsh((whole + whole.T) / 2)[::-1]
            return Curvature(values[:top].tolist(), Trace(float(np.trace(whole)), 0.0, 0))
        random = np.random.RandomState(seed)
        values, vectors = _largest(matrix, top, random)
        return Curvature(values.tolist(), _trace(matrix, values, vectors, random))


def _largest(matrix: Any, top: int, random: np.random.RandomState) -> tuple[Any, Any]:
    """The eigenvalues (top,), descending, and eigenvectors (parameters, top)."""
    start = random.standard_normal(matrix.shape[0])
    if not (matrix @ start).any():  # flat in every direction, where the iteration cannot start
        return np.zeros(top), np.zeros((len(start), top))
    linalg: Any = importlib.import_module("scipy.sparse.linalg")
    values, vectors = linalg.eigsh(matrix, k=top, which="LA", v0=start, tol=_RELATIVE_TOLERANCE)
    order = np.argsort(values)[::-1]
    return values[order], vectors[:, order]


def _trace(matrix: Any, values: Any, vectors: Any, random: np.random.RandomState) -> Trace:
    drawn = random.randint(0, 2, (_DRAWS, matrix.shape[0])) * 2.0 - 1.0
    drawn -= drawn @ vectors @ vectors.T
    # One product at a time: together they are no quicker, and take the memory of all.
    estimates = np.array([g @ (matrix @ g) for g in drawn])
    error = float(estimates.std(ddof=1)) / math.sqrt(_DRAWS)
    return Trace(float(values.sum() + estimates.mean()), error, _DRAWS)


class _Coordinates(nn.Module):
    """The loss of a batch at theta + s z, with z = 0 as its parameters: s is 1, or that of the filters."""

    def __init__(self, model: nn.Module, loss: Score, *, normalised: bool) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple: its parameters are not to be found among those of this module
        self._loss = loss
        self._start: dict[str, Tensor] = {}
        self._scale: list[Tensor | None] = []
        self.moved = nn.ParameterList()
        for name, weight in model.named_parameters():
            norms = filter_norms(weight)
            if normalised and norms is None:
                continue
            self._start[name] = weight.detach()
            self._scale.append(norms / math.sqrt(weight[0].numel()) if normalised and norms is not None else None)
            self.moved.append(nn.Parameter(torch.zeros_like(weight)))

    def forward(self, held: dict[str, tuple[Tensor, ...]]) -> Tensor:
        inputs, *rest = held["batch"]
        at = {
            name: start + (z if scale is None else scale * z)
            for (name, start), scale, z in zip(self._start.items(), self._scale, self.moved, strict=True)
        }
        return self._loss(logits_of(functional_call(self._model[0], at, (inputs,))), *rest)


def _batch_size(held: dict[str, tuple[Tensor, ...]]) -> int:
    return len(held["batch"][0])


class _Taken(nn.Module):
    """Of a batch's "prediction" the loss that it is."""

    reduction = "mean"

    def forward(self, loss: Tensor, _none: Tensor) -> Tensor:
        return loss.clone()


@contextmanager
def _exact_products() -> Generator[None, None, None]:
    """Within, convolutions on CUDA keep the digits of float32 (no TF32) and give the same bits each time.

    torch 2.13 says that torch.jit.script is deprecated where curvlinops is imported and jvp is first called: that
    warning alone is kept back.
    """
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with warnings.catch_warnings(), exact:
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.script", category=DeprecationWarning)
        yield


def _curvlinops() -> Any:
    try:
        return importlib.import_module("curvlinops")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"curvature needs {error.name}; install the extra `analysis`: pip install 'dotkd[analysis]'",
            name=error.name,
        ) from error
