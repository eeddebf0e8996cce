"""The configuration of a run.

- Every mistake is reported at once, a line each: the key, its rule, the value given, the nearest name that exists.
- Values come from the default, the recipe, the YAML file, the overrides; the last that names a key counts.
- Types are strict: nothing is turned into something else, except a whole number into a float.
- YAML is read as 1.2 reads it, only into plain values; `to_yaml` is read back to an equal configuration.
- What the losses, models and data sources accept is asked of them, not written down a second time.
"""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dotkd.config import Config, ConfigError, describe
from dotkd.config_sources import dump, parse
from dotkd.losses import LOSSES
from dotkd.methods import METHODS
from dotkd.recipes import RECIPES


def problems(*overrides: str, source: str | Path | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        Config.from_sources(source, overrides)
    return caught.value.problems


# -- one mistake, one line

WRONG_KEYS = [
    ("lrr=0.1", "lrr: unknown key, got 0.1; did you mean lr?"),
    ("LR=0.1", "LR: unknown key, got 0.1; did you mean lr?"),
    ("zzzz=[1, 2]", "zzzz: unknown key, got [1, 2]"),
    ("a\nb=1", "'a\\nb': unknown key, got 1"),
    ("lr", "lr: expected KEY=VALUE"),
    ("=3", "=3: expected KEY=VALUE"),
    ("lr=[1,", "lr: expected a value in YAML, got '[1,' (line 1, column 4: while parsing a flow node expected "),
    ("lr=-1", "lr: expected a number > 0, got -1"),
    ("lr=fast", "lr: expected a number > 0, got 'fast'"),
    ("lr=true", "lr: expected a number > 0, got true"),
    ("lr=", "lr: expected a number > 0, got null"),
    ("lr=.inf", "lr: expected a number > 0, got inf"),
    ("lr=.nan", "lr: expected a number > 0, got nan"),
    (
        "lr.x=1",
        "lr.x: lr has no entries, got 1 (only teacher_options, teacher_input, student_options, method_options have)",
    ),
    ("ema=1.0", "ema: expected a number > 0 and < 1, or null, got 1.0"),
    ("seed=true", "seed: expected a whole number >= 0 and < 4294967296, got true"),
    ("seed=1.0", "seed: expected a whole number >= 0 and < 4294967296, got 1.0"),
    ("seed='1'", "seed: expected a whole number >= 0 and < 4294967296, got '1'"),
    ("seed=4294967296", "seed: expected a whole number >= 0 and < 4294967296, got 4294967296"),
    ("epochs=1e3", "epochs: expected a whole number >= 1, got 1000.0"),
    ("nesterov=1", "nesterov: expected true or false, got 1"),
    ("nesterov=yes", "nesterov: expected true or false, got 'yes'"),
    ("validation=0.5", "validation: expected a number >= 0 and < 0.5, got 0.5"),
    ("milestones=3", "milestones: expected a list, each item a whole number >= 1, got 3"),
    ("milestones=[3, 0]", "milestones: expected a list, each item a whole number >= 1, got 0"),
    ("milestones=[true]", "milestones: expected a list, each item a whole number >= 1, got true"),
    (
        "trainer=dott",
        "trainer: expected one of dot, sgd, dot-normalized, sgd-matched, adamw, dot-adamw, deepkd, got 'dott'; "
        "did you mean dot?",
    ),
    (
        "method=KD",
        "method: expected a name that `dotkd methods` lists, none, or module:attr for your own, got 'KD'; "
        "did you mean kd?",
    ),
    ("method=", "method: expected text, got null"),
    ("device=gpu", "device: expected auto, cpu, cuda or cuda:N, got 'gpu'; did you mean cpu?"),
    ("device=cuda0", "device: expected auto, cpu, cuda or cuda:N, got 'cuda0'; did you mean cuda:0?"),
    ("data=", "data: expected text, got null"),
    (
        "data=mnist1",
        "data: expected mnist1d or mnist1d:NUMBER, digits, imagefolder:PATH, arrays:PATH, cifar10[:PATH], "
        "cifar100[:PATH], tiny-imagenet:PATH, imagenet:PATH, hf:NAME_OR_PATH, got 'mnist1'; "
        "did you mean mnist1d?",
    ),
    ("data=imagefolder", "data: expected imagefolder:PATH, got 'imagefolder'"),
    ("data=arrays:", "data: expected arrays:PATH, got 'arrays:'"),
    (
        "student=resnt1d",
        "student: expected a name that `dotkd models` lists, timm:NAME, torchvision:NAME, transformers:NAME, or "
        "module:attr for your own, got 'resnt1d'; did you mean resnet1d?",
    ),
    ("student_options=3", "student_options: expected a mapping from names to plain, finite values, got 3"),
    ("student_options.=3", "student_options.: expected student_options.NAME with student_options a mapping, got 3"),
    ("studnt_options.width=3", "studnt_options.width: unknown key, got 3; did you mean student_options.width?"),
    (
        "student_options.width=.inf",
        "student_options.width: expected a mapping from names to plain, finite values, got inf",
    ),
    (
        "student_options={1: 2}",
        "student_options.1: expected a mapping from names to plain, finite values, got 1",
    ),
    (
        "student_options={x: {1: 2}}",
        "student_options.x: expected a mapping from names to plain, finite values, got ",
    ),
    (
        "student_options={x: &a [*a]}",
        "student_options.x: expected a mapping from names to plain, finite values, got ",
    ),
    ("student_options.widht=8", "student_options: model `resnet1d`: unknown option `widht`, did you mean `width`?"),
]


@pytest.mark.parametrize(("override", "line"), WRONG_KEYS, ids=[repr(case[0]) for case in WRONG_KEYS])
def test_a_wrong_key_or_value_is_one_line_with_rule_value_and_nearest_name(override: str, line: str) -> None:
    (found,) = problems(override)
    assert found.startswith(line) if line.endswith((" ", "`width`?")) else found == line


CONTRADICTIONS = [
    (
        ["delta=0.1"],
        "delta: expected 0 <= delta <= momentum and momentum + delta < 1, got 0.1 with momentum 0.9",
    ),
    (
        ["momentum=0.05", "trainer=dot-adamw"],
        "delta: expected 0 <= delta <= momentum and momentum + delta < 1, got 0.075 with momentum 0.05",
    ),
    (["method=none"], "trainer: dot needs a distillation loss, got method none; expected sgd or adamw"),
    (
        ["method=none", "trainer=sgd-matched"],
        "trainer: sgd-matched needs a distillation loss, got method none; expected sgd or adamw",
    ),
    (
        ["method=none", "trainer=sgd", "task_weight=0"],
        "task_weight: expected a number > 0 with method none, got 0",
    ),
    (
        ["task_weight=0", "distill_weight=0"],
        "task_weight, distill_weight: expected one of them > 0, got 0 and 0",
    ),
    (
        ["trainer=deepkd"],
        "trainer: deepkd has a momentum for each loss of method deepkd, got method 'kd'",
    ),
    (["distill_warmup_epochs=40"], "distill_warmup_epochs: expected a number < 40 (epochs), got 40.0"),
    (["teacher=self"], "teacher: self is the student's moving average, which needs ema, got ema null"),
    (
        ["teacher=self", "ema=0.9", "teacher_weights=x"],
        "teacher_weights: expected none with teacher self, got 'x'",
    ),
    (
        ["more_teachers=[{model: mlp, weights: x}]"],
        "teacher_weights: expected the first teacher's with more_teachers, which all are trained already, got null",
    ),
    (
        ["teacher_weights=x", "more_teachers=[{modle: mlp, weights: x}]"],
        "more_teachers.0.modle: unknown key, got 'mlp'; did you mean model?",
    ),
    (
        ["teacher_weights=x", "more_teachers=[{model: mlp}]"],
        "more_teachers.0.weights: expected the weights of each teacher as a path, got null",
    ),
    (
        ["teacher_weights=x", "more_teachers=[{weights: y}]", "teacher_learns=[head]"],
        "teacher_learns: expected none with more_teachers, got ['head']",
    ),
    (
        ["teacher_input={image_size: 8}"],
        "teacher_weights: expected those of a trained teacher with teacher_input, got null",
    ),
    (
        ["teacher_weights=x", "teacher_input={img_size: 8}"],
        "teacher_input.img_size: unknown key, got 8; did you mean image_size?",
    ),
    (["method=dkd", "mix=mixup"], "mix: expected none with method dkd, which needs samples of one class, got 'mixup'"),
    (
        ["method=corsd", "mix=mixup"],
        "mix: expected none with method corsd, which needs samples of one class, got 'mixup'",
    ),
    (
        ["method=reviewkd", "method_options.widht=8"],
        "method_options.widht: method reviewkd has no such option (its options: width, preactivated), got 8; "
        "did you mean width?",
    ),
    (["method=srrl", "method_options.rectify=1"], "method_options.rectify: expected true or false, got 1"),
    (["trainer=adamw", "nesterov=true"], "nesterov: expected false with trainer adamw, got true"),
    (
        ["sync_batch_norm=true", "device=cpu"],
        "sync_batch_norm: expected false with device cpu, where torch has none, got true",
    ),
    (
        ["parallel=fsdp", "method=at"],
        "method: expected one that does not look inside the models with parallel fsdp, got 'at'; parallel=ddp takes it",
    ),
    (["parallel=fsdp", "ema=0.9"], "ema: expected null with parallel fsdp, got 0.9; parallel=ddp takes it"),
    (
        ["parallel=fsdp", "precision=fp16"],
        "precision: expected auto, fp32 or bf16 with parallel fsdp, got 'fp16'; parallel=ddp takes it",
    ),
    (
        ["trainer=sgd", "momentum=0", "nesterov=true"],
        "nesterov: expected momentum > 0 with it, got momentum 0",
    ),
    (["trainer=adamw", "low_memory=true"], "low_memory: expected false with trainer adamw, got true"),
    (
        ["low_memory=true", "nesterov=true"],
        "nesterov: expected false with low_memory, which keeps no gradients, got true",
    ),
    (["low_memory=true", "clip_norm=1"], "clip_norm: expected null with low_memory, which keeps no gradients, got 1.0"),
    (
        ["low_memory=true", "precision=fp16"],
        "precision: expected fp32 or bf16 with low_memory, which keeps no gradients, got 'fp16'",
    ),
    (
        ["activation_checkpointing=true", "compile=true"],
        "compile: expected false with activation_checkpointing, got true",
    ),
    (["accumulate=3"], "accumulate: expected a divisor of batch_size 64, got 3"),
    (
        ["milestones=[3]"],
        "milestones: expected none with schedule cosine (they belong to step), got [3]",
    ),
    (["schedule=step"], "milestones: expected at least one with schedule step, got []"),
    (["schedule=step", "milestones=[3, 3]"], "milestones: expected increasing epochs, got [3, 3]"),
    (["schedule=step", "milestones=[9, 3]"], "milestones: expected increasing epochs, got [9, 3]"),
    (
        ["schedule=step", "milestones=[40]"],
        "milestones: expected epochs < 40 (epochs), got [40]; give others, or schedule=constant milestones=[]",
    ),
    (["method=at", "temperature=4"], "temperature: expected null with method at, which has none, got 4.0"),
    (["warmup_epochs=40"], "warmup_epochs: expected a number < 40 (epochs), got 40.0"),
    (["image_size=32"], "image_size: expected null with data mnist1d, got 32"),
    (
        ["method_options.alpha=2"],
        "method_options.alpha: method kd has no such option (it has none), got 2",
    ),
    (
        ["method=dkd", "method_options.alhpa=2"],
        "method_options.alhpa: method dkd has no such option (its options: alpha, beta), got 2; did you mean alpha?",
    ),
    (
        ["method=dkd", "method_options.temperature=2"],
        "method_options.temperature: method dkd has no such option (its options: alpha, beta), got 2; "
        "temperature is a key of its own",
    ),
    (["method=jsd", "method_options.beta=true"], "method_options.beta: expected a number, got true"),
    (["method=jsd", "method_options.beta=1.5"], "method_options: expected `beta` in [0, 1], got 1.5"),
    (
        ["method=none", "trainer=sgd", "method_options.beta=1"],
        "method_options.beta: method none has no such option (it has none), got 1",
    ),
]


@pytest.mark.parametrize(("overrides", "line"), CONTRADICTIONS, ids=[" ".join(case[0]) for case in CONTRADICTIONS])
def test_keys_that_contradict_each_other(overrides: list[str], line: str) -> None:
    assert problems(*overrides) == (line,)


@pytest.mark.parametrize(
    "overrides",
    [
        ["delta=0"],
        ["momentum=0", "delta=0"],
        ["momentum=0.5", "delta=0.499"],
        ["momentum=0.2", "delta=0.2"],
        ["trainer=sgd", "momentum=0", "delta=0.075"],  # plain SGD has no use for delta
        ["trainer=adamw", "method=none"],
        ["distill_weight=0"],
        ["schedule=step", "milestones=[1, 39]"],
        ["accumulate=64"],
        ["precision=fp16", "device=cpu"],
        ["device=cuda:11"],
        ["student=my_models:small", "student_options={anything: [1, null, {deep: text}]}"],
        ["method=jsd", "method_options.beta=0"],
        ["ema=null", "clip_norm=~", "teacher_weights=null"],
    ],
    ids=" ".join,
)
def test_edges_that_are_allowed(overrides: list[str]) -> None:
    assert isinstance(Config.from_sources(None, overrides), Config)


def test_momentum_and_delta_of_sum_one_are_refused_however_they_round() -> None:
    pairs = [(momentum / 1000, 1 - momentum / 1000) for momentum in range(500, 1000)]
    pairs += [(momentum / 1000, (1000 - momentum) / 1000) for momentum in range(500, 1000)]
    for momentum, delta in pairs:
        with pytest.raises(ConfigError, match=r"^delta: "):
            Config(momentum=momentum, delta=delta)


def test_every_problem_is_reported_at_once_and_no_rule_rests_on_a_wrong_key(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("recipe: mnist1d\nsed: 3\nlr: quick\nbatch_size: 10\n")
    found = problems("epochs=0", "accumulate=4", "warmup_epochs=80", "nope", "seed=true", source=file)
    assert sorted(line.partition(":")[0] for line in found) == ["accumulate", "epochs", "lr", "nope", "sed", "seed"]
    assert "accumulate: expected a divisor of batch_size 10, got 4" in found  # epochs is wrong: no word on warm-up


def test_python_users_get_the_same_errors() -> None:
    with pytest.raises(ConfigError) as caught:
        Config(lr=-1.0, epochz=3, accumulate=3)  # pyright: ignore[reportCallIssue]
    assert str(caught.value) == (
        "lr: expected a number > 0, got -1.0\n"
        "epochz: unknown key, got 3; did you mean epochs?\n"
        "accumulate: expected a divisor of batch_size 64, got 3"
    )
    assert isinstance(caught.value, ValueError)
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


# -- sources


def test_the_last_source_that_names_a_key_counts(tmp_path: Path) -> None:
    file = tmp_path / "a folder" / "läuft.yaml"
    file.parent.mkdir()
    file.write_text("recipe: digits\nepochs: 7\nlr: 2e-2\nstudent_options: {width: 5}\n", encoding="utf-8")
    config = Config.from_sources(str(file), ["lr=1e-3", "lr=3e-3", "student_options.depth=3"])
    recipe = RECIPES["digits"].config
    assert (config.data, config.teacher) == ("digits", "mlp")
    assert (config.epochs, config.lr) == (7, 3e-3)
    assert config.student_options == {"width": 5, "depth": 3}  # replaced by the file, then one entry set
    assert config.teacher_options == recipe.teacher_options
    assert recipe.student_options == {"depth": 1, "width": 16}, "the recipe itself was changed"


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_round_trip_and_have_a_line_about_them(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    config = recipe.config.replace(data=recipe.config.data.replace(":PATH", ":/pictures"))
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert Config.from_sources(tmp_path / "c.yaml") == config
    assert recipe.summary
    assert "\n" not in recipe.summary


def test_a_recipe_for_the_users_own_data_asks_for_it() -> None:
    assert problems(source="imagefolder") == (
        "data: expected imagefolder:PATH with the path of your own data as PATH, got it as it stands",
    )
    assert Config.from_sources("imagefolder", ["data=imagefolder:~/p"]).data == "imagefolder:~/p"


def test_an_unknown_source_names_the_nearest_recipe_and_the_other_mistakes() -> None:
    assert problems("sed=1", "milestones=[3]", source="mnist2d") == (
        "mnist2d: expected a recipe's name or a YAML file (`dotkd recipes` lists those); did you mean mnist1d?",
        "sed: unknown key, got 1; did you mean seed?",
    )


def test_an_unknown_file_names_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "baseline.yaml").touch()
    (line,) = problems(source=tmp_path / "basline.yaml")
    assert line.endswith(f"; did you mean {tmp_path / 'baseline.yaml'}?")


def test_a_run_directory_names_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(Config().to_yaml())
    assert problems(source=tmp_path) == (
        f"{tmp_path}: expected a recipe's name or a YAML file, got a folder; did you mean {tmp_path / 'config.yaml'}?",
    )


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"lr: 1\nlr: 2\n", "expected a recipe's name or a YAML file: line 2, column 1: lr is given twice"),
        (b"student_options: {a: 1, a: 2}", "line 1, column 25: a is given twice"),
        (b"lr: [1", "line 1, column 7: while parsing a flow sequence expected ',' or ']', but got '<stream end>'"),
        (b"lr: \xff\xfe", "'utf-8' codec can't decode"),
        (b"lr: \x00", "special characters are not allowed"),
        (b"- 1\n- 2\n", "expected a mapping from keys to values, got [1, 2]"),
        (b"mnist1d", "expected a mapping from keys to values, got 'mnist1d'"),
        (b"a: 1\n---\nb: 2\n", "expected a single document in the stream"),
        (b"lr: !!python/object/apply:os.getcwd []\n", "could not determine a constructor for the tag"),
        (b"lr: !!binary aGk=\n", "could not determine a constructor for the tag"),
        (b"? [1]\n: 2\n", "line 1, column 3: while constructing a mapping found unhashable key"),
        (b"recipe: mnist2d\nmilestones: [3]\n", "recipe: expected a name that `dotkd recipes` lists, got 'mnist2d'"),
        (b"recipe: [1]\n", "recipe: expected a name that `dotkd recipes` lists, got [1]"),
        (b"lr: " + b"[" * 5000, "run.yaml: expected a recipe's name or a YAML file: "),
        (b"seed: " + b"9" * 5000, "run.yaml: expected a recipe's name or a YAML file: "),
        (b"1: 2\n", "1: unknown key, got 2"),
    ],
)
def test_a_file_that_is_no_configuration(content: bytes, line: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    (found,) = problems(source=tmp_path / "run.yaml")
    assert line in found


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("# nothing yet\n")
    assert Config.from_sources(tmp_path / "run.yaml") == Config.from_sources() == Config()


def test_mappings_that_share_an_anchor_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("teacher_options: &o {width: 8}\nstudent_options: *o\n")
    config = Config.from_sources(tmp_path / "run.yaml", ["student_options.width=4"])
    assert (config.teacher_options, config.student_options) == ({"width": 8}, {"width": 4})


# -- YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("+.5e1", 5.0),
        ("1.", 1.0),
        ("1.0e-08", 1e-8),
        ("010", 10),
        ("08", 8),
        ("0x10", 16),
        ("0o17", 15),
        ("-3", -3),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("no", "no"),
        ("on", "on"),
        ("2020-01-01", "2020-01-01"),
        ("true", True),
        ("~", None),
        ("", None),
        ("'1e-3'", "1e-3"),
        ("[1, 2e0]", [1, 2.0]),
        ("e3", "e3"),
        ("1e", "1e"),
        ("-", [None]),
        ("=", "="),
    ],
)
def test_plain_values_are_read_as_yaml_1_2(text: str, value: object) -> None:
    assert parse(text) == value
    assert type(parse(text)) is type(value)


@pytest.mark.parametrize("value", ["imagefolder:/my pics: new #1", "imagefolder:relativ/ü", "imagefolder:{a}"])
def test_text_in_an_override_is_taken_as_it_stands(value: str) -> None:
    assert Config.from_sources(None, [f"data={value}"]).data == value
    assert Config.from_sources(None, [f'data="{value}"']).data == value
    assert Config.from_sources(None, ["teacher_weights=2024"]).teacher_weights == "2024"


def test_a_whole_number_becomes_a_float_where_one_is_wanted() -> None:
    config = Config.from_sources(None, ["temperature=4", "warmup_epochs=1"])
    assert (type(config.temperature), type(config.warmup_epochs)) == (float, float)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(
        [
            "1e-3",
            "0o7",
            "010",
            "08",
            "yes",
            "1:30",
            "~",
            "",
            "null",
            "<<",
            "=",
            ".inf",
            "2020-01-01",
            "\x85",
            "a\u2028b",
        ]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab1-:# ", max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(PLAIN)
def test_what_is_dumped_is_read_back_exactly(value: object) -> None:
    text = dump({"key": value})
    assert repr(parse(text)) == repr({"key": value})


@pytest.mark.parametrize("text", ["yes", "010", "1:30", "2020-01-01", "1e-3", "0o7", "null"])
def test_text_is_quoted_for_readers_of_yaml_1_1_too(text: str) -> None:
    assert yaml.safe_load(dump({"key": text})) == {"key": text}


def test_to_yaml_gives_every_key_in_order_and_is_read_back_to_an_equal_configuration(tmp_path: Path) -> None:
    config = Config(
        data="imagefolder:/ü #1: 'x'",
        image_size=32,
        teacher="mine:net",
        teacher_options={"depths": [1, 2], "deep": {"x": None, "no": "no"}},
        teacher_weights="1e5",
        method="dkd",
        method_options={"alpha": 1, "beta": 8.0},
        schedule="step",
        milestones=(10, 20),
        lr=math.nextafter(0.1, 1),
        eps=5e-324,
        clip_norm=1e22,
        device="cuda:1",
        seed=2**32 - 1,
    )
    text = config.to_yaml()
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    again = Config.from_sources(tmp_path / "config.yaml")
    assert again == config
    assert repr(again) == repr(config)  # 1 and 1.0 are equal, but not the same
    assert again.to_yaml() == text
    assert list(yaml.safe_load(text)) == list(Config.model_fields)
    assert "milestones: [10, 20]\n" in text
    assert "teacher_weights: '1e5'\n" in text


# -- the object


def test_a_configuration_is_frozen_and_replace_checks() -> None:
    config = Config()
    with pytest.raises(ValueError, match="frozen"):
        config.lr = 1.0  # pyright: ignore[reportAttributeAccessIssue]
    assert config.replace(seed=3).seed == 3
    assert config.seed == 0
    with pytest.raises(ConfigError, match=r"^lr: expected a number > 0, got 0$"):
        config.replace(lr=0)
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config


def test_methods_are_the_losses_that_exist() -> None:
    assert {*LOSSES} < {*METHODS}
    for name in METHODS:
        assert Config(method=name).method == name


def test_describe_gives_rule_default_and_meaning_of_every_key() -> None:
    keys = {key.name: key for key in describe()}
    assert list(keys) == list(Config.model_fields)
    assert all(key.meaning for key in keys.values())
    assert keys["ema"][1:3] == ("a number > 0 and < 1, or null", "null")
    assert keys["trainer"][1:3] == ("one of dot, sgd, dot-normalized, sgd-matched, adamw, dot-adamw, deepkd", "dot")
    assert keys["milestones"][1:3] == ("a list, each item a whole number >= 1", "[]")
    assert keys["device"].rule == "text"


def test_help_about_the_keys_does_not_wait_for_torch() -> None:
    code = "import sys, dotkd.config as c; c.describe(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_key_written_out_in_words_is_recognised_by_its_initials():
    with pytest.raises(ConfigError, match=r"learning_rate: unknown key, got 0\.1; did you mean lr\?"):
        Config.from_sources("mnist1d", ["learning_rate=0.1"])
