"""The command line, one verb a file. torch is imported by the verbs that need it, so that help is quick."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
import typer.core

from dotkd.cli import (
    analyse,
    bench,
    cache,
    compare,
    demo,
    evaluate,
    export,
    failures,
    methods,
    models,
    ranks,
    recipes,
    report,
    resume,
    train,
    tune,
)

EPILOG = """\b
Exit codes:
  0    done
  1    a failure while running: disk, damaged files, an export that differs
  2    wrong input: nothing was started
  3    a run diverged
  75   interrupted, a checkpoint is saved: `dotkd resume DIR` (or the same
       `dotkd compare`, `dotkd tune`, `dotkd demo`) continues
  130  interrupted before there was anything to save

\b
Example:
  dotkd demo
  dotkd train mnist1d trainer=dot lr=0.05 --out runs/first
"""


class _Verbs(typer.core.TyperGroup):
    """The verbs, and the one place where an error becomes a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        with failures.reported(debug=bool(ctx.params.get("debug"))), ranks.joined():
            return super().invoke(ctx)


app = typer.Typer(
    name="dotkd",
    cls=_Verbs,
    help="Distil small models from large ones; the distillation loss gets a momentum of its own.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain text: brackets in `[key=value ...]` are not markup, and help reads the same in a terminal and a pipe.
    rich_markup_mode=None,
)

for _name, _verb, _example in (
    ("demo", demo.demo, demo.EXAMPLE),
    ("train", train.train, train.EXAMPLE),
    ("resume", resume.resume, resume.EXAMPLE),
    ("compare", compare.compare, compare.EXAMPLE),
    ("tune", tune.tune, tune.EXAMPLE),
    ("analyse", analyse.analyse, analyse.EXAMPLE),
    ("eval", evaluate.evaluate, evaluate.EXAMPLE),
    ("export", export.export, export.EXAMPLE),
    ("report", report.report, report.EXAMPLE),
    ("recipes", recipes.recipes, recipes.EXAMPLE),
    ("methods", methods.methods, methods.EXAMPLE),
    ("models", models.models, models.EXAMPLE),
    ("cache", cache.cache, cache.EXAMPLE),
    ("bench", bench.bench, bench.EXAMPLE),
):
    app.command(_name, epilog=f"\b\nExample:\n{_example}")(_verb)


def _version(wanted: bool) -> None:
    if wanted:
        from dotkd import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (as DOTKD_TRACEBACK=1 does).")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the verb; they are read where the verb is invoked."""
    ranks.refuse_several(ctx.invoked_subcommand)


def main() -> None:
    """Entry point of the command `dotkd`. Never returns: ends in SystemExit with one of the exit codes."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that has no sign for plus-minus should cost a sign, not the result.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    try:
        app(prog_name="dotkd")
    except BrokenPipeError:
        # The reader left (`dotkd recipes | head`): end in silence, also when the interpreter flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
