"""The contract of streams on parameters that are spread over ranks (FSDP2's `fully_shard`), with real processes.

- 2 and 4 ranks, some with empty shards, end with the weights of one process on the whole batch (1e-12 in float64), with
  either setting of `reshard_after_forward`, through `backward` and `join`.
- Clipping is by the norm of the whole gradient, ours and torch's, and reaches every stream.
- A loss that is not finite on one rank skips the step on all of them.
- The state is spread as the parameters are. It loads into whole parameters, a whole state into spread ones, and
  torch.distributed.checkpoint saves and loads it.
- Refused: parameters of which only some are spread, gradients that FSDP keeps back, gradients in buffers.
"""

from __future__ import annotations

import copy
import functools
import re
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor

import dotkd
from optim_cases import assert_close
from parallel_cases import OPTIMIZERS, STEPS, Loop, Net, alone, part, train
from parallel_cases import losses_of as losses_of_outputs


def spread(group, reshard=True):
    """A network in three pieces, the last one without a piece of its own."""
    net, mesh = Net(), DeviceMesh.from_group(group, "cpu")
    for module in (net.body[0], net.projector, net):
        fully_shard(module, mesh=mesh, reshard_after_forward=reshard)
    return net


def whole(net):
    return [p.full_tensor().detach() for p in net.parameters()]


def run(rank, group, loop, reshard, torch_clips):
    net = spread(group, reshard)
    optimizer = loop.build(net.parameters())
    for _ in train(net, net, optimizer, loop, range(STEPS), rank, group.size()):
        if torch_clips:
            nn.utils.clip_grad_norm_(net.parameters(), torch_clips)
    assert all(
        isinstance(value, DTensor) for state in optimizer.state.values() for value in state.values() if value.dim()
    )
    return whole(net), optimizer.skipped_steps


@functools.cache
def expected(optimizer, clip=0.0, spoil=""):
    return alone(Loop(optimizer, clip=clip, spoil=spoil))


def check(ranks, count, loop, *, reshard=True, torch_clips=0.0):
    exact = expected(loop.optimizer, loop.clip or torch_clips, loop.spoil)
    for weights, skipped in ranks.run(run, count, loop, reshard, torch_clips):
        assert_close(weights, exact.weights)
        assert skipped == exact.skipped


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_ranks_equal_one_process(ranks, optimizer):
    check(ranks, 2, Loop(optimizer), reshard=optimizer != "nesterov")


@pytest.mark.parametrize("loop", [Loop("DOT", join=True), Loop("AdamW", clip=0.3)])
def test_four_ranks_some_with_empty_shards_equal_one_process(ranks, loop):
    check(ranks, 4, loop)


@pytest.mark.parametrize("optimizer", ["DOT", "AdamW"])
def test_clipping_is_by_the_norm_of_the_whole(ranks, optimizer):
    check(ranks, 2, Loop(optimizer, clip=0.3))
    check(ranks, 2, Loop(optimizer), torch_clips=0.3)


@pytest.mark.parametrize("optimizer", ["DOT", "AdamW"])
def test_a_loss_that_is_not_finite_on_one_rank_skips_the_step_on_all(ranks, optimizer):
    check(ranks, 2, Loop(optimizer, spoil="distill"))


def change_of_the_state(rank, group, loop):
    """Five steps; what follows after the state went spread -> whole -> spread, and through a checkpoint."""
    net = spread(group)
    optimizer = loop.build(net.parameters())
    for _ in train(net, net, optimizer, loop, range(5), rank, group.size()):
        pass
    single = Net()
    with torch.no_grad():
        for p, q in zip(single.parameters(), whole(net), strict=True):
            p.copy_(q)
    plain = loop.build(single.parameters())
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    finished = []
    for way in ("in memory", "on disk"):
        other = spread(group)
        other.load_state_dict(copy.deepcopy(net.state_dict()))
        restored = loop.build(other.parameters())
        if way == "in memory":
            restored.load_state_dict(copy.deepcopy(plain.state_dict()))
        else:
            folder = [tempfile.mkdtemp() if rank == 0 else ""]
            dist.broadcast_object_list(folder, src=0, group=group)
            saved = {"optimizer": get_optimizer_state_dict(net, optimizer)}
            dcp.save(saved, checkpoint_id=folder[0], process_group=group)
            into = {"optimizer": get_optimizer_state_dict(other, restored)}
            # A stream that has never reached a parameter has no buffer there to load.
            planner = dcp.DefaultLoadPlanner(allow_partial_load=True)
            dcp.load(into, checkpoint_id=folder[0], planner=planner, process_group=group)
            set_optimizer_state_dict(other, restored, into["optimizer"])
        for _ in train(other, other, restored, loop, range(5, STEPS), rank, group.size()):
            pass
        finished.append(whole(other))
    for _ in train(single, single, plain, loop, range(5, STEPS)):
        pass
    return [*finished, [p.detach() for p in single.parameters()]]


@pytest.mark.parametrize("loop", [Loop("three streams"), Loop("AdamW"), Loop("two groups")], ids=str)
def test_the_state_of_spread_and_of_whole_parameters_are_exchangeable(ranks, loop):
    for finished in ranks.run(change_of_the_state, 2, loop):
        for weights in finished:
            assert_close(weights, expected(loop.optimizer).weights)


def partly_spread(net, batch):
    projector = nn.Linear(7, 5).double()
    optimizer = dotkd.DOT([*net.parameters(), *projector.parameters()])
    losses = losses_of_outputs(net(batch.inputs), batch, optimizer.streams)
    optimizer.backward(**{**losses, "distill": losses["distill"] + projector.weight.sum()})


def kept_back(net, batch):
    net.set_requires_gradient_sync(False)
    optimizer = dotkd.DOT(net.parameters())
    optimizer.backward(**losses_of_outputs(net(batch.inputs), batch, optimizer.streams))


def in_buffers(net, batch):
    optimizer = dotkd.DOT(net.parameters(), gradients_in_buffers=True)
    optimizer.backward(**losses_of_outputs(net(batch.inputs), batch, optimizer.streams))


def the_older_fsdp(net, batch):
    wrapped = FullyShardedDataParallel(Net(), process_group=group_of(net), device_id=torch.device("cpu"))
    optimizer = dotkd.DOT(wrapped.parameters())
    optimizer.backward(**losses_of_outputs(wrapped(batch.inputs), batch, optimizer.streams))


def group_of(net):
    return net.head.weight.device_mesh.get_group()


REFUSALS = {
    the_older_fsdp: (TypeError, "expected torch.distributed.fsdp.fully_shard, got FullyShardedDataParallel"),
    partly_spread: (ValueError, "one device mesh, got some that are not sharded"),
    kept_back: (RuntimeError, "reaches no parameter.*set_requires_gradient_sync"),
    in_buffers: (RuntimeError, "gradients_in_buffers"),
}


def refusals(rank, group):
    outcomes = {}
    for case in REFUSALS:
        try:
            case(spread(group), part(0, rank, 2))
        except Exception as error:
            outcomes[case.__name__] = (type(error), str(error))
    return outcomes


def test_what_cannot_be_right_is_refused(ranks):
    for outcomes in ranks.run(refusals, 2):
        for case, (error, text) in REFUSALS.items():
            assert outcomes[case.__name__][0] is error
            assert re.search(text, outcomes[case.__name__][1])
