"""The recipes.

- Each cell of the DOT paper's tables is a recipe with the paper's settings and the paper's number.
- KD and KD + DOT of a pair differ in the trainer alone; DKD and CRD keep the setting and have their own weights.
- All train on the whole training split; the models take the data's images.
- A twin, NAME-mini, has the method, the options, the trainer and the shape of the schedule of its full recipe.
- A teacher's recipe is the training that the recipes learning from it would do themselves.
- A recipe is read back from its YAML; what needs a path is refused without one.
"""

from __future__ import annotations

import pytest
import torch

from dotkd import models
from dotkd.config import Config, ConfigError
from dotkd.config_teacher import teacher_config
from dotkd.recipes import RECIPES, row
from dotkd.trainer import Trainer

CIFAR = {"epochs": 240, "batch_size": 64, "milestones": (150, 180, 210), "weight_decay": 5e-4, "delta": 0.075}
TINY = {"epochs": 200, "batch_size": 256, "milestones": (60, 120, 160), "weight_decay": 5e-4, "delta": 0.075, "lr": 0.2}
IMAGENET = {
    "epochs": 100,
    "batch_size": 512,
    "milestones": (30, 60, 90),
    "weight_decay": 1e-4,
    "delta": 0.09,
    "lr": 0.2,
}

# The paper's rows: name, settings, accuracy of KD and of KD + DOT, and DKD's beta for the pair (None: its default).
ROWS = [
    ("cifar100-resnet32x4-resnet8x4", {**CIFAR, "lr": 0.05}, 73.33, 75.12, 8.0),
    ("cifar100-vgg13-vgg8", {**CIFAR, "lr": 0.05}, 72.98, 73.77, 6.0),
    ("cifar100-resnet32x4-shufflenetv2", {**CIFAR, "lr": 0.01}, 74.45, 75.55, 8.0),
    ("tiny-resnet18-mobilenetv2", TINY, 58.35, 64.01, None),
    ("tiny-resnet18-shufflenetv2", TINY, 62.26, 65.75, None),
    ("imagenet-resnet34-resnet18", IMAGENET, 71.03, 71.72, 0.5),
    ("imagenet-resnet50-mobilenetv1", IMAGENET, 70.50, 73.09, 2.0),
]
NAMES = [row[0] for row in ROWS]
TEACHERS = {"cifar100-resnet32x4": 79.42, "cifar100-vgg13": 74.64, "tiny-resnet18": None}
FULL = [f"{name}-{method}" for name in NAMES for method in ("kd", "kd-dot", "dkd-dot", "crd-dot")] + list(TEACHERS)
IMAGES = {"cifar100": ((3, 32, 32), 100), "tiny-imagenet": ((3, 64, 64), 200), "imagenet": ((3, 224, 224), 1000)}
IMAGES["digits"] = ((1, 8, 8), 10)


def config(name: str) -> Config:
    return RECIPES[name].config


@pytest.mark.parametrize(("name", "settings", "kd", "dot", "beta"), ROWS, ids=NAMES)
def test_a_row_has_the_settings_and_numbers_of_the_paper(name, settings, kd, dot, beta):
    assert (RECIPES[f"{name}-kd"].paper, RECIPES[f"{name}-kd-dot"].paper) == (kd, dot)
    by_dot = config(f"{name}-kd-dot")
    expected = {**settings, "trainer": "dot", "method": "kd", "momentum": 0.9, "schedule": "step", "gamma": 0.1}
    assert {key: getattr(by_dot, key) for key in expected} == expected
    weights = (by_dot.temperature, by_dot.task_weight, by_dot.distill_weight)
    assert weights == ((1.0, 0.5, 0.5) if name.startswith("imagenet") else (None, None, None))
    assert config(f"{name}-kd") == by_dot.replace(trainer="sgd")
    dkd, crd = config(f"{name}-dkd-dot"), config(f"{name}-crd-dot")
    assert dkd.method_options.get("beta") == beta
    assert (dkd.method, crd.method) == ("dkd", "crd")
    for other in (dkd, crd):
        assert (other.task_weight, other.distill_weight, other.trainer) == (None, None, "dot")
    assert (dkd.batch_size, dkd.lr) == (settings["batch_size"], settings["lr"])
    assert (crd.batch_size, crd.lr) == ((256, 0.1) if name.startswith("imagenet") else (dkd.batch_size, dkd.lr))


def test_imagenet_dkd_has_its_own_temperature_and_warm_up():
    for name in NAMES[-2:]:
        dkd = config(f"{name}-dkd-dot")
        assert (dkd.temperature, dkd.distill_warmup_epochs) == (1.0, 1.0)


@pytest.mark.parametrize("name", FULL)
def test_the_models_take_the_images_of_the_data(name):
    for recipe in (name, f"{name}-mini"):
        made = config(recipe)
        shape, classes = IMAGES[made.data.partition(":")[0]]
        for spec in (made.teacher, made.student):
            if ":" not in spec:
                with torch.device("meta"):
                    models.build(spec, num_classes=classes, input_shape=shape)


def test_all_of_the_training_split_is_trained_on():
    assert {config(name).validation for name in FULL} == {0.0}


@pytest.mark.parametrize("name", FULL)
def test_a_twin_is_the_same_experiment_scaled_down(name):
    full, twin = config(name), config(f"{name}-mini")
    same = ("method", "method_options", "trainer", "momentum", "delta", "weight_decay", "temperature", "task_weight")
    same += ("distill_weight", "schedule", "gamma", "validation")
    assert {key: getattr(twin, key) for key in same} == {key: getattr(full, key) for key in same}
    assert twin.epochs * 20 == full.epochs
    assert list(twin.milestones) == [stage // 20 for stage in full.milestones]
    # The linear rule: as much learning rate for each sample of a batch.
    assert twin.lr / twin.batch_size == pytest.approx(full.lr / full.batch_size)
    assert RECIPES[f"{name}-mini"].paper is None


def test_the_warm_up_of_a_twin_is_as_short_as_the_twin():
    assert config("cifar100-vgg13-vgg8-dkd-dot").distill_warmup_epochs is None  # as published: 20 of 240 epochs
    assert config("cifar100-vgg13-vgg8-dkd-dot-mini").distill_warmup_epochs == 1.0  # of 12
    assert config("cifar100-vgg13-vgg8-kd-dot-mini").distill_warmup_epochs is None


@pytest.mark.parametrize(("name", "paper"), TEACHERS.items())
def test_a_teacher_alone_is_trained_as_the_recipes_would_train_it(name, paper):
    assert RECIPES[name].paper == paper
    for suffix in ("", "-mini"):
        learning = [key for key in RECIPES if key.startswith(f"{name}-") and key.endswith(f"-kd-dot{suffix}")]
        assert learning
        alone = config(name + suffix)
        for key in learning:
            trained = teacher_config(config(key))
            keys = (
                "data",
                "student",
                "student_options",
                "method",
                "trainer",
                "epochs",
                "lr",
                "batch_size",
                "milestones",
            )
            keys += ("schedule", "momentum", "weight_decay", "augment", "validation", "label_smoothing")
            assert {k: getattr(alone, k) for k in keys} == {k: getattr(trained, k) for k in keys}


def test_a_teacher_alone_has_the_learning_rate_of_teachers():
    by_students = config("cifar100-resnet32x4-shufflenetv2-kd-dot")
    assert (by_students.lr, by_students.teacher_lr) == (0.01, 0.05)
    assert row.teacher("alone", by_students, None, {})["alone"].config.lr == 0.05
    assert row.teacher("alone", by_students.replace(teacher_lr=None), None, {})["alone"].config.lr == 0.01


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_read_back_from_its_yaml(name, tmp_path):
    made, file = config(name), tmp_path / "mine.yaml"
    file.write_text(made.to_yaml())
    if made.data.endswith(":PATH"):
        with pytest.raises(ConfigError, match=f"data: expected {made.data} with the path of your own data as PATH"):
            Config.from_sources(name)
        place = f"data={made.data.removesuffix('PATH')}somewhere"
        assert Config.from_sources(file, [place]) == Config.from_sources(name, [place])
    else:
        assert Config.from_sources(file) == Config.from_sources(name) == made


def test_a_twin_trains(tmp_path):
    short = ("epochs=1", "schedule=constant", "milestones=[]", "batch_size=512", "threads=1", "device=cpu")
    made = Config.from_sources("cifar100-resnet32x4-resnet8x4-kd-dot-mini", [*short, "teacher=resnet8"])
    summary = Trainer(made, tmp_path / "run").fit()
    assert (summary["status"], summary["steps"]) == ("done", 2)
    assert summary["losses"]["test"]["distill"] > 0
