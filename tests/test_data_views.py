"""The views of a training sample. The contract:

- Sample and view number settle the inputs, in every epoch and, where views are counted, in every run.
- What is drawn for a numbered view is the published hash, uniform in [0, 1).
- The n parts of a batch are the batch of one, to the bit, mixed and strongly augmented ones included.
"""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

from dotkd import data
from dotkd.data.dataset import Split, assemble
from dotkd.data.draws import numbers_of_views
from dotkd.data.views import Views

WORD = 2**64


def made(count: int = 12) -> data.Dataset:
    inputs = torch.randint(256, (count, 3, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(inputs, torch.arange(count) % 3)
    return assemble("made", {"train": split, "test": split}, class_names=["a", "b", "c"], fingerprint="0" * 64)


def literal_hash(word: int) -> int:
    """The finalizer of SplitMix64, in integers without bounds."""
    word = (word + 0x9E3779B97F4A7C15) % WORD
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WORD
    return word ^ (word >> 31)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 1),
        ({"augment": "crop-flip"}, 162),
        ({"augment": "rotate-flip"}, None),
        ({"augment": "resized-crop-flip"}, None),
        ({"augment": "crop-flip", "views": 5}, 5),
        ({"augment": "resized-crop-flip", "views": 3}, 3),
        ({"augment": "crop-flip", "mix": "mixup"}, None),
        ({"strong": True}, None),
    ],
)
def test_sample_and_view_settle_the_inputs(settings: dict, count: int | None) -> None:
    options = {("limit" if key == "views" else key): value for key, value in settings.items()}
    assert Views(**options).count == count
    seen: dict[tuple[int, ...], Tensor] = {}
    repeated = 0
    # Where views are not counted, an epoch has its own and a seed its own.
    for seed in (0, 1) if count else (0,):
        for epoch in [*range(12 if count else 2), 0]:
            for batch in data.batches(made(), "train", batch_size=4, seed=seed, epoch=epoch, shuffle=True, **settings):
                assert batch.view.shape == batch.index.shape
                assert batch.view.dtype == torch.int64
                assert 0 <= int(batch.view.min()) <= int(batch.view.max()) < (count or 12)
                both = torch.stack([batch.inputs, batch.inputs if batch.strong is None else batch.strong], 1)
                for sample, view, shown in zip(batch.index.tolist(), batch.view.tolist(), both, strict=True):
                    repeated += (sample, view) in seen
                    assert torch.equal(seen.setdefault((sample, view), shown), shown)
    assert repeated >= 12
    if count != 1:
        assert len({view for _, view in seen}) > 1
        assert any(not torch.equal(seen[a], seen[b]) for a in seen for b in seen if a[0] == b[0])


def test_what_is_drawn_for_a_view_is_the_published_hash() -> None:
    index, view = torch.tensor([0, 0, 1, 1_281_166]), torch.tensor([0, 1, 0, 299])
    found = numbers_of_views(index, view, 3)
    for row, (i, v) in enumerate(zip(index.tolist(), view.tolist(), strict=True)):
        word = literal_hash((literal_hash(i) + v) % WORD)
        for column in range(3):
            assert float(found[row, column]) == (literal_hash((word + column) % WORD) >> 11) / 2**53


def test_what_is_drawn_for_views_is_uniform() -> None:
    index, view = torch.meshgrid(torch.arange(200), torch.arange(50), indexing="ij")
    found = numbers_of_views(index.flatten(), view.flatten(), 4)
    assert found.shape == (10_000, 4)
    for column in found.T:
        assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-3
    # Neighbouring samples, views and positions have nothing to do with each other.
    grid = found.view(200, 50, 4)
    for first, second in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1]), (grid[..., 1:], grid[..., :-1])):
        assert stats.pearsonr(first.flatten().numpy(), second.flatten().numpy()).pvalue > 1e-3


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize(
    "settings",
    [
        {"augment": "crop-flip"},
        {"augment": "rotate-flip", "views": 3},
        {"augment": "crop-flip", "mix": "mixup", "strong": True},
        {"augment": "resized-crop-flip", "mix": "cutmix"},
    ],
)
def test_the_parts_of_a_batch_are_the_batch(settings: dict, parts: int) -> None:
    fixed = {"batch_size": 8, "epoch": 2, "seed": 3, "shuffle": True, "drop_last": True, **settings}
    whole = list(data.batches(made(20), "train", **fixed))
    pieces = [list(data.batches(made(20), "train", part=(k, parts), **fixed)) for k in range(parts)]
    assert len(whole) == 2
    for number, batch in enumerate(whole):
        for field, expected in zip(batch._fields, batch, strict=True):
            found = [getattr(piece[number], field) for piece in pieces]
            if expected is None:
                assert found == [None] * parts
            else:
                assert torch.equal(torch.cat(found), expected), field


def test_what_does_not_fit_is_refused() -> None:
    def refused(text: str, **options: object) -> None:
        with pytest.raises(ValueError, match=text):
            data.batches(made(), "train", **{"batch_size": 4, "drop_last": True, **options})

    refused("expected `views` of at least 1, got 0", augment="crop-flip", views=0)
    refused("`views` is for an augmentation alone, without mixing: got 2 with augment 'none', mix 'none'", views=2)
    refused("got 2 with augment 'crop-flip', mix 'mixup'", augment="crop-flip", mix="mixup", views=2)
    refused("and a second view", augment="crop-flip", strong=True, views=2)
    refused(r"expected `part` \(k, n\) with 0 <= k < n, got \(2, 2\)", part=(2, 2))
    refused("that the number of parts divides, and drop_last: got 4 in 3 parts, drop_last True", part=(0, 3))
    refused("got 4 in 2 parts, drop_last False", part=(0, 2), drop_last=False)
