"""Several processes that carry out trainings one after the other, started once for all of them: a start is what costs.

As a script it is one of these processes: it reads a list of jobs, takes its part in each, and where a job fails writes
OUT/error-RANK.txt. A job is `{"out": ..., "config": {...}, "stop": [rank, step], "resume": bool}`, the last two of them
optional; `config` may be a list, one for each process. What each process holds in the end is in OUT/held-RANK.txt.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import torchvision_stubs

HERE = Path(__file__).parent


def environment(**more: str) -> dict[str, str]:
    """For a process that is to find this library and the models of `tiny_runs`, and that computes on one core."""
    paths = [str(HERE.parent / "src"), str(HERE), str(HERE / "cpu_torchvision"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1", **more}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train_together(count: int, jobs: list[dict], folder: Path) -> None:
    """Carry out the jobs in `count` processes; AssertionError with what they said where one of them does not end."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / f"jobs-{count}.json"
    listed.write_text(json.dumps(jobs))
    world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    logs = [(folder / f"rank-{rank}-of-{count}.log").open("w+") for rank in range(count)]
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(listed)],
            env=environment(**world, RANK=str(rank), LOCAL_RANK=str(rank), DOTKD_TIMEOUT="60"),
            stdout=logs[rank],
            stderr=subprocess.STDOUT,
        )
        for rank in range(count)
    ]
    codes = [process.wait(300) for process in started]
    for log in logs:
        log.seek(0)
    assert codes == [0] * count, "\n".join(log.read() for log in logs)
    for log in logs:
        log.close()


def error(out: Path, rank: int = 0) -> str:
    return (out / f"error-{rank}.txt").read_text()


def main(listed: Path) -> None:
    torchvision_stubs.install()
    from dotkd import Config, Trainer, distributed, sharding
    from tiny_runs import before_each_step, plain, signal_in

    with distributed.process_group():
        for job in json.loads(listed.read_text()):
            out, stop = Path(job["out"]), job.get("stop")
            config = job.get("config")
            config = config[distributed.rank()] if isinstance(config, list) else config
            stopping = nullcontext()
            if stop and stop[0] == distributed.rank():
                stopping = before_each_step(signal_in(stop[1], signal.SIGTERM))
            try:
                with stopping:
                    trainer = Trainer.resume(out) if job.get("resume") else Trainer(Config(**config), out)
                    trainer.fit()
                held = sharding.whole({**trainer.student.state_dict(), **trainer._stepper.extra.state_dict()})
                (out / f"held-{distributed.rank()}.txt").write_text(repr(plain(held)))
            except Exception as failure:
                out.mkdir(parents=True, exist_ok=True)
                (out / f"error-{distributed.rank()}.txt").write_text(f"{type(failure).__name__}: {failure}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
