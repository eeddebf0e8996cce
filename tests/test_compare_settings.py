"""What `dotkd compare` makes of recipes, overrides and `--vary`.

The contract:
- a word with = is an override for all recipes; values of --vary are YAML with commas between them, and a grid;
- one setting lies as it always has, several in a folder each, whose name stays when others join;
- a teacher is trained with what is outside of --vary, once for all settings that need the same; runs that come out
  equal are one run;
- a folder takes more seeds, cells and values, and nothing that was trained otherwise;
- wrong words are told with the rule and the value before anything is written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dotkd.cli import layout
from dotkd.cli.campaign import Plan, make_plan
from dotkd.cli.settings import points, safe, sources
from dotkd.cli.work import make_jobs
from dotkd.config import Config
from dotkd.config_teacher import teacher_config
from dotkd.evidence.jobs import Job
from run_folders import make_run


def plan(out: Path, *words: str, trainers: str = "sgd,dot", methods: str | None = "none,kd", **more: Any) -> Plan:
    return make_plan(
        words or ("digits",), trainers=trainers, methods=methods, seeds=more.pop("seeds", 1), out=out, **more
    )


def placed(made: Plan) -> dict[str, Job]:
    """{folder in the comparison: job}."""
    return {job.directory.relative_to(made.out).as_posix(): job for job in make_jobs(made)}


def done(made: Plan, *, only: str = "", status: str = "done") -> None:
    """Leaves folders as if the jobs had ended."""
    layout.claim(made)
    for place, job in placed(made).items():
        if only in place:
            config = Config(**job.config)
            config = teacher_config(config) if job.directory.name == "teacher" else config
            make_run(
                job.directory,
                method=config.method,
                trainer=config.trainer,
                seed=config.seed,
                status=status,
                config=config.model_dump(),
            )
            (job.directory / "config.yaml").write_text(config.to_yaml())


# --- words


def test_words_are_recipes_and_overrides(tmp_path: Path):
    found, overrides = sources(["digits", "lr=0.1", "runs/lr=0.1/mine.yaml", "student_options.width=4", "a.yml"])
    assert [(source.name, source.source) for source in found] == [
        ("digits", "digits"),
        ("mine", "runs/lr=0.1/mine.yaml"),
        ("a", "a.yml"),
    ]
    assert overrides == ["lr=0.1", "student_options.width=4"]


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("delta=0.05,0.075", [0.05, 0.075]),
        ("lr=1e-3", [0.001]),
        ("cache_top_k=null,5", [None, 5]),
        ("nesterov=true,false", [True, False]),
        ("student=mlp,resnet1d", ["mlp", "resnet1d"]),
        ("delta=[0.05, 0.075]", [0.05, 0.075]),
        ("student_options={depth: 8, width: 2},{width: 4}", [{"depth": 8, "width": 2}, {"width": 4}]),
        ("student_options=[{width: 2}, {width: 4}]", [{"width": 2}, {"width": 4}]),
        ("milestones=[10, 20],[15]", [[10, 20], [15]]),
        ("milestones=[[10, 20], [15]]", [[10, 20], [15]]),
        ("milestones=[10, 20]", [[10, 20]]),
        ("student_options.width=4,8", [4, 8]),
    ],
)  # fmt: skip
def test_values_are_yaml_with_commas(word: str, values: list[Any]):
    key = word.partition("=")[0]
    assert [point.varied for point in points(sources(["digits"])[0], [word])] == [{key: value} for value in values]


def test_a_grid_has_its_last_key_changing_fastest():
    found = points(sources(["digits"])[0], ["delta=0.05,0.09", "lr=0.1,0.2"])
    assert [point.name for point in found] == [
        "delta=0.05, lr=0.1",
        "delta=0.05, lr=0.2",
        "delta=0.09, lr=0.1",
        "delta=0.09, lr=0.2",
    ]
    assert [point.name for point in points(sources(["digits", "mnist1d"])[0], [])] == ["digits", "mnist1d"]
    (point, *_) = points(sources(["digits", "mnist1d"])[0], ["delta=0.05"])
    assert (point.name, point.folder) == ("digits, delta=0.05", "digits-delta=0.05")


def test_folders_are_safe_and_apart():
    assert safe("digits-delta=0.05") == "digits-delta=0.05"
    spaced, other = safe("a-{x: 1}"), safe("a-{x- 1}")
    assert spaced != other
    for name in (spaced, other, safe("../x"), safe("é" * 200), safe("a" * 200)):
        assert len(name) <= 80
        assert "/" not in name
        assert not name.startswith(".")


@pytest.mark.parametrize(
    ("words", "more", "message"),
    [
        (["lr=0.1"], {}, "expected a recipe's name or a YAML file, got none"),
        (["digits", "digits"], {}, "expected recipes of different names, got digits more than once"),
        (["lr=2", "digit", "mnist"], {}, "\nmnist: expected a recipe's name or a YAML file"),
        (["digits"], {"vary": ["delta"]}, "expected --vary KEY=V,V,..., got 'delta'"),
        (["digits"], {"vary": ["delta="]}, "expected --vary KEY=V,V,..., got 'delta='"),
        (["digits"], {"vary": ["delta=0.05,,0.1"]}, "--vary delta: expected values in YAML with commas, got"),
        (["digits"], {"vary": ["student_options={width: 2"]}, "expected values in YAML with commas"),
        (["digits"], {"vary": ["detla=0.05"]}, "--vary detla: unknown key, got '0.05'; did you mean delta?"),
        (["digits"], {"vary": ["lr=0.1", "lr=0.2"]}, "--vary names lr more than once"),
        (["digits"], {"vary": ["lr=0.1,0.10"]}, "got one configuration for lr=0.1 and lr=0.1"),
        (["digits"], {"vary": ["trainer=sgd,dot"]}, "trainer is not varied with --vary: give --trainers"),
        (["digits"], {"vary": ["method=kd,dkd"]}, "method is not varied with --vary: give --methods"),
        (["digits"], {"vary": ["seed=1,2"]}, "seed is not varied with --vary: give --seeds"),
        (["digits"], {"vary": ["delta=0.05,0.2,0.3"]}, "delta=0.2: delta: expected 0 <= delta <= momentum"),
        (["digits"], {"vary": ["delta=0.05,0.2,0.3"]}, "delta=0.3: delta: expected 0 <= delta <= momentum"),
        (["digits"], {"vary": ["delta=x,y"]}, "delta=x: delta: expected a number >= 0 and < 1, got 'x'"),
        (["digits", "schedule=step"], {"vary": ["milestones=[5],[9]"]}, "what is outside of --vary: milestones: exp"),
        (["digits", "trainer=dot"], {}, "trainer is what the cells differ in: give it as --trainers, not as"),
        (["digits"], {"seeds": 0}, "expected --seeds of at least 1, got 0"),
    ],
)  # fmt: skip
def test_wrong_words_are_told(tmp_path: Path, words: list[str], more: dict[str, Any], message: str):
    with pytest.raises(ValueError) as told:
        plan(tmp_path / "c", *words, **more)
    assert message in str(told.value)
    assert not (tmp_path / "c").exists()


def test_names_of_comparisons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)

    def of(*words: str, **more: Any) -> str:
        return make_plan(words, trainers="sgd", methods="kd", seeds=1, out=None, **more).out.as_posix()

    assert of("digits") == "runs/compare-digits"
    assert of("digits", "mnist1d", vary=["delta=0.05,0.1", "lr=0.1"]) == "runs/compare-digits-mnist1d-by-delta-lr"


# --- where things lie, and what is shared


def test_one_setting_lies_as_it_always_has(tmp_path: Path):
    made = plan(tmp_path / "c")
    assert list(placed(made)) == ["teacher", "ce/seed-0", "kd/seed-0", "kd+dot/seed-0"]
    layout.claim(made)
    assert Config.from_sources(tmp_path / "c" / "comparison.yaml") == made.settings[0].config
    assert not (tmp_path / "c" / "settings.yaml").exists()


def test_delta_is_varied_for_those_that_use_it(tmp_path: Path):
    made = plan(tmp_path / "c", vary=["delta=0.05,0.075"], trainers="sgd,dot,sgd-matched,adamw")
    first, second = "digits-delta=0.05", "digits-delta=0.075"
    shared = {f"{first}/{cell}/seed-0" for cell in ("ce", "ce+adamw", "kd", "kd+adamw")}
    apart = {f"{folder}/{cell}/seed-0" for folder in (first, second) for cell in ("kd+dot", "kd+sgd-matched")}
    assert set(placed(made)) == {"teacher", *shared, *apart}
    # Both settings count the shared run.
    for setting in made.settings:
        cell = next(cell for cell in setting.cells if cell.name == "kd")
        assert made.directory(setting, cell, 0) == tmp_path / "c" / first / "kd" / "seed-0"


def test_another_order_of_values_finds_the_shared_run(tmp_path: Path):
    done(plan(tmp_path / "c", vary=["delta=0.05,0.075"]))
    more = plan(tmp_path / "c", vary=["delta=0.01,0.05,0.075"], seeds=2)
    first = "digits-delta=0.01"
    assert set(placed(more)) == {
        *(f"{first}/{cell}/seed-1" for cell in ("ce", "kd")),
        *(f"{first}/kd+dot/seed-{seed}" for seed in (0, 1)),
        *(f"digits-delta={delta}/kd+dot/seed-1" for delta in (0.05, 0.075)),
    }


@pytest.mark.parametrize(
    "vary", ["lr=0.01,0.1", "epochs=3,4", "batch_size=16,32", "temperature=1,4", "momentum=0.8,0.9"]
)
def test_what_varies_in_the_students_training_is_not_the_teachers(tmp_path: Path, vary: str):
    made = plan(tmp_path / "c", vary=[vary])
    jobs = placed(made)
    assert [place for place in jobs if place.endswith("teacher")] == ["teacher"]
    alone = placed(plan(tmp_path / "other"))
    assert teacher_config(Config(**jobs["teacher"].config)) == teacher_config(Config(**alone["teacher"].config))
    key = vary.partition("=")[0]
    runs = [job.config for place, job in jobs.items() if place.endswith("kd/seed-0")]
    assert len({run[key] for run in runs}) == 2
    assert {run["teacher_weights"] for run in runs} == {str(tmp_path / "c" / "teacher")}
    assert all(job.needs == "teacher" for place, job in jobs.items() if "seed" in place)


def test_what_varies_data_or_teacher_has_a_teacher_each(tmp_path: Path):
    made = plan(tmp_path / "c", vary=["validation=0.1,0.2", "lr=0.01,0.1"])
    jobs = placed(made)
    teachers = [f"digits-validation={share}-lr=0.01/teacher" for share in (0.1, 0.2)]
    assert [place for place in jobs if place.endswith("teacher")] == teachers
    assert [Config(**jobs[place].config).validation for place in teachers] == [0.1, 0.2]
    assert [jobs[place].name for place in teachers] == [
        f"teacher of digits, validation={share}" for share in (0.1, 0.2)
    ]
    needs = {(job.config["validation"], job.needs) for place, job in jobs.items() if "seed" in place}
    assert needs == {(share, f"teacher of digits, validation={share}") for share in (0.1, 0.2)}


def test_given_weights_are_taken(tmp_path: Path):
    made = plan(tmp_path / "c", vary=["teacher_weights=a,b"])
    assert not made.teachers
    assert {job.config["teacher_weights"] for job in make_jobs(made)} == {"a", "b"}


def test_recipes_have_a_teacher_each_and_those_of_before_are_found(tmp_path: Path):
    done(plan(tmp_path / "c", "digits", vary=["delta=0.05"]))
    both = plan(tmp_path / "c", "digits", "mnist1d", vary=["delta=0.05,0.075"])
    assert {place for place in placed(both) if "teacher" in place} == {"mnist1d-delta=0.05/teacher"}
    assert [setting.teacher.path.relative_to(both.out).as_posix() for setting in both.settings if setting.teacher] == [
        "teacher",
        "teacher",
        "mnist1d-delta=0.05/teacher",
        "mnist1d-delta=0.05/teacher",
    ]
    done(both)
    again = plan(tmp_path / "c", "mnist1d", "digits", vary=["delta=0.05,0.075"])
    assert not placed(again)
    assert not placed(plan(tmp_path / "c", "mnist1d", vary=["delta=0.075"]))


def test_a_folder_of_one_setting_takes_others_beside_it(tmp_path: Path):
    done(plan(tmp_path / "c", "digits", "delta=0.05"))
    both = plan(tmp_path / "c", "digits", vary=["delta=0.05,0.075"])
    assert list(placed(both)) == ["digits-delta=0.075/kd+dot/seed-0"]
    done(both)
    assert [table.directory for table in both.evidence().tables] == [".", "digits-delta=0.075"]
    assert [table.rows[1].val_selected.n for table in both.evidence().tables] == [1, 1]
    # And the one goes on by itself, with more seeds, trainers and methods.
    more = plan(
        tmp_path / "c", "digits", "delta=0.05", seeds=2, trainers="sgd,dot,dot-normalized", methods="none,kd,dkd"
    )
    assert "kd/seed-1" in placed(more)
    assert "kd/seed-0" not in placed(more)
    layout.claim(more)


def test_a_run_that_began_elsewhere_is_continued_there(tmp_path: Path):
    made = plan(tmp_path / "c", vary=["delta=0.05,0.075"])
    layout.claim(made)
    second = tmp_path / "c" / "digits-delta=0.075" / "kd" / "seed-0"
    second.mkdir(parents=True)
    (second / "config.yaml").write_text(made.settings[1].cell_config(made.settings[1].cells[1]).to_yaml())
    job = placed(made)["digits-delta=0.075/kd/seed-0"]
    assert job.config["delta"] == 0.075
    assert "digits-delta=0.05/kd/seed-0" not in placed(made)


# --- what a folder refuses


def test_what_was_trained_otherwise_is_refused(tmp_path: Path):
    out = tmp_path / "c"
    done(plan(out, "digits", vary=["lr=0.01,0.1"]))
    before = sorted(out.rglob("*"))
    with pytest.raises(ValueError, match=r"(?s)digits-lr=0.01 holds another comparison.*\n  epochs: 30 there, 5 now"):
        layout.claim(plan(out, "digits", "epochs=5", vary=["lr=0.01,0.1"]))
    # The settings are the same, only the teacher's learning rate is not.
    with pytest.raises(ValueError, match=r"(?s)were taught by another teacher.*\n  lr: 0.05 there, 0.02 now"):
        layout.claim(plan(out, "digits", "lr=0.02", vary=["lr=0.01,0.1"]))
    assert sorted(out.rglob("*")) == before


def test_a_folder_of_another_comparison_is_refused(tmp_path: Path):
    out = tmp_path / "c"
    done(plan(out, "digits"))
    with pytest.raises(ValueError, match=r"c holds another comparison; .*\n  delta: 0.075 there, 0.01 now"):
        layout.claim(plan(out, "digits", vary=["delta=0.01,0.05"]))
    with pytest.raises(ValueError, match=r"(?s)c holds another comparison; .*\n  lr: 0.05 there, 0.3 now"):
        layout.claim(plan(out, "digits", "lr=0.3"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ValueError, match="is not empty and holds no comparison"):
        layout.claim(plan(tmp_path / "full", "digits", vary=["delta=0.01,0.05"]))


def test_what_is_varied_is_written_down(tmp_path: Path):
    layout.claim(plan(tmp_path / "c", vary=["student_options={width: 8},{width: 16}"]))
    layout.claim(plan(tmp_path / "c", vary=["student_options.width=4"]))
    held = Config.from_sources  # each setting's folder is one that the file names
    from dotkd import config_sources

    listed = config_sources.parse((tmp_path / "c" / "settings.yaml").read_text())
    assert isinstance(listed, dict)
    assert list(listed.values()) == [
        {"student_options": {"width": 8}},
        {"student_options": {"width": 16}},
        {"student_options.width": 4},
    ]
    widths = [held(tmp_path / "c" / str(folder) / "comparison.yaml").student_options["width"] for folder in listed]
    assert widths == [8, 16, 4]


def test_teachers_that_diverged_teach_nobody(tmp_path: Path):
    made = plan(tmp_path / "c", "digits", "mnist1d")
    done(made, only="mnist1d/teacher")
    done(made, only="digits/teacher", status="diverged")
    places = placed(made)
    assert not [place for place in places if place.startswith("digits")]
    assert "mnist1d/kd/seed-0" in places
    json.dumps([job.config for job in places.values()])


def test_what_is_said_of_the_first_method_is_not_said_of_the_others(tmp_path: Path):

    changes = ["temperature=2", "task_weight=0.5", "distill_weight=0.5", "teacher_weights=x"]
    plan = make_plan(["digits", *changes], trainers="sgd", methods="kd,at,none", seeds=1, out=tmp_path)
    found = {job.config["method"]: job.config for job in make_jobs(plan)}
    keys = ("temperature", "task_weight", "distill_weight")
    assert {method: [config[key] for key in keys] for method, config in found.items()} == {
        "kd": [2.0, 0.5, 0.5],
        "at": [None, None, None],
        "none": [2.0, 0.5, 0.5],
    }
