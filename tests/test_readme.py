"""The README tells the truth: its Python runs, its commands and keys exist, its tree is the one on disk."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dotkd.cli import app
from dotkd.config import Config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_runs_in_the_order_in_which_it_stands():
    namespace: dict[str, object] = {}
    snippets = blocks("python")
    assert len(snippets) >= 2
    for snippet in snippets:
        exec(snippet, namespace)
    assert namespace["task"].shape == namespace["distill"].shape == ()


def test_the_diff_is_the_loop_of_a_real_optimizer():
    """The added lines, put in place of the removed ones, run."""
    import torch
    import torch.nn.functional as F

    import dotkd

    (diff,) = blocks("diff")
    lines = [line[1:] for line in diff.splitlines() if not line.startswith("-")]
    student, teacher = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3).requires_grad_(False)
    before = student.weight.detach().clone()
    loader = [(torch.randn(8, 4), torch.randint(0, 3, (8,)))]
    exec("\n".join(lines), {"dotkd": dotkd, "F": F, "student": student, "teacher": teacher, "loader": loader})
    assert not torch.equal(before, student.weight)


@pytest.mark.parametrize("command", [c for b in blocks("sh") for c in b.splitlines() if c.startswith("dotkd ")])
def test_every_command_has_known_options_and_keys(command):
    verb, *words = command.partition("#")[0].split()[1:]
    shown = CliRunner().invoke(app, [verb, "--help"])
    assert shown.exit_code == 0, shown.output
    for word in words:
        if word.startswith("--"):
            assert word in shown.output, f"{verb} has no {word}"
        elif "=" in word:
            assert word.partition("=")[0] in Config.model_fields


def test_every_make_target_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"make ([a-z]+)", README))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}\b.*:", makefile, flags=re.MULTILINE), f"no target {target}"


def test_the_tree_is_the_one_on_disk():
    tree = README.partition("## What is where")[2].partition("```text\n")[2].partition("```")[0]
    shown: set[str] = set()
    folder = ""
    for line in tree.splitlines():
        name = line.split()[0]
        folder = "" if not line.startswith(" ") else folder
        if not line.startswith(" ") and name.endswith("/"):
            folder = name
        path = name if not line.startswith(" ") else folder + name
        assert (ROOT / path).exists(), f"the README shows {path}"
        assert len(line.split()) > 2, f"{path} needs a word of explanation"
        shown.add(path)
    package = ROOT / "src" / "dotkd"
    for entry in package.iterdir():
        if entry.name.startswith("__") or entry.name == "py.typed":
            continue
        path = f"src/dotkd/{entry.name}" + ("/" if entry.is_dir() else "")
        assert path in shown, f"the README does not show {path}"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
