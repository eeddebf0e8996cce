"""The contract of loops that could go wrong on several ranks without an error.

- Unknown to the optimizer, DDP averages one stream and leaves the other local: the ranks drift apart. So a loop that
  nobody prepared is routed right at its first backward pass, or refused with the line to add; Accelerate's is too.
- Refused with the reason: clipping, rescaling and GradScaler on averaged directions; a step whose gradients were never
  averaged; a state of momenta that differ between ranks; parameters outside of DDP that differ; DDP modules that cannot
  be served. Of these, none has changed a parameter.
- A process group without DDP changes nothing: the processes may be independent runs.
"""

from __future__ import annotations

import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dotkd
from optim_cases import assert_close
from parallel_cases import STEPS, Loop, Net, alone, losses_of, part, weights, wrapped


def a_plain_loop(rank, group, looks):
    """What a user writes who knows nothing of this, alone or in a group. `looks` False plants the fault."""
    net = Net()
    net = nn.Sequential(net.body, net.head)
    count = group.size() if group else 1
    model = DistributedDataParallel(net, process_group=group) if group else net
    optimizer = dotkd.DOT(net.parameters(), lr=0.05, weight_decay=0.01)
    optimizer._looked_for_ranks = not looks
    for step in range(20):
        batch = part(step, rank, count)
        logits = model(batch.inputs)
        distill = F.kl_div(logits.log_softmax(1), batch.teacher.softmax(1), reduction="batchmean")
        optimizer.backward(task=F.cross_entropy(logits, batch.targets), distill=distill)
        optimizer.step()
        optimizer.zero_grad()
    return weights(net)


def test_a_plain_loop_is_routed_right(ranks):
    for ours in ranks.run(a_plain_loop, 2, True):
        assert_close(ours, a_plain_loop(0, None, True))


def test_without_the_routing_the_ranks_would_drift_apart(ranks):
    first, second = ranks.run(a_plain_loop, 2, False)
    assert max(float((p - q).abs().max()) for p, q in zip(first, second, strict=True)) > 1e-3


def by_accelerate(rank, group):
    from accelerate import Accelerator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # accelerate's own, about the CPU
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        assert accelerator.num_processes == group.size()
        net = Net()
        streams = dotkd.DOT(net.parameters(), lr=0.05, weight_decay=0.01)
        model, optimizer = accelerator.prepare(net, streams)
        for step in range(STEPS):
            for index in range(2):
                batch = part(step, rank * 2 + index, 2 * group.size())
                with accelerator.accumulate(model):
                    accelerator.backward(streams.join(**losses_of(model(batch.inputs), batch, streams.streams)))
                    optimizer.step()
                    optimizer.zero_grad()
    return weights(net)


def test_accelerate_with_join_and_accumulation_is_routed_right(ranks):
    pytest.importorskip("accelerate")
    for ours in ranks.run(by_accelerate, 4):
        assert_close(ours, alone(Loop()).weights)


def no_ddp(rank, group):
    net = Net()
    optimizer = dotkd.DOT(net.parameters(), lr=0.05)
    batch = part(rank, 0, 1)
    optimizer.backward(**losses_of(net(batch.inputs), batch, optimizer.streams))
    optimizer.step()
    return weights(net)


def test_processes_without_ddp_are_left_alone(ranks):
    first, second = ranks.run(no_ddp, 2)
    assert not torch.equal(first[0], second[0])


def clip(net, model, optimizer, losses):
    optimizer.backward(**losses())
    optimizer.clip_grad_norm_(1.0)


def clip_by_torch(net, model, optimizer, losses):
    optimizer.backward(**losses())
    nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
    optimizer.step()


def scale(net, model, optimizer, losses):
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(optimizer.join(**losses())).backward()
    scaler.step(optimizer)


def scale_and_unscale(net, model, optimizer, losses):
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(optimizer.join(**losses())).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)


def never_averaged(net, model, optimizer, losses):
    with model.no_sync():
        optimizer.backward(**losses())
    optimizer.step()


def averaged_too_early(net, model, optimizer, losses):
    optimizer.backward(**losses())
    never_averaged(net, model, optimizer, losses)


def around_ddp(net, model, optimizer, losses):
    optimizer.backward(**losses_of(net(part(0, 0, 2).inputs), part(0, 0, 2), optimizer.streams))
    optimizer.step()


def new_momentum(net, model, optimizer, losses):
    optimizer.backward(**losses())
    optimizer.param_groups[0]["momentum"] = 0.8
    optimizer.step()


def told_too_late(net, model, optimizer, losses):
    optimizer.backward(**losses())
    optimizer.distribute(model)


def told_of_something_else(net, model, optimizer, losses):
    optimizer.distribute(net)


def told_nonsense(net, model, optimizer, losses):
    optimizer.distribute(model, reduce="gradient")


def told_of_nothing(net, model, optimizer, losses):
    optimizer.distribute()


def not_linear(net, model, optimizer, losses):
    dotkd.DOTAdamW(net.parameters()).distribute(model, reduce="momenta")


def foreign_parameters(net, model, optimizer, losses):
    dotkd.DOT(net.body.parameters()).distribute(model)


def in_buffers(net, model, optimizer, losses):
    dotkd.DOT(net.parameters(), gradients_in_buffers=True).backward(**losses())


def static_graph(net, model, optimizer, losses):
    optimizer.distribute(DistributedDataParallel(net, process_group=model.process_group, static_graph=True))


def wrapped_twice(net, model, optimizer, losses):
    optimizer.distribute(model, DistributedDataParallel(net, process_group=model.process_group))


def another_hook(net, model, optimizer, losses):
    other = DistributedDataParallel(net, process_group=model.process_group)
    other.register_comm_hook(None, lambda state, bucket: None)
    optimizer.distribute(other)


REFUSALS = {
    clip: (RuntimeError, 'clipped or rescaled.*reduce="gradients"'),
    clip_by_torch: (RuntimeError, 'clipped or rescaled.*reduce="gradients"'),
    scale: (RuntimeError, 'clipped or rescaled.*reduce="gradients"'),
    scale_and_unscale: (RuntimeError, 'clipped or rescaled.*reduce="gradients"'),
    never_averaged: (RuntimeError, "not averaged over the ranks.*outside no_sync"),
    averaged_too_early: (RuntimeError, "not averaged over the ranks.*outside no_sync"),
    around_ddp: (RuntimeError, "not averaged over the ranks.*through the DistributedDataParallel module"),
    new_momentum: (RuntimeError, "other than `lr` was changed between"),
    told_too_late: (RuntimeError, "call it before, or zero_grad"),
    told_of_something_else: (TypeError, "expected a DistributedDataParallel module, got Net"),
    told_nonsense: (ValueError, "expected `reduce` 'momenta' or 'gradients', got 'gradient'"),
    told_of_nothing: (ValueError, "at least one DistributedDataParallel module, got none"),
    not_linear: (ValueError, "DOTAdamW, whose step is not linear.*got 'momenta'"),
    foreign_parameters: (ValueError, "'head.weight'.* is not in this optimizer"),
    in_buffers: (RuntimeError, "gradients_in_buffers"),
    static_graph: (ValueError, "expected DistributedDataParallel.static_graph=False"),
    wrapped_twice: (ValueError, "'body.0.weight' is in two"),
    another_hook: (ValueError, "without a communication hook"),
}


def refusals(rank, group):
    """Every case in turn: what it raised, and whether a parameter changed."""
    outcomes = {}
    for case in REFUSALS:
        net, batch = Net(), part(0, rank, 2)
        model, optimizer = wrapped(net, group, Loop())
        before = weights(net)

        def losses(model=model, optimizer=optimizer, batch=batch):
            return losses_of(model(batch.inputs), batch, optimizer.streams)

        try:
            case(net, model, optimizer, losses)
            outcomes[case.__name__] = (None, "nothing was raised", True)
        except Exception as error:
            same = all(torch.equal(p, q) for p, q in zip(weights(net), before, strict=True))
            outcomes[case.__name__] = (type(error), str(error), same)
    return outcomes


@pytest.fixture(scope="module")
def refused(ranks):
    return ranks.run(refusals, 2)


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_on_all_ranks_before_a_parameter_changes(refused, case):
    error, text = REFUSALS[case]
    for outcomes in refused:
        raised, message, same = outcomes[case.__name__]
        assert raised is error, message
        assert re.search(text, message), message
        assert same
