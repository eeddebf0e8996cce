"""Configuration files of mdistiller.

- Each key becomes a key here, or it is told why it needs none; what the file leaves out has mdistiller's default.
- The names of models depend on the data set, as they do there.
- Every unknown key, and every value without a counterpart, is reported at once, with the nearest name.
- Changes by key=value count after the file.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dotkd.cli import app
from dotkd.config import Config, ConfigError
from dotkd.methods import card_of, find
from dotkd.recipes import RECIPES
from dotkd.recipes.mdistiller import translate
from dotkd.recipes.mdistiller_keys import METHODS

SOLVER = """
SOLVER: {BATCH_SIZE: 64, EPOCHS: 240, LR: 0.05, LR_DECAY_STAGES: [150, 180, 210], LR_DECAY_RATE: 0.1,
         WEIGHT_DECAY: 0.0005, MOMENTUM: 0.9, TYPE: "SGD", TRAINER: "dot", DOT: {DELTA: 0.075}}
"""
PAIR = 'DISTILLER: {TYPE: "KD", TEACHER: "resnet32x4", STUDENT: "resnet8x4"}'


@pytest.fixture
def translated(tmp_path: Path):
    def make(text: str, *overrides: str) -> Config:
        (tmp_path / "file.yaml").write_text(text)
        return translate(tmp_path / "file.yaml").config(overrides)

    return make


@pytest.fixture
def problems(tmp_path: Path):
    def found(text: str) -> list[str]:
        (tmp_path / "file.yaml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            translate(tmp_path / "file.yaml")
        return [line.removeprefix(f"{tmp_path / 'file.yaml'}: ") for line in caught.value.problems]

    return found


def test_the_published_dot_file_is_our_recipe(translated):
    found = translated(PAIR + SOLVER)
    recipe = RECIPES["cifar100-resnet32x4-resnet8x4-kd-dot"].config
    assert found == recipe.replace(temperature=4.0, task_weight=0.1, distill_weight=0.9)  # written out


def test_the_published_file_for_imagenet_is_our_recipe(translated):
    text = """
DATASET: {TYPE: imagenet, NUM_WORKERS: 32, TEST: {BATCH_SIZE: 128}}
DISTILLER: {TYPE: KD, TEACHER: ResNet34, STUDENT: ResNet18}
SOLVER: {BATCH_SIZE: 512, EPOCHS: 100, LR: 0.2, LR_DECAY_STAGES: [30, 60, 90], TRAINER: dot, DOT: {DELTA: 0.09}}
KD: {TEMPERATURE: 1, LOSS: {CE_WEIGHT: 0.5, KD_WEIGHT: 0.5}}
"""
    recipe = RECIPES["imagenet-resnet34-resnet18-kd-dot"].config
    assert translated(text, "data=imagenet:here") == recipe.replace(data="imagenet:here")


def test_what_is_left_out_has_the_default_of_mdistiller(translated):
    found = translated("{}")
    assert (found.method, found.trainer, found.student) == ("none", "sgd", "resnet32")
    assert (found.data, found.lr, found.weight_decay, found.epochs) == ("cifar100", 0.05, 1e-4, 240)
    assert (list(found.milestones), found.gamma, found.validation) == ([150, 180, 210], 0.1, 0.0)


# What each method's defaults are there: section, method, both weights (None: it has no key), and what else it sets.
DEFAULTS = [
    ("KD", "kd", 0.1, 0.9, {}, {"temperature": 4}),
    ("AT", "at", 1, 1000, {"p": 2}, {}),
    ("RKD", "rkd", 1, 1, {"distance_weight": 25, "angle_weight": 50}, {}),
    ("FITNET", "fitnet", 1, 100, {"hint": 1}, {}),
    ("KDSVD", "kdsvd", 1, 1, {"k": 1}, {}),
    ("OFD", "ofd", 1, 0.001, {}, {}),
    ("NST", "nst", 1, 50, {}, {}),
    ("PKT", "pkt", 1, 30000, {}, {}),
    ("SP", "sp", 1, 3000, {}, {}),
    ("VID", "vid", 1, 1, {"min_variance": 1e-5, "initial_variance": 5}, {}),
    ("CRD", "crd", 1, 0.8, {"positives": "exact", "dim": 128, "negatives": 16384, "momentum": 0.5, "tau": 0.07}, {}),
    ("REVIEWKD", "reviewkd", 1, 1, {"preactivated": False}, {"distill_warmup_epochs": 20}),
    ("DKD", "dkd", 1, None, {"alpha": 1, "beta": 8}, {"temperature": 4, "distill_warmup_epochs": 20}),
]


@pytest.mark.parametrize("case", DEFAULTS, ids=[case[0] for case in DEFAULTS])
def test_each_method_with_its_defaults(case, translated):
    section, method, task, distill, options, more = case
    found = translated(f"DISTILLER: {{TYPE: {section}, TEACHER: resnet32x4, STUDENT: resnet8x4}}")
    assert (found.method, found.task_weight, found.method_options) == (method, task, options)
    assert found.distill_weight == distill
    assert {key: getattr(found, key) for key in more} == more
    # What is published is also what the method has by itself.
    card, own = card_of(method), inspect.signature(find(method)).parameters
    rising = more.get("distill_warmup_epochs", 0)
    assert (card.task_weight, card.distill_weight, card.warmup_epochs) == (task, distill or 1, rising)
    assert card.temperature == more.get("temperature")
    assert all(own[name].default == value for name, value in options.items() if name != "hint")  # by the number of maps


def test_every_method_of_theirs_has_a_case():
    assert {case[0] for case in DEFAULTS} == METHODS.keys()


def test_the_published_reviewkd_of_imagenet_takes_the_student_before_its_activation(translated):
    text = "DATASET: {TYPE: imagenet}\nDISTILLER: {TYPE: REVIEWKD, TEACHER: ResNet50, STUDENT: MobileNetV1}\n"
    found = translated(text + "REVIEWKD: {STU_PREACT: true, WARMUP_EPOCHS: 1}", "data=imagenet:here")
    assert (found.method_options, found.distill_warmup_epochs) == ({"preactivated": True}, 1)


@pytest.mark.parametrize(("data", "place"), [("imagenet", "imagenet:here"), ("tiny_imagenet", "tiny-imagenet:here")])
def test_a_teacher_that_comes_trained_is_not_trained_again(data, place, translated):
    found = translated(
        f"DATASET: {{TYPE: {data}}}\nDISTILLER: {{TYPE: KD, TEACHER: ResNet18, STUDENT: ResNet18}}", f"data={place}"
    )
    pretrained = ({"weights": "IMAGENET1K_V1"}, 0)
    assert (found.teacher_options, found.teacher_epochs) == (pretrained if data == "imagenet" else ({}, None))


def test_a_section_counts_for_its_own_method_alone(translated):
    text = "DISTILLER: {TYPE: DKD, TEACHER: vgg13, STUDENT: vgg8}\nDKD: {BETA: 6.0, WARMUP: 10}\nKD: {TEMPERATURE: 9}"
    found = translated(text)
    assert (found.method_options["beta"], found.distill_warmup_epochs, found.temperature) == (6.0, 10, 4.0)


@pytest.mark.parametrize(
    ("data", "theirs", "ours"),
    [
        ("cifar100", "ResNet50", "resnet50_small"),
        ("cifar100", "MobileNetV2", "mobilenet_v2_cifar"),
        ("cifar100", "ShuffleV1", "shufflenet_v1"),
        ("cifar100", "wrn_16_2", "wrn_16_2"),
        ("tiny_imagenet", "ResNet18", "resnet18_small"),
        ("tiny_imagenet", "MobileNetV2", "mobilenet_v2_tiny"),
        ("imagenet", "ResNet18", "resnet18"),
        ("imagenet", "MobileNetV1", "mobilenet_v1"),
    ],
)
def test_names_of_models_depend_on_the_data(data, theirs, ours, translated):
    teacher = {"cifar100": "vgg13", "tiny_imagenet": "ResNet18", "imagenet": "ResNet34"}[data]
    text = f"DATASET: {{TYPE: {data}}}\nDISTILLER: {{TYPE: KD, TEACHER: {teacher}, STUDENT: {theirs}}}"
    place = () if data == "cifar100" else (f"data={data.replace('_', '-')}:somewhere",)
    assert translated(text, *place).student == ours


def test_a_data_set_of_your_own_needs_its_path(translated, tmp_path):
    text = "DATASET: {TYPE: tiny_imagenet}\nDISTILLER: {TYPE: KD, TEACHER: ResNet18, STUDENT: ShuffleV2}"
    with pytest.raises(ConfigError, match="data: expected tiny-imagenet:PATH with the path"):
        translated(text)
    found = translate(tmp_path / "file.yaml").template()
    assert (found.data, found.augment) == ("tiny-imagenet:PATH", "rotate-flip")


def test_stages_after_the_last_epoch_never_come(translated):
    assert list(translated(f"{PAIR}\nSOLVER: {{EPOCHS: 160}}").milestones) == [150]
    assert list(translated(f"{PAIR}\nSOLVER: {{EPOCHS: 180}}").milestones) == [150]
    short = translated(f"{PAIR}\nSOLVER: {{EPOCHS: 100}}")
    assert (short.schedule, list(short.milestones)) == ("constant", [])


def test_text_that_is_a_number_there_is_one_here(translated):
    found = translated(f"{PAIR}\nSOLVER: {{WEIGHT_DECAY: '5e-4', LR_DECAY_STAGES: '(10, 20)'}}")
    assert (found.weight_decay, list(found.milestones)) == (5e-4, [10, 20])


def test_changes_count_after_the_file(translated):
    found = translated(PAIR + SOLVER, "lr=0.1", "trainer=sgd", "method=dkd", "method_options.beta=4")
    assert (found.lr, found.trainer, found.method, found.method_options) == (0.1, "sgd", "dkd", {"beta": 4})


def test_every_mistake_is_told_at_once_with_the_nearest_name(problems):
    text = """
SOLVR: {LR: 1}
SOLVER: {LRR: 1, TYPE: ADAM, TRAINER: dott, BATCH_SIZE: many}
DISTILLER: {TYPE: KD, TEACHER: ResNet32x4, STUDENT: 3}
KD: {LOSS: 3, TEMPERATUR: 4}
"""
    assert problems(text) == [
        "SOLVR: unknown key, got {'LR': 1}; did you mean SOLVER?",
        "SOLVER.LRR: unknown key, got 1; did you mean SOLVER.LR?",
        "SOLVER.BATCH_SIZE: expected a number, got 'many'",
        "DISTILLER.STUDENT: expected text, got 3",
        "KD.LOSS: expected a section with keys, got 3",
        "KD.TEMPERATUR: unknown key, got 4; did you mean KD.TEMPERATURE?",
        *problems("DISTILLER: {TYPE: KD, TEACHER: ResNet32x4, STUDENT: vgg8}"),
        "SOLVER.TRAINER: expected one of base, crd, dot, crd_dot, got 'dott'; did you mean dot?",
        "SOLVER.TYPE: expected SGD, the one that mdistiller has, got 'ADAM'",
    ]
    (model,) = problems("DISTILLER: {TYPE: KD, TEACHER: ResNet32x4, STUDENT: vgg8}")
    assert model.startswith("DISTILLER.TEACHER: expected one of resnet8, ")
    assert model.endswith("got 'ResNet32x4'; did you mean resnet32x4?")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "DISTILLER: {TYPE: KD, TEACHER: MobileNetV1, STUDENT: ResNet18}\nDATASET: {TYPE: imagenet}",
            "DISTILLER.TEACHER: ",
        ),
        ("DISTILLER: {TYPE: RKD}\nRKD: {PDIST: {SQUARED: true}}", "RKD.PDIST.SQUARED: expected false: "),
        (
            "DISTILLER: {TYPE: FITNET}\nFITNET: {HINT_LAYER: 0}",
            "FITNET.HINT_LAYER: expected a whole number >= 1 (0 is ",
        ),
        ("DATASET: {TYPE: cifar10}", "DATASET.TYPE: expected one of cifar100, tiny_imagenet, imagenet, got 'cifar10'"),
        ("DISTILLER: {TYPE: KDD}", "DISTILLER.TYPE: expected one of NONE, KD, AT, "),
    ],
)
def test_what_has_no_counterpart_is_refused(text, problem, problems):
    found = problems(text)
    assert len(found) == 1
    assert found[0].startswith(problem)


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: expected a YAML file of mdistiller: "):
        translate(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ConfigError, match=r"list\.yaml: expected the sections of an mdistiller file, got \[1, 2\]"):
        translate(tmp_path / "list.yaml")


def test_the_command_tells_what_became_of_each_key_and_prints_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("theirs.yaml").write_text(PAIR + SOLVER + "LOG: {WANDB: false}")
    done = CliRunner().invoke(app, ["recipes", "--from-mdistiller", "theirs.yaml"])
    assert done.exit_code == 0
    told = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in done.stderr.splitlines() if "|" in line}
    assert told["SOLVER.LR"] == "lr=0.05"
    assert told["DISTILLER.STUDENT"] == "student=resnet8x4"
    assert told["KD.TEMPERATURE"] == "temperature=4"
    assert told["LOG.WANDB"].startswith("no meaning here")
    assert "DATASET.NUM_WORKERS" not in told  # neither given nor of any meaning
    assert "teacher_weights=FILE" in done.stderr
    Path("ours.yaml").write_text(done.stdout)
    assert Config.from_sources("ours.yaml") == translate("theirs.yaml").config()


def test_training_from_a_wrong_file_is_wrong_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("theirs.yaml").write_text("SOLVER: {LRR: 1}")
    done = CliRunner().invoke(app, ["train", "--from-mdistiller", "theirs.yaml"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "theirs.yaml: SOLVER.LRR: unknown key, got 1; did you mean SOLVER.LR?" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.yaml"]
