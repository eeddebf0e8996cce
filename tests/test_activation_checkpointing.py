"""The contract of activations that are computed again in each backward pass.

- torch's own checkpointing in a user's model fills both streams, by `backward` and by `join`, dropout included.
- `checkpoint_activations` changes no bit of a training run: weights, running statistics, buffers that the output
  depends on, random numbers, in float32 and under autocast. Names, modules, hooks and copies of the model stay what
  they were.
- Blocks are found in every family of the library; a model without any is refused by name, and so is, before a parameter
  moves, a block that changes its input.
- The peak of memory falls.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import dotkd
from dotkd import models
from dotkd.activation_checkpointing import checkpoint_activations
from dotkd.bench.memory import peak_bytes
from dotkd.methods.activations import Observer
from optim_cases import STREAMS

HYPER = {"lr": 0.05, "momentum": 0.9, "delta": 0.075, "weight_decay": 0.01}
CPU = torch.device("cpu")


class Block(nn.Module):
    """Batch statistics, random numbers, and a weight that depends on buffers which every pass moves."""

    def __init__(self, width=6):
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.map = parametrizations.spectral_norm(nn.Linear(width, width))
        self.drop = nn.Dropout(0.3)

    def forward(self, x, *, scale=1.0):
        return x + scale * self.drop(torch.tanh(self.map(self.norm(x))))


class Net(nn.Module):
    """`by_hand`: the user's own checkpointing."""

    def __init__(self, *, by_hand=False):
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.head = nn.Linear(6, 3)
        self.by_hand = by_hand

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block.drop, x, use_reentrant=False) if self.by_hand else block(x, scale=0.5)
        return self.head(x)


def net(**options):
    torch.manual_seed(0)
    return Net(**options)


def trained(model, *, join=False, steps=3, in_buffers=False, autocast=False):
    """All that steps change, with the gradients of both streams in the last one."""
    optimizer = dotkd.DOT(model.parameters(), gradients_in_buffers=in_buffers, **HYPER)
    torch.manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        inputs, targets = torch.randn(8, 6), torch.randint(3, (8,))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(inputs)
            losses = {"task": F.cross_entropy(logits, targets), "distill": logits.square().mean()}
        optimizer.join(**losses).backward() if join else optimizer.backward(**losses)
        optimizer.step()
    found = {**model.state_dict(), "random": torch.get_rng_state()}
    for name, p in model.named_parameters():
        for stream in STREAMS:
            found[f"{stream} of {name}"] = (
                optimizer.state[p].get(f"momentum_{stream}") if in_buffers else optimizer.stream_grad(p, stream)
            )
    return found


def assert_identical(left, right):
    assert left.keys() == right.keys()
    different = [
        k for k, v in left.items() if (v is None) != (right[k] is None) or not (v is None or v.equal(right[k]))
    ]
    assert not different


@pytest.mark.parametrize("join", [False, True])
@pytest.mark.parametrize("in_buffers", [False, True])
def test_a_users_own_checkpointing_fills_both_streams(join, in_buffers):
    """Dropout three times in a row: random numbers that are drawn anew would show in the gradients."""

    class Plain(Net):
        def forward(self, x):
            for block in self.blocks:
                x = block.drop(x)
            return self.head(x)

    torch.manual_seed(0)
    plain = Plain()
    options = {"join": join, "in_buffers": in_buffers}
    assert_identical(trained(net(by_hand=True), **options), trained(plain, **options))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("join", [False, True])
@pytest.mark.parametrize("in_buffers", [False, True])
def test_no_bit_of_a_run_changes(join, in_buffers, autocast):
    model = net()
    assert checkpoint_activations(model) == ("blocks.0", "blocks.1", "blocks.2")
    options = {"join": join, "in_buffers": in_buffers, "autocast": autocast}
    assert_identical(trained(model, **options), trained(net(), **options))


def test_the_blocks_are_computed_once_for_each_backward_pass():
    """Or the tests above compare a model with itself."""
    model, counts = net(), [0]
    model.blocks[1].norm.register_forward_hook(lambda *_: counts.__setitem__(0, counts[0] + 1))
    checkpoint_activations(model)
    trained(model, steps=1)
    assert counts == [3]
    with torch.no_grad():
        model(torch.randn(8, 6))
    assert counts == [4]


def test_names_modules_and_copies_stay():
    model = net()
    before = list(model.state_dict()), dict(model.named_modules())
    checkpoint_activations(model)
    assert (list(model.state_dict()), dict(model.named_modules())) == before
    twin = copy.deepcopy(model)
    assert_identical(trained(twin), trained(net()))
    assert_identical(model.state_dict(), net().state_dict())  # what the copy computed again is its own


def test_an_observer_sees_the_pass_of_the_batch():
    """Points and activations inside of blocks: what was seen is in the losses, and the repetition is not seen."""
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        model = models.build("resnet8", num_classes=3, input_shape=(3, 8, 8)).train()
        if again:
            checkpoint_activations(model)
        observer = Observer(model, "student", ("features", "preactivations"), example=torch.randn(2, 3, 8, 8))
        optimizer = dotkd.DOT(model.parameters(), **HYPER)
        for _ in range(2):
            seen = observer(torch.randn(4, 3, 8, 8))
            loss = sum(maps.square().mean() for maps in (*seen.features, *seen.preactivations))
            optimizer.backward(task=seen.logits.square().mean(), distill=loss)
            optimizer.step()
            optimizer.zero_grad()
        assert not observer._seen
        found.append(model.state_dict())
    assert_identical(*found)


@pytest.mark.parametrize("name", [name for name in models.MODELS if name not in ("resnet50", "resnet110")])
def test_every_family_has_blocks_that_hold_most_weights(name):
    shape = {"mlp": (8,), "resnet1d": (1, 40)}.get(name, (3, 64, 64) if "mobilenet_v" in name else (3, 32, 32))
    shape = (3, 32, 32) if name == "mobilenet_v2_cifar" else (3, 64, 64) if name in ("resnet18", "resnet34") else shape
    shape = (3, 64, 64) if name.endswith("_small") else shape
    model = models.build(name, num_classes=3, input_shape=shape)
    blocks = checkpoint_activations(model)
    assert len(blocks) > 1
    inside = sum(models.parameter_count(model.get_submodule(path)) for path in blocks)
    assert 0.6 * models.parameter_count(model) < inside <= models.parameter_count(model)


def test_a_block_in_two_places_is_wrapped_once():
    block = Block()
    model = nn.Sequential(block, nn.Sequential(block, Block()))
    assert checkpoint_activations(model) == ("0", "1.1")
    assert type(block.forward._forward).__name__ == "method"


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (nn.Linear(2, 2), "got Linear with the parts none"),
        (nn.Sequential(nn.Linear(2, 2)), r"got Sequential with the parts 0 \(Linear\)"),
        (nn.MultiheadAttention(4, 2), r"got MultiheadAttention with the parts out_proj \(NonDynamicallyQuan.*\)"),
    ],
)
def test_a_model_without_blocks_is_refused(model, text):
    with pytest.raises(ValueError, match=rf"activation_checkpointing: expected a student with .*blocks.*{text}"):
        checkpoint_activations(model)


def test_a_block_that_changes_its_input_is_refused_by_autograd():
    class InPlace(Block):
        def forward(self, x):
            return super().forward(x.mul_(2.0))

    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(InPlace(), Block()), nn.Linear(6, 3))
    checkpoint_activations(model)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        trained(model)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_the_peak_of_memory_falls():
    """Twelve blocks of three activations: kept are twelve inputs and one block, where it was 36 activations."""

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(*[part for _ in range(3) for part in (nn.Linear(8, 8), nn.Tanh())])

        def forward(self, x):
            return self.inner(x)

    def most(*, again):
        torch.manual_seed(0)
        model = nn.Sequential(*[Deep() for _ in range(12)])
        if again:
            assert len(checkpoint_activations(model)) == 12
        optimizer = dotkd.DOT(model.parameters(), **HYPER)

        def work():
            out = model(torch.randn(4096, 8))
            optimizer.backward(task=out.mean(), distill=out.square().mean())

        return peak_bytes(work, CPU)

    assert most(again=True) < 0.6 * most(again=False)
