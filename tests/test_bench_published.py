"""The contract of what `dotkd bench` measures against: the published implementation, transcribed.

- Its update computes what DOT computes, except where DOT means to differ: a parameter that the distillation loss alone
  reaches does not decay on its first step there.
- Its two backward passes find the gradients of the two losses, and leave none on the parameters.
- Its pictures are crops of the padded image, mirrored or not, and normalised; each epoch shows each of them once.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import dotkd
from dotkd.bench.published import PublishedUpdate, published_gradients
from dotkd.bench.published_loader import PublishedPictures, published_batches
from dotkd.bench.update import linear_losses
from dotkd.bench.waiting import images_of_cifars_size
from optim_cases import assert_close, make_params, random_grads
from reference import dot_step

CPU = torch.device("cpu")
HYPER = {"lr": 0.05, "momentum": 0.9, "delta": 0.075}
SHAPES = ((3, 2), (4,), (2, 2))

# --- the update -----------------------------------------------------------------------------------------------------


def reach(grads, *, task: tuple[int, ...], distill: tuple[int, ...]):
    """`grads` with None where the stream does not reach that parameter."""
    reached = {"task": task, "distill": distill}
    return {name: [g if i in reached[name] else None for i, g in enumerate(grads[name])] for name in grads}


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_published_update_is_that_of_dot(weight_decay):
    generator = torch.Generator().manual_seed(0)
    mine, theirs = make_params(SHAPES), [p.detach().clone() for p in make_params(SHAPES)]
    literal, buffers = [p.clone() for p in theirs], [{} for _ in theirs]
    dot = dotkd.DOT(mine, weight_decay=weight_decay, **HYPER)
    published = PublishedUpdate(theirs, weight_decay=weight_decay, **HYPER)
    for step in range(6):
        # The second parameter is reached by both, by the task loss alone, and by both again.
        grads = reach(
            random_grads(mine, dot.streams, generator), task=(0, 1, 2), distill=(0, 2) if step in (2, 3) else (0, 1, 2)
        )
        dot.backward(
            task=linear_losses(mine, {"task": grads["task"]})["task"],
            distill=sum((p * g).sum() for p, g in zip(mine, grads["distill"], strict=True) if g is not None),
        )
        dot.step()
        dot.zero_grad()
        published.step(grads["task"], grads["distill"])
        literal = [
            dot_step(p, *gradients, v, weight_decay=weight_decay, **HYPER)
            for p, *gradients, v in zip(literal, grads["task"], grads["distill"], buffers, strict=True)
        ]
    assert_close(theirs, literal)
    assert_close(theirs, mine)


def test_published_update_decays_late_where_the_distillation_loss_is_alone():
    theta, grad = torch.tensor([2.0]), torch.tensor([1.0])
    published = PublishedUpdate([theta], lr=1.0, momentum=0.5, delta=0.25, weight_decay=0.1)
    published.step([None], [grad])
    assert theta.item() == 1.0  # 2 - 1: DOT would go to 2 - (1 + 0.1 * 2)
    published.step([None], [grad])
    assert theta.item() == pytest.approx(1.0 - (0.5 * 1.0 + 1.0 + 0.1 * 1.0))


def test_gradients_are_those_of_the_two_losses():
    params = [p.requires_grad_() for p in make_params(SHAPES)]
    task, distill = params[0].square().sum() + params[2].sum(), (params[0] * 3).sum() + params[1].exp().sum()
    expected = [torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True) for loss in (task, distill)]
    found = published_gradients(params, task, distill)
    for mine, theirs in zip(found, expected, strict=True):
        for grad, other in zip(mine, theirs, strict=True):
            assert (grad is None) == (other is None)
            assert grad is None or torch.equal(grad, other)
    assert [p.grad for p in params] == [None, None, None]


# --- the pictures ---------------------------------------------------------------------------------------------------


def every_view(image: torch.Tensor) -> set[bytes]:
    """The 162 crops of an image (3, 32, 32) of uint8, normalised by 0.5 and 0.5 in float32."""
    padded = np.zeros((3, 40, 40), np.uint8)
    padded[:, 4:36, 4:36] = image.numpy()
    views = set()
    for row, column in itertools.product(range(9), range(9)):
        crop = padded[:, row : row + 32, column : column + 32]
        for view in (crop, crop[:, :, ::-1]):
            scaled = np.ascontiguousarray(view).astype(np.float32) / np.float32(255)
            views.add(((scaled - np.float32(0.5)) / np.float32(0.5)).tobytes())
    return views


def test_pictures_are_crops_mirrored_or_not():
    torch.manual_seed(0)
    dataset = images_of_cifars_size(100)
    pictures = PublishedPictures(dataset)
    views = every_view(dataset.train.inputs[7])
    assert len(views) == 162
    seen = {pictures[7][0].numpy().tobytes() for _ in range(2000)}
    assert seen <= views
    assert len(seen) > 155  # of 2000 draws the expectation is 162 - 0.0007
    assert pictures[7][1:] == (7, 7)
    assert len(pictures) == 100


def test_an_epoch_shows_every_picture_once_in_another_order():
    torch.manual_seed(0)
    batches = published_batches(images_of_cifars_size(100), batch_size=40, device=CPU, workers=0)
    epochs = [[next(batches) for _ in range(3)] for _ in range(2)]
    for epoch in epochs:
        assert [tuple(images.shape) for images, _, _ in epoch] == [(40, 3, 32, 32), (40, 3, 32, 32), (20, 3, 32, 32)]
        positions = torch.cat([found for _, _, found in epoch])
        assert torch.equal(positions.sort().values, torch.arange(100))
        assert torch.equal(torch.cat([labels for _, labels, _ in epoch]), positions)
    assert not torch.equal(epochs[0][0][2], epochs[1][0][2])
