"""The verbs that list things: recipes, methods, models.

- Each lists all that there is; with a name it tells the options with their defaults; a wrong name is wrong input.
- `recipes` puts what was measured beside what the paper prints; a comparison is recorded for the recipes that it ran,
  with its commit and hardware, and refused where it ran none.
- docs/methods.md is what `methods --markdown` prints.
- Every option of a method has a rule.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from dotkd.cli import app, console
from dotkd.cli.methods import options_of
from dotkd.config import Config
from dotkd.losses import dkd
from dotkd.methods import METHODS, card_of
from dotkd.models import MODELS
from dotkd.models.published import PUBLISHED
from dotkd.recipes import RECIPES, measured
from run_folders import make_run

ROOT = Path(__file__).parent.parent
PAIR = "cifar100-resnet32x4-resnet8x4"


def dotkd(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def printed(*words: object) -> str:
    code, out, err = dotkd(*words)
    assert code == 0, err
    return out


def rows(text: str) -> dict[str, list[str]]:
    """{first cell: the others} of the Markdown table in `text`."""
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines() if "|" in line]
    return {first: rest for first, *rest in cells}


@pytest.fixture
def record_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "measured.json"
    path.write_text("{}")
    monkeypatch.setattr(measured, "FILE", path)
    return path


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """Of the recipes -kd and -kd-dot over three seeds, as `dotkd compare` leaves it."""
    folder = tmp_path / "compared"
    for cell, trainer, recipe in (("kd", "sgd", f"{PAIR}-kd"), ("kd+dot", "dot", f"{PAIR}-kd-dot")):
        for seed, accuracy in enumerate((0.70, 0.72, 0.74)):
            changes = {"seed": seed, "threads": 1, "teacher_weights": "somewhere", "device": "cuda"}
            config = RECIPES[recipe].config.replace(**changes)
            run(
                folder / cell / f"seed-{seed}", config, accuracy + 0.02 * (trainer == "dot"), trainer=trainer, seed=seed
            )
    (folder / "comparison.yaml").write_text("{}")
    return folder


def run(folder: Path, config: Config, accuracy: float, **about: object) -> None:
    make_run(folder, accuracy=accuracy, **about)
    change(folder, config=config.model_dump(), commit="0123456789ab", hardware="a machine")


def change(folder: Path, **values: object) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# --- recipes


def test_recipes_shows_the_paper_beside_what_was_measured(record_file, comparison):
    before = rows(printed("recipes"))
    assert before[f"{PAIR}-kd"] == ["73.33", "not measured", ""]
    assert all(name in before for name in RECIPES if not name.endswith("-mini"))
    told = printed("recipes", "--record", comparison)
    # t(0.975, 2) = 4.302653; s = 0.02; half width 4.302653 * 2 / sqrt(3) = 4.968 points.
    assert f"{PAIR}-kd-dot: 74.00 ± 4.97 %, n = 3, 0123456789ab, a machine" in told
    listed = printed("recipes")
    assert rows(listed)[f"{PAIR}-kd"] == ["73.33", "72.00 ± 4.97", "3"]
    assert rows(listed)[f"{PAIR}-kd-dot"] == ["75.12", "74.00 ± 4.97", "3"]
    figures = measured.read()[f"{PAIR}-kd"]
    assert f"\n{PAIR}-kd: 0123456789ab, a machine, {figures.date}: {figures.command}\n" in listed
    assert figures.command == f"dotkd compare {PAIR}-kd --trainers sgd --seeds 3"
    assert (figures.mean, figures.half_width) == (72.0, 4.968)


def test_a_later_record_replaces_the_earlier_and_leaves_others(record_file, comparison):
    measured.record(comparison, RECIPES)
    for seed in range(3):
        change(comparison / "kd" / f"seed-{seed}", commit="ba9876543210")
    for path in (comparison / "kd+dot").rglob("summary.json"):
        path.unlink()
    measured.record(comparison, RECIPES)
    found = measured.read()
    assert {name: figures.commit for name, figures in found.items()} == {
        f"{PAIR}-kd": "ba9876543210",
        f"{PAIR}-kd-dot": "0123456789ab",
    }


def test_one_seed_has_no_interval(record_file, tmp_path):
    folder = tmp_path / "c"
    run(folder / "kd" / "seed-4", RECIPES[f"{PAIR}-kd-mini"].config.replace(seed=4), 0.5, trainer="sgd", seed=4)
    (folder / "comparison.yaml").write_text("{}")
    assert "50.00 ± - %, n = 1" in printed("recipes", "--record", folder)
    assert measured.read()[f"{PAIR}-kd-mini"].command == (
        f"dotkd compare {PAIR}-kd-mini seed=4 --trainers sgd --seeds 1"
    )
    assert f"{PAIR}-kd-mini" in rows(printed("recipes"))


def test_what_is_no_recipe_or_no_single_measurement_is_refused(record_file, comparison, tmp_path):
    def refused(message: str, folder: Path = comparison) -> None:
        code, out, err = dotkd("recipes", "--record", folder)
        assert (code, out) == (2, "")
        assert message in err
        assert measured.read() == {}

    refused("which has no comparison.yaml", tmp_path)
    change(comparison / "kd" / "seed-1", commit="ba9876543210")
    refused("expected one commit for all runs of kd, got 0123456789ab, ba9876543210")
    change(comparison / "kd" / "seed-1", commit="0123456789ab", status="diverged")
    refused("expected every run of kd to end with an accuracy, got 1 that diverged")
    for cell, trainer in (("kd", "sgd"), ("kd+dot", "dot")):
        for seed in range(3):
            other = RECIPES[f"{PAIR}-kd"].config.replace(trainer=trainer, lr=0.07, ema=0.9)
            change(comparison / cell / f"seed-{seed}", config=other.model_dump(), status="done")
    refused(f"kd differs from {PAIR}-kd in lr, ema")


def test_one_recipe_is_printed_with_its_summary():
    text = printed("recipes", f"{PAIR}-kd-dot")
    assert text.startswith(f"# {PAIR}-kd-dot: resnet32x4 > resnet8x4: KD by DOT\n")
    assert "# learning rate at its highest (a number > 0)\nlr: 0.05\n" in text


# --- methods and models


def test_methods_lists_all_with_what_was_published():
    found = rows(printed("methods"))
    assert METHODS.keys() <= found.keys()
    assert found["kd"] == ["Knowledge distillation", "Hinton 2015 1503.02531", "distill", "0.1, 0.9", "4"]
    assert found["at"][-2:] == ["1, 1000", ""]


def test_one_method_is_told_with_equation_options_and_points():
    text = printed("methods", "dkd")
    assert card_of("dkd").equation in text
    assert dkd.__doc__ is not None
    assert dkd.__doc__.splitlines()[0] in text
    assert "\n  beta=8.0: weight of NCKD, >= 0" in text
    assert "weights as published: task 1, distillation 1, rising over 20 epochs" in text
    assert "feature maps" not in text
    assert "feature maps: student_features and teacher_features" in printed("methods", "at")


@pytest.mark.parametrize("name", METHODS)
def test_every_option_of_a_method_has_a_rule(name):
    assert all(option.rule for option in options_of(name))
    assert not {"temperature", "target", "targets", "student", "teacher"} & {option.name for option in options_of(name)}


def test_the_documentation_of_the_methods_is_what_the_command_prints():
    assert (ROOT / "docs" / "methods.md").read_text("utf-8") == printed("methods", "--markdown"), "make docs"


def test_models_lists_all_with_their_sizes():
    text = printed("models")
    found = rows(text)
    assert MODELS.keys() <= found.keys()
    assert found["resnet20"] == ["278,324", "278,324", "100", "3x32x32", "8 to 128"]
    assert found["resnet18"][0] == found["resnet18"][1] == f"{PUBLISHED['resnet18'].parameters:,}"
    for form in ("timm:NAME", "torchvision:NAME", "transformers:NAME", "module:attr"):
        assert f"\n{form}: " in text


def test_one_model_is_told_with_its_options():
    text = printed("models", "resnet2d")
    assert "  width=16\n" in text
    assert "feature maps: stages.0, stages.1, stages.2" in text
    assert "options: it has none" in printed("models", "vgg8")


@pytest.mark.parametrize(
    ("verb", "whole"),
    [
        ("methods", ["Consistency-regularised", "Zagoruyko 2017", "nontarget", "1, 30000"]),
        ("models", ["mobilenet_v2_cifar", "14,728,266", "3x224x224", "at least 64"]),
        ("recipes", ["cifar100-resnet32x4-shufflenetv2-crd-dot", "not measured"]),
    ],
)
def test_the_lists_fit_80_columns_without_a_broken_word(verb, whole, monkeypatch):
    shown = io.StringIO()
    terminal = Console(file=shown, width=80, force_terminal=True, color_system=None, highlight=False, markup=False)
    monkeypatch.setattr(console, "results", lambda: terminal)
    printed(verb)
    lines = [line for line in shown.getvalue().splitlines() if line.startswith(" ")]  # the table alone
    assert max(len(line) for line in lines) <= 80
    assert all(any(word in line for line in lines) for word in whole)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipes", "digit"], "that `dotkd recipes` lists, got 'digit'; did you mean digits?"),
        (["recipes", "digits", "--record", "c"], "expected --record DIR alone, got digits beside it"),
        (["recipes", "--from-mdistiller"], "expected the file to translate after --from-mdistiller, got none"),
        (["methods", "dkdd"], "got 'dkdd'; did you mean dkd?"),
        (["methods", "kd", "--markdown"], "expected --markdown without a name"),
        (["models", "resnet21"], "got 'resnet21'; did you mean resnet"),
    ],
)
def test_wrong_input_is_one_message(words, message):
    code, out, err = dotkd(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
