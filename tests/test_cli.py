"""The command line.

The contract:
- a verb's help has an example, help imports neither torch nor matplotlib, and the exit codes are in it;
- what is wrong with the input is one message on stderr without a traceback, exit code 2, before anything is written;
  a bug keeps its traceback, and DOTKD_TRACEBACK=1 or --debug shows every one;
- a run that is stopped ends with 75 and its `resume` gives the bits of a run that was not; one that diverges with 3;
- `compare` trains one teacher, skips what is finished, continues the rest, and refuses a folder of another comparison;
  its numbers do not depend on --jobs;
- results go to stdout, progress to stderr, without control codes in a pipe.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import tiny_runs
from dotkd.cli import app, conduct, failures
from dotkd.cli.campaign import make_plan
from dotkd.config import Config
from dotkd.evidence.jobs import BLOCKED, Ending, Job, Work

Tell = Callable[..., Any]

VERBS = ("demo", "train", "resume", "compare", "tune", "eval", "export", "recipes", "methods", "models", "cache")
TINY = ("teacher=mlp", "student=mlp", "student_options={width: 8}", "teacher_options={width: 8}", "epochs=2")
TINY += ("batch_size=24", "threads=1", "device=cpu", "log_every=2")


def dotkd(*words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command, run in this process."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return f"data={tiny_runs.vectors(tmp_path)}"


def refused(*words: object, message: str) -> None:
    code, out, err = dotkd(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


# --- help and errors


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(verb: str):
    code, out, _ = dotkd(verb, "--help")
    assert code == 0
    assert f"Example:\n    dotkd {verb}" in out


def test_help_and_version_need_no_torch():
    code = (
        "import sys\nfrom dotkd.cli import app\n"
        "for words in (['--help'], ['train', '--help'], ['--version']):\n"
        "    try: app(words)\n"
        "    except SystemExit as end: assert not end.code\n"
        "sys.exit(bool({'torch', 'scipy', 'matplotlib', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for number in ("0", "1", "2", "3", "75", "130"):
        assert f"\n    {number} " in done.stdout


def test_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "dotkd", "trian"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "No such command 'trian'. Did you mean 'train'?" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "mnist1"], "did you mean mnist1d?"),
        (["train", "digits", "lrr=0.1", "epochs=0"], "lrr: unknown key, got 0.1; did you mean lr?\nepochs: expected"),
        (["train", "imagefolder", "data=imagefolder:nowhere"], "there is no nowhere"),
        (["resume", "nowhere"], "nowhere holds no run: it has no config.yaml"),
        (["eval", "nowhere"], "nowhere holds no run: it has no config.yaml"),
        (["export", "nowhere"], "nowhere holds no run: it has no config.yaml"),
        (["export", "nowhere", "--format", "onx"], "one of safetensors, onnx, got 'onx'; did you mean 'onnx'?"),
        (["export", "nowhere", "--format", ","], "expected --format to name some of safetensors, onnx, got ','"),
        (["recipes", "digit"], "did you mean digits?"),
        (["demo", "--data", "digit"], "expected --data to be one of mnist1d, digits, got 'digit'"),
        (["compare", "digits", "--trainers", "sgd,dott"], "got 'dott'; did you mean 'dot'?"),
        (["compare", "digits", "--methods", "kdd"], "got 'kdd'; did you mean 'kd'?"),
        (["compare", "digits", "--seeds", "0"], "expected --seeds of at least 1, got 0"),
        (["compare", "digits", "--jobs", "0"], "expected --jobs of at least 1, got 0"),
        (["compare", "digits", "trainer=dot"], "trainer is what the cells differ in: give it as --trainers"),
        (["compare", "digits", "delta=0.2"], "delta: expected"),
        (["compare", "digits", "data=arrays:nowhere.npz"], "there is no nowhere.npz"),
        (["compare", "digits", "teacher_weights=nowhere.pt"], "no weights at nowhere.pt"),
    ],
)
def test_wrong_input_is_one_message(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    refused(*words, message=message)
    assert list(tmp_path.iterdir()) == []


def test_traceback_is_shown_on_request(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="did you mean mnist1d"):
        dotkd("--debug", "train", "mnist1")
    monkeypatch.setenv("DOTKD_TRACEBACK", "1")
    with pytest.raises(ValueError, match="did you mean mnist1d"):
        dotkd("train", "mnist1")


def in_a_module(name: str, source: str) -> BaseException:
    """What `source` raises as part of a module of that name."""
    with pytest.raises(BaseException) as caught:
        exec(compile(source, f"{name}.py", "exec"), {"__name__": name})
    return caught.value


def test_a_bug_keeps_its_traceback():
    own = "dotkd.somewhere"
    assert failures.exit_code(in_a_module(own, "raise ValueError('rule')")) == failures.WRONG_INPUT
    assert failures.exit_code(in_a_module(own, "int('x')")) is None
    assert failures.exit_code(in_a_module(own, "None.attribute")) is None
    assert failures.exit_code(in_a_module(own, "raise RuntimeError('protocol')")) is None
    assert failures.exit_code(in_a_module("users_model", "raise ValueError('theirs')")) is None
    assert failures.exit_code(in_a_module(own, "raise ModuleNotFoundError('the extra')")) == failures.FAILURE
    assert failures.exit_code(in_a_module(own, "import no_such_module")) is None
    assert failures.exit_code(in_a_module("os", "open('/no/such/file')")) == failures.WRONG_INPUT
    assert failures.exit_code(in_a_module("os", "raise OSError(28, 'No space left', '/x')")) == failures.FAILURE


def test_ctrl_c_before_anything_is_saved():
    with pytest.raises(typer.Exit) as caught, failures.reported(debug=False):
        raise KeyboardInterrupt
    assert caught.value.exit_code == failures.NOTHING_SAVED


# --- train, resume, eval


def test_train_leaves_a_run_and_refuses_its_folder(source: str, tmp_path: Path):
    code, out, err = dotkd("train", "digits", source, *TINY, "--out", "a run ü")
    assert code == 0
    summary = json.loads((tmp_path / "a run ü" / "summary.json").read_text())
    assert f"test accuracy {100 * summary['test_accuracy']['val_selected']:.2f} %" in out
    assert "run folder: a run ü" in out
    assert "epoch   2" in err
    assert "\x1b" not in out + err
    refused("train", "digits", source, *TINY, "--out", "a run ü", message="already holds a run")


def test_train_names_its_folder_by_recipe_trainer_and_seed(source: str, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("recipe: digits\nseed: 4\n")
    code, _, _ = dotkd("train", "mine.yaml", source, *TINY, "trainer=sgd", "epochs=1")
    assert code == 0
    assert (tmp_path / "runs" / "mine-sgd-seed4" / "summary.json").is_file()


def test_without_validation_nothing_is_selected_and_the_last_epoch_is_told(source: str, tmp_path: Path):
    code, out, err = dotkd("train", "digits", *TINY, "batch_size=512", "validation=0", "--out", "run")
    assert code == 0
    last = json.loads((tmp_path / "run" / "summary.json").read_text())["test_accuracy"]["last"]
    assert out.startswith(f"test accuracy {100 * last:.2f} % (last epoch); teacher ")
    (told,) = [line for line in err.splitlines() if line.startswith("epoch   2") and " distill " in line]
    assert f" test {last:.1%}" in told
    assert " val " not in err
    refused("eval", "run", "--split", "val", message="no val split")


def test_stopped_run_says_how_to_continue_and_does(source: str, tmp_path: Path):
    words = ("train", "digits", source, *TINY, "student=tiny_runs:dropout", "student_options={}")
    assert dotkd(*words, "--out", "whole")[0] == 0
    # The hook counts the steps of such models alone; the teacher is none of them.
    with tiny_runs.before_each_step(tiny_runs.signal_in(2, signal.SIGTERM)):
        code, out, err = dotkd(*words, "--out", "stopped")
    assert (code, out) == (75, "")
    assert "continue with: dotkd resume stopped" in err
    code, out, _ = dotkd("resume", "stopped")
    assert code == 0
    assert "run folder: stopped" in out
    whole, resumed = (tmp_path / name / "student.safetensors" for name in ("whole", "stopped"))
    assert whole.read_bytes() == resumed.read_bytes()
    code, out, err = dotkd("resume", "stopped")
    assert code == 0
    assert "there is nothing to continue" in err


def test_stopped_teacher_names_the_run_to_resume(source: str, tmp_path: Path):
    words = ("train", "digits", source, *TINY, "teacher=tiny_runs:smooth", "teacher_options={}")
    with tiny_runs.before_each_step(tiny_runs.signal_in(2, signal.SIGINT)):
        code, _, err = dotkd(*words, "--out", "stopped")
    assert code == 75
    assert err.strip().endswith("continue with: dotkd resume stopped")
    assert dotkd("resume", "stopped")[0] == 0


def test_diverged_run_ends_with_3(source: str, tmp_path: Path):
    given = tiny_runs.given_teacher(tmp_path)
    words = (source, *TINY, f"teacher_weights={given['teacher_weights']}", "teacher_options={width: 16, depth: 1}")
    faulty = ("student=tiny_runs:faulty", "student_options={}", "max_skips=2", "log_every=1")
    code, out, err = dotkd("train", "digits", *words, *faulty, "--out", "run")
    assert (code, out) == (3, "")
    assert "run diverged: " in err
    assert dotkd("resume", "run")[0] == 3


def test_eval_repeats_the_summary(source: str, tmp_path: Path):
    dotkd("train", "digits", source, *TINY, "--out", "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    accuracy = f"accuracy {100 * summary['test_accuracy']['last']:.2f} %"
    code, out, _ = dotkd("eval", "run")
    assert code == 0
    assert f"{accuracy}, task loss {summary['losses']['test']['task']:.4g}, " in out
    assert f"calibration error {summary['test_calibration_error']:.4f}, n = {tiny_runs.TEST}" in out
    assert accuracy in dotkd("eval", "run", "--data", source.removeprefix("data="))[1]
    assert f"n = {tiny_runs.VAL}" in dotkd("eval", "run", "--split", "val")[1]
    refused("eval", "run", "--data", "digits", message="expected inputs of shape (8,) as in training, got (1, 8, 8)")
    refused("eval", "run", "--weights", "studnet.safetensors", message="did you mean student.safetensors?")


def test_recipes_print_yaml_that_is_read_back(tmp_path: Path):
    code, out, _ = dotkd("recipes")
    assert code == 0
    assert all(name in out for name in ("mnist1d", "digits", "imagefolder"))
    (tmp_path / "mine.yaml").write_text(dotkd("recipes", "digits")[1])
    assert Config.from_sources(tmp_path / "mine.yaml") == Config.from_sources("digits")


# --- compare


def compare(source: str, *words: str) -> tuple[int, str, str]:
    return dotkd("compare", "digits", source, *TINY, "--trainers", "sgd,dot", "--methods", "none,kd", *words)


def run_here(jobs: list[Job], work: Work, *, started: Tell, ended: Tell, **_: object) -> dict[str, Ending]:
    """Stands for `run_jobs` without its processes, which take seconds to start; test_jobs.py is about those."""
    endings: dict[str, Ending] = {}
    for job in jobs:
        started(job)
        need = endings.get(job.needs or "", Ending("done"))
        endings[job.name] = Ending(work(job) if need.outcome == "done" else BLOCKED)
        ended(job, endings[job.name])
    return endings


def test_compare_from_the_first_run_to_the_last(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(conduct, "run_jobs", run_here)
        code, out, err = compare(source, "--seeds", "1", "--out", "c")
    assert code == 0, err
    folder = tmp_path / "c"
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("summary.json")}
    names = ["ce/seed-0", "kd+dot/seed-0", "kd/seed-0", "teacher"]
    assert sorted(path.parent.relative_to(folder).as_posix() for path in kept) == names
    assert "4/4 runs" in err
    assert "\x1b" not in out + err
    assert "Nothing is shown about kd+dot against kd" in out
    assert {path.name for path in folder.glob("*.png")} == {"accuracy.png", "trade-off.png"}

    # More seeds of the same comparison, now in two processes; what is finished is not run again.
    code, out, err = compare(source, "--seeds", "2", "--jobs", "2", "--out", "c")
    assert code == 0, err
    assert "4 of 7 runs in c are finished already" in err
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    table = json.loads((folder / "comparison.json").read_text())
    assert [(cell["name"], cell["val_selected"]["n"]) for cell in table["settings"][0]["cells"]] == [
        ("ce", 2),
        ("kd", 2),
        ("kd+dot", 2),
    ]
    assert len({run["teacher_test_accuracy"] for run in table["runs"]}) == 1
    assert len((folder / "comparison.csv").read_text().splitlines()) == 1 + 6

    # The same run, trained by itself, has the same bits: neither the worker nor its neighbours leave a trace.
    words = ("seed=1", "trainer=dot", f"teacher_weights={folder / 'teacher'}")
    assert dotkd("train", "digits", source, *TINY, *words, "--out", "alone")[0] == 0
    weights = "student.safetensors"
    assert (tmp_path / "alone" / weights).read_bytes() == (folder / "kd+dot" / "seed-1" / weights).read_bytes()

    lr = "c holds another comparison; choose another --out, or take its settings:\n  lr: 0.05 there, 0.3 now"
    refused("compare", "digits", source, *TINY, "lr=0.3", "--out", "c", message=lr)
    refused("resume", "c", message="c holds a comparison")
    refused("compare", "digits", source, *TINY, "--out", "alone", message="is not empty and holds no comparison")


def test_interrupted_compare_ends_with_75_and_leaves_a_checkpoint(source: str, tmp_path: Path):
    checkpoints = tmp_path / "c" / "ce" / "seed-0" / "checkpoints"
    ended = threading.Event()

    def interrupt() -> None:
        while not list(checkpoints.glob("step-*")) and not ended.wait(0.01):
            pass
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    words = ("epochs=4000", "--seeds", "1", "--jobs", "1", "--out", "c")
    code, out, err = dotkd("compare", "digits", source, *TINY, "--methods", "none", "--trainers", "sgd", *words)
    ended.set()
    thread.join()
    assert (code, out) == (75, ""), err
    assert "interrupted: 0 of 1 runs are finished" in err
    assert list(checkpoints.glob("step-*"))
    assert not (tmp_path / "c" / "logs").exists()


def test_a_method_that_does_not_fit_the_models_is_told_before_anything_is_run(source: str, tmp_path: Path):
    words = ("compare", "digits", source, *TINY, "--seeds", "1", "--out", "c", "--methods")
    one = "student_options={width: 8, depth: 1}"
    refused(
        *words, "kd,corsd", one, message="expected at least 2 feature maps of the student, which CORSD compares, got 1"
    )
    refused(*words, "kd,at", message="expected feature maps of more than one pixel, for AT compares")
    assert not (tmp_path / "c").exists()


def test_failing_runs_are_told_beside_the_others(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def one_fails(jobs: list[Job], work: Work, **tell: Tell) -> dict[str, Ending]:
        fails = [job for job in jobs if job.name == "kd seed 0"]
        return {**run_here([job for job in jobs if job not in fails], work, **tell), "kd seed 0": Ending("failed", "x")}

    monkeypatch.setattr(conduct, "run_jobs", one_fails)
    code, out, err = compare(source, "--seeds", "1", "--out", "c")
    assert code == 1
    assert "1 of the runs did not end (the same command tries them again):\n  kd seed 0: failed: x" in err
    assert "| kd+dot |" in out


def test_nothing_is_distilled_from_a_teacher_that_diverged(source: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(conduct, "run_jobs", run_here)
    words = ("teacher=tiny_runs:faulty", "teacher_options={}", "max_skips=2", "log_every=1", "--out", "c")
    for _ in range(2):  # also where it is found diverged already
        code, out, err = compare(source, *words)
        assert (code, out) == (3, "")
        assert "the teacher diverged (c/teacher)" in err.replace(os.sep, "/")


def test_cells_share_everything_but_method_and_trainer(source: str, tmp_path: Path):
    plan = make_plan(["digits", source, *TINY], trainers="sgd,dot", methods="dkd,kd,none", seeds=2, out=None)
    assert plan.out == Path("runs/compare-digits")
    (setting,) = plan.settings
    assert setting.config.method == "dkd"
    assert [cell.name for cell in setting.cells] == ["dkd", "dkd+dot", "kd", "kd+dot", "ce"]
    assert plan.seeds == [0, 1]
