"""The contract of streams under DistributedDataParallel, with real processes.

- 1, 2 and 4 ranks, each on its part of the batch, end with the weights of one process on the whole batch (1e-12 in
  float64), and with one another's to the bit: every optimizer, momenta kept apart or gradients averaged, told of DDP or
  left to find it, with parameters that one loss alone reaches, inside the DDP module and outside.
- Accumulation under `no_sync()`, `join`, clipping, a GradScaler and DDP's own options change nothing about that.
- A loss that is not finite on one rank skips the same step on all of them.
- With momenta kept apart a step sends exactly what DDP sends for one loss; with averaged gradients, once per stream.
- Averaged momenta change no later step, and continue on another number of ranks.
- Where a rank does not reach a parameter, nothing hangs and the ranks stay equal.
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from optim_cases import assert_close
from parallel_cases import (
    OPTIMIZERS,
    STEPS,
    Loop,
    Net,
    Part,
    alone,
    assert_same,
    losses_of,
    part,
    together,
    train,
    weights,
    wrapped,
)

expected = functools.cache(lambda optimizer, clip, spoil: alone(Loop(optimizer, clip=clip, spoil=spoil)))


def check(ranks, count, loop):
    assert_same(ranks.run(together, count, loop), expected(loop.optimizer, loop.clip, loop.spoil))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_ranks_equal_one_process(ranks, optimizer):
    check(ranks, 2, Loop(optimizer))


@pytest.mark.parametrize("optimizer", ["DOT", "three streams"])
def test_two_ranks_that_average_gradients_equal_one_process(ranks, optimizer):
    check(ranks, 2, Loop(optimizer, reduce="gradients"))


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("loop", [Loop("three streams", reduce="momenta"), Loop("AdamW", reduce="gradients")])
def test_one_and_four_ranks_equal_one_process(ranks, count, loop):
    check(ranks, count, loop)


DDP_OPTIONS = {
    "views, many buckets": {"gradient_as_bucket_view": True, "bucket_cap_mb": 1e-4},
    "unused": {"find_unused_parameters": True},
    "unused, views": {"gradient_as_bucket_view": True, "find_unused_parameters": True},
}


@pytest.mark.parametrize("reduce", ["momenta", "gradients"])
@pytest.mark.parametrize("options", DDP_OPTIONS.values(), ids=DDP_OPTIONS)
def test_options_of_ddp(ranks, options, reduce):
    check(ranks, 2, Loop(ddp=options, reduce=reduce))


@pytest.mark.parametrize("reduce", ["momenta", "gradients"])
@pytest.mark.parametrize("loop", [Loop(micro=2), Loop(apart=True), Loop(join=True, micro=4, apart=True)])
def test_micro_batches_and_parameters_outside_of_the_module(ranks, loop, reduce):
    check(ranks, 2, loop._replace(reduce=reduce))


@pytest.mark.parametrize("optimizer", ["DOT", "AdamW"])
@pytest.mark.parametrize("loop", [Loop(clip=0.3), Loop(clip=0.3, scale=2.0**10, micro=2), Loop(scale=2.0**10)])
def test_clipping_and_a_grad_scaler_on_averaged_gradients(ranks, loop, optimizer):
    check(ranks, 2, loop._replace(optimizer=optimizer, reduce="gradients"))


@pytest.mark.parametrize("loop", [Loop(), Loop(reduce="gradients"), Loop("AdamW"), Loop(micro=2, apart=True)])
@pytest.mark.parametrize("stream", ["task", "distill"])
def test_a_loss_that_is_not_finite_on_one_rank_skips_the_step_on_all(ranks, loop, stream):
    check(ranks, 2, loop._replace(spoil=stream))


def infinite_loss_with_a_finite_gradient(rank, group, reduce):
    net = Net()
    model, optimizer = wrapped(net, group, Loop(reduce=reduce))
    before = weights(net)
    batch = part(0, rank, 2)
    losses = losses_of(model(batch.inputs), batch, optimizer.streams)
    optimizer.backward(**{**losses, "task": losses["task"] + (float("inf") if rank else 0.0)})
    optimizer.step()
    return optimizer.skipped_steps, all(torch.equal(p, q) for p, q in zip(weights(net), before, strict=True))


@pytest.mark.parametrize("reduce", ["momenta", "gradients"])
def test_an_infinite_loss_on_one_rank_skips_the_step_on_all_even_if_its_gradient_is_finite(ranks, reduce):
    assert ranks.run(infinite_loss_with_a_finite_gradient, 2, reduce) == [(1, True), (1, True)]


def bytes_sent(rank, group, optimizer, reduce):
    """By a step of ours, and by a step of DDP with one loss: the bytes that are averaged."""
    sent = {"ours": 0, "theirs": 0}
    averaged = dist.all_reduce

    def counting(tensor, *args, **kwargs):
        sent["ours"] += tensor.numel() * tensor.element_size()
        return averaged(tensor, *args, **kwargs)

    net, loop = Net(), Loop(optimizer, reduce=reduce)
    model, ours = wrapped(net, group, loop)
    dist.all_reduce = counting
    try:
        for _ in train(net, model, ours, loop, [0], rank, 2):
            pass
    finally:
        dist.all_reduce = averaged

    def hook(state, bucket):
        sent["theirs"] += bucket.buffer().numel() * bucket.buffer().element_size()
        return averaged(bucket.buffer(), group=group, async_op=True).get_future().then(lambda f: f.value()[0])

    plain = DistributedDataParallel(Net(), process_group=group)
    plain.register_comm_hook(None, hook)
    batch = part(0, rank, 2)
    sum(losses_of(plain(batch.inputs), batch, ours.streams).values()).backward()
    return sent["ours"], sent["theirs"]


def test_momenta_kept_apart_send_what_ddp_sends_for_one_loss(ranks):
    parameters = 8 * sum(p.numel() for p in Net().parameters())
    for optimizer in ("DOT", "three streams"):
        for ours, theirs in ranks.run(bytes_sent, 2, optimizer, "momenta"):
            assert ours == theirs == parameters


@pytest.mark.parametrize(("optimizer", "streams"), [("AdamW", 2), ("three streams", 3)])
def test_averaged_gradients_send_every_stream_once_and_a_flag_for_each_tensor(ranks, optimizer, streams):
    flags = 8 * len(list(Net().parameters()))
    for ours, theirs in ranks.run(bytes_sent, 2, optimizer, "gradients"):
        assert ours == streams * (theirs + flags)


def begin(rank, group, loop):
    """Half of the steps; the averaged momenta, and the run without a stop."""
    net = Net()
    model, optimizer = wrapped(net, group, loop)
    for _ in train(net, model, optimizer, loop, range(STEPS // 2), rank, group.size()):
        pass
    optimizer.average_buffers()
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    for _ in train(net, model, optimizer, loop, range(STEPS // 2, STEPS), rank, group.size()):
        pass
    return saved, weights(net)


def go_on(rank, group, loop, saved):
    net = Net()
    net.load_state_dict(saved[0])
    model, optimizer = wrapped(net, group, loop)
    optimizer.load_state_dict(saved[1])
    for _ in train(net, model, optimizer, loop, range(STEPS // 2, STEPS), rank, group.size()):
        pass
    return weights(net)


@pytest.mark.parametrize("loop", [Loop("three streams"), Loop("AdamW"), Loop(apart=True)])
def test_a_state_with_averaged_momenta_continues_on_any_number_of_ranks(ranks, loop):
    exact = expected(loop.optimizer, 0.0, "").weights
    begun = ranks.run(begin, 2, loop)
    for (_, first), (_, second) in zip(begun[0][0][1]["state"].items(), begun[1][0][1]["state"].items(), strict=True):
        assert all(torch.equal(first[key], second[key]) for key in {**first, **second})
    finished = [begun[0][1], *(ranks.run(go_on, count, loop, begun[0][0])[0] for count in (1, 4))]
    for ours in finished:
        assert_close(ours, exact)


class Sometimes(nn.Module):
    """Its second layer is for those who ask for it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 4).double(), nn.Linear(4, 4).double()

    def forward(self, inputs: Tensor, more: bool) -> Tensor:
        hidden = self.first(inputs)
        return self.second(hidden) if more else hidden


def reach_by_rank(rank, group, optimizer, reduce):
    """Rank 1 never reaches the second layer, rank 0 by the distillation loss only; in the last step nobody does."""
    net = Sometimes()
    ddp = DistributedDataParallel(net, process_group=group, find_unused_parameters=True)
    ours = OPTIMIZERS[optimizer](net.parameters(), lr=0.05, weight_decay=0.01)
    ours.distribute(ddp, reduce=reduce)
    moved = []
    for step in range(6):
        batch, before = part(step, rank, 2), weights(net.second)
        out = ddp(batch.inputs, rank % 2 == 0 and step < 5)
        ours.backward(task=net.first(batch.inputs).square().mean() + 0 * out.mean(), distill=out.square().mean())
        ours.step()
        ours.zero_grad()
        moved.append(not torch.equal(before[0], net.second.weight))
    return weights(net), moved


@pytest.mark.parametrize(("optimizer", "reduce"), [("DOT", "momenta"), ("DOT", "gradients"), ("AdamW", "gradients")])
def test_parameters_that_only_some_ranks_reach_stay_equal(ranks, optimizer, reduce):
    (first, moved), (second, too) = ranks.run(reach_by_rank, 2, optimizer, reduce)
    assert all(torch.equal(p, q) for p, q in zip(first, second, strict=True))
    assert moved == too == [True] * 5 + [False]


class Sum(torch.autograd.Function):
    """Over the ranks, both ways."""

    @staticmethod
    def forward(ctx, inputs, group):
        ctx.group, total = group, inputs.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad):
        total = grad.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class SyncNorm(nn.Module):
    """What SyncBatchNorm does in training, which refuses the CPU: the moments of the samples of all ranks."""

    group: dist.ProcessGroup | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        moments = torch.stack([inputs.mean(0), inputs.square().mean(0)])
        if self.group is not None:
            moments = Sum.apply(moments, self.group) / self.group.size()
        return (inputs - moments[0]) / (moments[1] - moments[0].square() + 1e-5).sqrt()


def normed(rank, group, loop):
    SyncNorm.group = group
    net = Net(SyncNorm)
    ddp, optimizer = wrapped(net, group, loop)
    for _ in train(net, ddp, optimizer, loop, range(STEPS), rank, group.size()):
        pass
    return weights(net)


@pytest.mark.parametrize("loop", [Loop(), Loop(reduce="gradients")])
def test_a_norm_over_all_ranks_equals_one_process_and_its_messages_stay_in_order(ranks, loop):
    net = Net(SyncNorm)
    optimizer = loop.build(net.parameters())
    for _ in train(net, net, optimizer, loop, range(STEPS)):
        pass
    for ours in ranks.run(normed, 2, loop):
        assert_close(ours, weights(net), 1e-11)


def batch_norm_on_gpus(rank, group):
    """SyncBatchNorm over NCCL, one device a rank, with DOT; and BatchNorm of the whole batch on the first device."""
    torch.cuda.set_device(rank)
    nccl = dist.new_group([0, 1], backend="nccl", use_local_synchronization=True)
    results = []
    for count in (2, 1):
        net = Net(functools.partial(nn.BatchNorm1d, 8)).cuda()
        model: nn.Module = net
        if count == 2:
            net = nn.SyncBatchNorm.convert_sync_batchnorm(net, nccl)
            model = DistributedDataParallel(net, device_ids=[rank], process_group=nccl)
        optimizer = Loop().build(net.parameters())
        for step in range(STEPS):
            batch = Part(*(tensor.cuda() for tensor in part(step, rank if count == 2 else 0, count)))
            optimizer.backward(**losses_of(model(batch.inputs), batch, optimizer.streams))
            optimizer.step()
            optimizer.zero_grad()
        results.append([p.cpu() for p in weights(net)])
    return results


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_sync_batch_norm_on_two_gpus_equals_batch_norm_of_the_whole_batch(ranks):
    for ours, whole in ranks.run(batch_norm_on_gpus, 2):
        assert_close(ours, whole, 1e-9)
