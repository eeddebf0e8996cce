"""The contract of a command that torchrun starts (gloo, two processes on one machine).

- A process that is killed (SIGKILL) in the middle of an epoch ends all of them; torchrun --max-restarts starts the same
  words again, and the run goes on from its newest checkpoint to the very bits of a run that nothing happened to.
- One that hangs ends the run when DOTKD_TIMEOUT is over.
- SIGTERM to one process stops all after the same step, with a checkpoint and exit code 75, and the message once;
  `dotkd resume` under torchrun goes on to the same bits.
- A verb for one process refuses to be several; a wrong time-out is named. One process of torchrun's, too, goes on with
  its own run and refuses another's.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest

from dotkd import Trainer, distributed
from dotkd.checkpoint import load_latest
from dotkd.cli import failures, ranks
from dotkd.trainer import RunExists
from many_processes import environment, free_port, train_together
from tiny_runs import everything, given_teacher, tiny, vectors

STOP = 6  # of 4 steps in an epoch


def torchrun(*words: str, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launcher += ["--max-restarts", str(restarts), "-m", "dotkd"]
    env = {k: v for k, v in environment(DOTKD_TIMEOUT="60").items() if k not in ("RANK", "WORLD_SIZE")}
    return subprocess.run([*launcher, *words], env=env, capture_output=True, text=True, timeout=300)


def config(folder, number: int):
    options = {"step": STOP, "number": number, "rank": 1}
    changes = {"student": "tiny_runs:signalled", "student_options": options, "log_every": 1, "ema": 0.8}
    return tiny(vectors(folder), trainer="dot", checkpoint_every=3, **changes, **given_teacher(folder))


@pytest.fixture(scope="module")
def whole(home):
    """What runs of two processes leave to which nothing happens, by the signal that would have come."""
    runs = {number: home / f"whole-{number}" for number in (signal.SIGKILL, signal.SIGTERM)}
    train_together(2, [{"out": str(out), "config": config(home, n).model_dump()} for n, out in runs.items()], home)
    return {number: everything(out) for number, out in runs.items()}


def test_a_killed_process_costs_the_steps_since_the_last_checkpoint(home, whole):
    out, recipe = home / "killed", home / "killed.yaml"
    recipe.write_text(config(home, signal.SIGKILL).to_yaml())
    ended = torchrun("train", str(recipe), "--out", str(out), restarts=1)
    assert ended.returncode == 0, ended.stderr
    assert "resumed at 4" in ended.stderr
    assert ended.stdout.count("run folder") == 1
    assert everything(out) == whole[signal.SIGKILL]


def test_a_signal_to_one_stops_all_and_resume_goes_on(home, whole):
    out, recipe = home / "stopped", home / "stopped.yaml"
    recipe.write_text(config(home, signal.SIGTERM).to_yaml())
    ended = torchrun("train", str(recipe), "--out", str(out))
    told = f"SIGTERM at step {STOP}: saved; continue with: dotkd resume {out}"
    assert ended.stderr.count(told) == 1, ended.stderr
    reported = re.findall(r"^ +exitcode +: (-?\d+)", ended.stderr, re.MULTILINE)
    assert len(reported) >= 2  # torchrun may name the first of them twice
    assert set(reported) == {str(failures.INTERRUPTED)}
    assert load_latest(out / "checkpoints").step == STOP
    # In the file, so that the resumed run is not signalled in its turn.
    assert torchrun("resume", str(out), restarts=0).returncode == 0
    assert everything(out) == whole[signal.SIGTERM]


def test_a_process_that_hangs_ends_the_run_when_the_time_is_out(home):
    recipe = home / "hanging.yaml"
    recipe.write_text(config(home, signal.SIGSTOP).to_yaml())
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    words = [sys.executable, "-m", "dotkd", "train", str(recipe), "--out", str(home / "hanging")]
    first, second = (
        subprocess.Popen(
            words,
            env=environment(**world, RANK=str(rank), DOTKD_TIMEOUT="15", TORCHELASTIC_RESTART_COUNT="0"),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    )
    try:
        _, told = first.communicate(timeout=200)
    finally:
        second.kill()
        second.communicate()
    assert first.returncode == failures.FAILURE
    assert "dotkd: another process of this run ended or did not answer for 15 s (DOTKD_TIMEOUT sets that)" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("verb", ["compare", "eval"])
def test_other_verbs_are_for_one_process(monkeypatch, verb):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "size", lambda: 2)
    ranks.refuse_several("train")
    with pytest.raises(ValueError, match=f"`dotkd {verb}` is for one process, and was started as 2: start it without"):
        ranks.refuse_several(verb)


@pytest.mark.parametrize("text", ["soon", "0", "nan"])
def test_a_time_out_is_a_number_of_seconds(monkeypatch, text):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DOTKD_TIMEOUT", text)
    told = f"expected DOTKD_TIMEOUT to be a number of seconds > 0, got '{text}'"
    with pytest.raises(ValueError, match=told), distributed.process_group():
        pass


def test_one_process_of_torchrun_goes_on_with_its_own_run_alone(home, monkeypatch):
    given = tiny(vectors(home), trainer="dot", **given_teacher(home))
    Trainer(given, home / "alone").fit()
    with pytest.raises(RunExists, match="already holds a run"):
        Trainer(given, home / "alone")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert Trainer(given, home / "alone").fit()["steps"] == 8
    with pytest.raises(RunExists, match="already holds a run"):
        Trainer(given.replace(seed=1), home / "alone")
