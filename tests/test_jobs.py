"""Runs in worker processes.

The contract:
- every job ends in one word; a job whose need did not end in "done" is blocked, one whose worker dies has failed and
  the reason is the last line it printed or the signal that took it, and no other job is touched by that;
- after a signal no job starts, each that runs gets one SIGTERM, a second signal kills; nothing is then called failed;
- workers are spread evenly over the places, and each sees the environment variables of its own from its first moment;
- what jobs print is in their logs alone, and a log that would be empty does not exist;
- workers of a parent that vanished stop by themselves, and hold the lock until they have.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dotkd.evidence.jobs import BLOCKED, FAILED, INTERRUPTED, Ending, Job, StopFlag, run_jobs
from dotkd.evidence.lock import alone, shared


def do(job: Job) -> str:
    """The word in the config, after doing what it asks for."""
    for _ in range(job.config.get("sleep", 0)):
        time.sleep(0.01)
    if job.config.get("print"):
        print(job.config["print"])
    if job.config.get("raise"):
        raise ValueError(job.config["raise"])
    if job.config.get("signal"):
        os.kill(os.getpid(), job.config["signal"])
    (job.directory / job.name).write_text(str(os.getpid()))
    return job.config.get("word", "done")


def save_at_sigterm(job: Job) -> str:
    """As a trainer: SIGTERM is a wish, fulfilled at the next step."""
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    (job.directory / f"{job.name}-began").touch()
    while not asked:
        time.sleep(0.01)
    time.sleep(0.1)
    (job.directory / f"{job.name}-saved").write_text(str(len(asked)))
    signal.signal(signal.SIGTERM, before)
    return INTERRUPTED


def never_end(job: Job) -> str:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (job.directory / f"{job.name}-began").touch()
    while True:
        time.sleep(0.01)


def job(folder: Path, name: str, needs: str | None = None, **config: object) -> Job:
    return Job(name, folder, config, folder / "logs" / f"{name}.log", needs=needs)


def test_jobs_end_each_in_its_own_way(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    jobs = [
        job(tmp_path, "first", sleep=20),
        job(tmp_path, "needs", needs="first"),
        job(tmp_path, "bad", **{"raise": "of this value"}),
        job(tmp_path, "blocked", needs="bad"),
        job(tmp_path, "killed", signal=9),
        job(tmp_path, "loud", print="hello"),
        job(tmp_path, "word", word="diverged"),
    ]
    ended: list[str] = []
    endings = run_jobs(jobs, do, workers=2, flag=StopFlag(), ended=lambda job, ending: ended.append(job.name))
    assert endings == {
        "first": Ending("done"),
        "needs": Ending("done"),
        "bad": Ending(FAILED, "ValueError: of this value"),
        "blocked": Ending(BLOCKED, "it needs bad, which failed"),
        "killed": Ending(FAILED, "its process was ended by SIGKILL"),
        "loud": Ending("done"),
        "word": Ending("diverged"),
    }
    assert sorted(ended) == sorted(endings)
    assert ended.index("first") < ended.index("needs")
    logs = {path.stem: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert logs["loud"] == "hello\n"
    assert "Traceback" in logs["bad"]
    assert "first" not in logs
    assert capfd.readouterr() == ("", "")


def test_one_worker_is_reused(tmp_path: Path):
    jobs = [job(tmp_path, "a"), job(tmp_path, "b")]
    run_jobs(jobs, do, workers=1, flag=StopFlag())
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() != str(os.getpid())


def test_signal_lets_each_running_job_save_once(tmp_path: Path):
    jobs = [job(tmp_path, name) for name in ("a", "b", "c")]
    flag = StopFlag()

    def tick() -> None:
        if not flag.count and all((tmp_path / f"{name}-began").exists() for name in ("a", "b")):
            os.kill(os.getpid(), signal.SIGTERM)

    with flag.caught():
        endings = run_jobs(jobs, save_at_sigterm, workers=2, flag=flag, tick=tick)
    assert endings == dict.fromkeys(("a", "b", "c"), Ending(INTERRUPTED))
    assert [(tmp_path / f"{name}-saved").read_text() for name in ("a", "b")] == ["1", "1"]
    assert not (tmp_path / "c-began").exists()


def test_second_signal_kills(tmp_path: Path):
    flag = StopFlag()

    def tick() -> None:
        if (tmp_path / "a-began").exists() and flag.count < 2:
            os.kill(os.getpid(), signal.SIGINT)

    with flag.caught():
        endings = run_jobs([job(tmp_path, "a")], never_end, workers=1, flag=flag, tick=tick)
    assert endings == {"a": Ending(INTERRUPTED)}


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopFlag().caught():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def place(job: Job) -> str:
    """The place of the worker, told apart by process: who takes a second job has had its place from the first."""
    (job.directory / job.name).write_text(f"{os.getpid()} {os.environ.get('PLACE')}")
    while len(list(job.directory.iterdir())) < job.config["together"]:  # so that each worker gets one
        time.sleep(0.01)
    return "done"


def test_workers_are_spread_over_the_places(tmp_path: Path):
    (tmp_path / "runs").mkdir()
    jobs = [Job(str(k), tmp_path / "runs", {"together": 3}, tmp_path / "logs" / str(k)) for k in range(3)]
    endings = run_jobs(jobs, place, workers=3, flag=StopFlag(), places=[{"PLACE": "a"}, {"PLACE": "b"}])
    assert set(endings.values()) == {Ending("done")}
    found = [(tmp_path / "runs" / job.name).read_text().split() for job in jobs]
    assert [where for _, where in found] == ["a", "b", "a"]
    assert len({process for process, _ in found}) == 3
    assert "PLACE" not in os.environ


def test_a_worker_that_died_is_replaced_where_it_was(tmp_path: Path):
    (tmp_path / "runs").mkdir()
    config = {"together": 2}
    jobs = [Job(str(k), tmp_path / "runs", config, tmp_path / "logs" / str(k)) for k in range(2)]
    dead = Job("dead", tmp_path / "runs" / "missing", config, tmp_path / "logs" / "dead")  # nowhere to write to
    endings = run_jobs([dead, *jobs], place, workers=2, flag=StopFlag(), places=[{"PLACE": "a"}, {"PLACE": "b"}])
    assert [endings[name].outcome for name in ("dead", "0", "1")] == [FAILED, "done", "done"]
    assert sorted((tmp_path / "runs" / job.name).read_text().split()[1] for job in jobs) == ["a", "b"]


def test_no_workers_are_refused():
    with pytest.raises(ValueError, match="expected at least one worker, got 0"):
        run_jobs([], do, workers=0, flag=StopFlag())


ORPHANS = """
import sys
from pathlib import Path
from dotkd.evidence.jobs import Job, StopFlag, run_jobs
from test_jobs import save_at_sigterm
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run_jobs([Job("a", folder, {}, folder / "log")], save_at_sigterm, workers=1, flag=StopFlag(), held=folder / "lock")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL, no flock")
def test_orphans_save_and_hold_the_lock_until_they_have(tmp_path: Path):
    script = tmp_path / "parent.py"
    script.write_text(ORPHANS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment)
    deadline = time.monotonic() + 30
    while not (tmp_path / "a-began").exists():
        assert time.monotonic() < deadline, "the worker did not begin"
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    with alone(tmp_path / "lock", patience=30):
        assert (tmp_path / "a-saved").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
def test_lock_is_for_one_comparison(tmp_path: Path):
    waited: list[bool] = []
    with (
        alone(tmp_path / "lock"),
        shared(tmp_path / "lock"),
        pytest.raises(ValueError, match="is in use by a comparison that has not ended"),
        alone(tmp_path / "lock", patience=0.1, waiting=lambda: waited.append(True)),
    ):
        pass
    assert waited == [True]
    with alone(tmp_path / "lock", patience=0):
        pass


def test_a_job_is_prepared_when_it_is_handed_out(tmp_path: Path):
    heard: list[str] = []

    def prepared(job: Job) -> Job:
        heard.append(f"prepare {job.name}")
        return job._replace(config={"word": f"{job.name} after {len(heard)}"})

    endings = run_jobs(
        [job(tmp_path, "a"), job(tmp_path, "b")],
        do,
        workers=1,
        flag=StopFlag(),
        prepared=prepared,
        ended=lambda job, ending: heard.append(f"end {job.name}: {job.config['word']}"),
    )
    assert heard == ["prepare a", "end a: a after 1", "prepare b", "end b: b after 3"]
    assert [ending.outcome for ending in endings.values()] == ["a after 1", "b after 3"]
