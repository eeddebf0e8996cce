"""What runs at the same time. The contract:

- A teacher on a stream of its own is started before the student, waited for after it, and told of to the allocator; on
  a CPU, and where it learns, it runs after the student as ever.
- On a GPU nothing between two lines of the log makes the host wait.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import dotkd
from dotkd import Trainer
from dotkd.metrics import Means
from dotkd.side_stream import SideStream, tensors_in
from dotkd.stepper import Stepper

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

CUDA = torch.device("cuda")


# --- the teacher's stream


class Streams:
    """Notes in order what is done with streams, in place of torch.cuda's."""

    def __init__(self, monkeypatch):
        self.done = []
        self.main, self.side = self._stream("main"), self._stream("side")
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.main)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.side)
        monkeypatch.setattr(torch.cuda, "stream", self._within)
        note = self.done.append
        monkeypatch.setattr(
            Tensor, "record_stream", lambda tensor, stream: note(f"{len(tensor)} used by {stream.name}")
        )

    def _stream(self, name):
        return SimpleNamespace(name=name, wait_stream=lambda other: self.done.append(f"{name} waits for {other.name}"))

    def _within(self, stream):
        done = self.done

        class Within:
            def __enter__(self):
                done.append(f"on {stream.name}")

            def __exit__(self, *_):
                done.append("back")

        return Within()

    def input(self):
        """Stands for a tensor on a GPU."""
        return SimpleNamespace(
            device=CUDA, record_stream=lambda stream: self.done.append(f"input used by {stream.name}")
        )


def test_work_on_a_side_stream_is_fenced_on_both_sides(monkeypatch):
    streams, beside = Streams(monkeypatch), SideStream()
    result = (torch.empty(3, device="meta"), [torch.empty(4, device="meta")], torch.empty(5))

    def work():
        streams.done.append("work")
        return result

    for _ in range(2):
        joined = beside.start(work, [streams.input()])
        begun = ["side waits for main", "on side", "work", "back", "input used by side"]
        assert streams.done == begun
        assert joined() is result
        assert streams.done == [*begun, "main waits for side", "3 used by main", "4 used by main"]
        streams.done.clear()


def test_tensors_are_found_wherever_they_are():
    first, second = torch.empty(1, device="meta"), torch.empty(2, device="meta")
    found = tensors_in({"a": (first, None, 3), "b": [second, torch.empty(1)], "c": "text"})
    assert [id(tensor) for tensor in found] == [id(first), id(second)]


@pytest.mark.parametrize("method", ["kd", "at"])
@pytest.mark.parametrize("learns", [(), ("head",)])
def test_a_teacher_runs_beside_the_student_unless_it_learns(monkeypatch, method, learns):
    order = []

    class Net(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.body, self.head, self.name = nn.Conv2d(3, 4, 1), nn.Linear(4, 3), name

        def forward(self, inputs):
            order.append(self.name)
            return self.head(self.body(inputs).mean((2, 3)))

    torch.manual_seed(0)
    student, teacher = Net("student"), Net("teacher")
    options = {"student_features": ["body"], "teacher_features": ["body"], "example": torch.randn(2, 3, 4, 4)}
    distiller = dotkd.Distiller(student, teacher, method=method, teacher_learns=learns, **options)
    given = torch.randn(5, 3, 4, 4), torch.randint(3, (5,))
    order.clear()
    expected = distiller(*given)
    assert order == ["student", "teacher"]
    started = []

    def start(self, work, inputs):
        started.append(list(inputs))
        result = work()
        return lambda: result

    monkeypatch.setattr(SideStream, "start", start)
    distiller.overlap()
    order.clear()
    found = distiller(*given)
    assert order == (["student", "teacher"] if learns else ["teacher", "student"])
    assert len(started) == (0 if learns else 1)
    assert not started or all(a is b for a, b in zip(started[0], given, strict=True))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_on_a_cpu_a_side_stream_changes_nothing():
    called = []
    joined = SideStream().start(lambda: called.append(1), [torch.zeros(2)])
    assert called == []
    joined()
    assert called == [1]


# --- on a GPU

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@GPU
@pytest.mark.parametrize("method", ["kd", "at", "crld"])
def test_a_teacher_on_its_own_stream_gives_the_same_bits(pictures, tmp_path, monkeypatch, method):
    config = pictures.replace(method=method, device="cuda", precision="fp32")
    Trainer(config, tmp_path / "beside").fit()
    monkeypatch.setattr(dotkd.Distiller, "overlap", lambda distiller: None)
    Trainer(config, tmp_path / "after").fit()
    for name, value in load_file(tmp_path / "after" / "student.safetensors").items():
        assert torch.equal(load_file(tmp_path / "beside" / "student.safetensors")[name], value), name


@GPU
@pytest.mark.parametrize("changes", [{}, {"precision": "fp16", "clip_norm": 0.5}, {"mix": "mixup"}, {"method": "crld"}])
def test_twenty_steps_of_the_loop_wait_for_nothing(pictures, tmp_path, monkeypatch, changes):
    """Between the first line of the log and the last step before the next: batches, steps, the average and all."""
    config = pictures.replace(device="cuda", batch_size=4, log_every=100, accumulate=2, **changes)
    read, step, steps = Means.read, Stepper.step, []

    def read_freely(means):
        torch.cuda.set_sync_debug_mode("default")
        return read(means)

    def watched(stepper, batch, number, **options):
        step(stepper, batch, number, **options)
        steps.append(number)
        # The first step makes what is made once; the last is followed by a line of the log and an evaluation.
        torch.cuda.set_sync_debug_mode("error" if 0 < number < 21 else "default")

    monkeypatch.setattr(Means, "read", read_freely)
    monkeypatch.setattr(Stepper, "step", watched)
    try:
        Trainer(config, tmp_path / "run").fit()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps) == 24
