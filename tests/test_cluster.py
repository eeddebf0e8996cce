"""The contract of examples/cluster/, as far as one machine without Slurm can show it: srun, scontrol and scancel are
scripts that stand for the real ones.

- slurm.sh is sound shell, and starts torchrun on every node with the words it was given: what it composes is run once.
- At SIGUSR1 (the time is nearly up) the job's steps get SIGTERM; when they have saved, the job is requeued and ends
  with 75. A run that ends meanwhile is not requeued, and a failure keeps its exit code.
- ray_train.py trains with two workers, where Ray is installed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from many_processes import environment, free_port

CLUSTER = Path(__file__).parents[1] / "examples" / "cluster"
RUN = ["digits", "epochs=1", "teacher_epochs=1", "threads=1", "device=cpu", "batch_size=256"]
FAKES = {
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" >> "$CALLS"; fi',
    "scancel": 'echo "$@" >> "$CALLS"; kill -TERM "$(cat "$CALLS.pid")"',
    "srun": 'echo "$@" >> "$CALLS"; echo $$ > "$CALLS.pid"; trap "exit $AT_TERM" TERM; while :; do sleep 0.05; done',
}


@pytest.fixture
def job(tmp_path):
    """Start slurm.sh among the fakes, with other ones in their place where given."""

    def start(*words, at_term=1, number=7, **fakes):
        for name, body in {**FAKES, **fakes}.items():
            path = tmp_path / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/bash\n{body}\n")
            path.chmod(0o755)
        paths = [str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        slurm = {"SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_ID": str(number), "SLURM_JOB_NUM_NODES": "1"}
        env = environment(PATH=os.pathsep.join(paths), CALLS=str(tmp_path / "calls"), AT_TERM=str(at_term), **slurm)
        started = subprocess.Popen(
            ["bash", str(CLUSTER / "slurm.sh"), *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        return started

    return start


def calls(folder):
    return (folder / "calls").read_text().splitlines()


def until(there):
    for _ in range(600):
        if there():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come about in 30 seconds")


def test_the_script_is_sound():
    assert subprocess.run(["bash", "-n", str(CLUSTER / "slurm.sh")], check=False).returncode == 0


def test_what_it_composes_is_a_run(job, tmp_path):
    ended = job(*RUN, "--out", str(tmp_path / "run"), number=free_port() % 10000, srun='shift; "$@"')
    _, stderr = ended.communicate(timeout=300)
    assert ended.returncode == 0, stderr.decode()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "done"


@pytest.mark.parametrize(("at_term", "code"), [(1, 75), (0, 0)])
def test_when_its_time_is_up_it_saves_and_is_requeued(job, tmp_path, at_term, code):
    started = job("digits", "a key=with space", "--out", "runs/x", at_term=at_term)
    until(lambda: (tmp_path / "calls.pid").exists())
    until(lambda: (tmp_path / "calls.pid").read_text().strip())
    started.send_signal(signal.SIGUSR1)
    started.communicate(timeout=60)
    assert started.returncode == code
    told = "--nnodes 1 --nproc-per-node 1 --max-restarts 3 --rdzv-backend c10d --rdzv-endpoint localhost:20007"
    told += " --rdzv-id 7 -m dotkd train digits a key=with space --out runs/x"
    requeued = ["requeue 7"] if code else []
    assert calls(tmp_path) == [f"--kill-on-bad-exit=1 torchrun {told}", "--signal=TERM 7", *requeued]


def test_a_failure_keeps_its_exit_code(job, tmp_path):
    started = job("digits", srun='echo "$@" >> "$CALLS"; exit 3')
    started.communicate(timeout=60)
    assert started.returncode == 3
    assert "requeue 7" not in calls(tmp_path)


def test_ray_runs_the_trainer(tmp_path):
    pytest.importorskip("ray")
    out = tmp_path / "run"
    words = [sys.executable, str(CLUSTER / "ray_train.py"), *RUN, "--workers", "2", "--out", str(out)]
    ended = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert json.loads((out / "summary.json").read_text())["processes"] == 2
