"""What a finished run is reported by: ``summary.json``, and the reason where a run diverged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dotkd.config import Config
from dotkd.provenance import provenance

History = Sequence[Mapping[str, Any]]


def best_epoch(history: History) -> Mapping[str, Any] | None:
    """The evaluation record of the best validation accuracy; the first of equals, None where nothing was validated."""
    validated = [record for record in history if "val" in record]
    return max(validated, key=lambda record: record["val"]["accuracy"], default=None)


def summarise(config: Config, history: History, device: torch.device, **figures: Any) -> dict[str, Any]:
    """The summary of a run from the evaluation records of its epochs; ``figures`` are taken over as they are.

    Three accuracies on the test split go by their true names: ``last`` is the one to report, ``val_selected`` chooses
    the epoch by validation accuracy, ``best_of_test`` chooses it by the test split itself and flatters.
    """
    last, best = (history[-1], best_epoch(history)) if history else (None, None)
    return {
        "trainer": config.trainer,
        "method": config.method,
        "seed": config.seed,
        "config": config.model_dump(),
        "test_accuracy": {
            "last": last and last["test"]["accuracy"],
            "val_selected": best and best["test"]["accuracy"],
            "best_of_test": max((record["test"]["accuracy"] for record in history), default=None),
        },
        "val_accuracy": {
            "last": last["val"]["accuracy"] if last and best else None,
            "best": best and best["val"]["accuracy"],
        },
        "test_agreement": last and last["test"].get("agreement"),
        "test_calibration_error": last and last["test"].get("calibration_error"),
        "ema_test_accuracy": last["ema"]["test"]["accuracy"] if last and "ema" in last else None,
        **figures,
        **provenance(device),
    }


def where_not_finite(streams: Mapping[str, Tensor], parameters: Iterable[tuple[str, nn.Parameter]]) -> str:
    """Which weighted loss is not finite, and in which parameter each stream's gradient first is not.

    Empty where all is finite. Runs a backward pass for each of ``streams``, which leaves the graph as it is and no
    gradient anywhere.
    """
    findings = [f"the loss of stream {name!r} is not finite" for name, loss in streams.items() if not loss.isfinite()]
    names, tensors = zip(*((name, p) for name, p in parameters if p.requires_grad), strict=True)
    for stream, loss in streams.items():
        grads = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True, materialize_grads=True)
        first = next((name for name, grad in zip(names, grads, strict=True) if not bool(grad.isfinite().all())), None)
        if first is not None:
            findings.append(f"the gradient of stream {stream!r} is not finite, first in {first}")
    return "; ".join(findings)
