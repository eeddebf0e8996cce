"""`dotkd cache`: what a teacher says of every view, computed ahead and kept; or read through, and repaired."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dotkd.cli import failures

if TYPE_CHECKING:
    from dotkd.config import Config

EXAMPLE = """\
  dotkd cache digits teacher_weights=runs/teacher --out caches/digits
  dotkd cache mine.yaml views=20 --out caches/mine --part 1/2
  dotkd cache caches/digits --verify --repair
"""


def cache(
    source: Annotated[str, typer.Argument(metavar="RECIPE|FILE|DIR", help="What is to be trained; or a cache.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value", help="Changes to it; `dotkd recipes RECIPE` explains every key."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The cache; needed to fill one.")] = None,
    top_k: Annotated[
        int | None, typer.Option(metavar="K", help="Keep K classes of a record, sampled without bias. [all]")
    ] = None,
    part: Annotated[
        str, typer.Option(metavar="k/n", help="Fill the k-th of n parts; others may be filled at the same time.")
    ] = "1/1",
    verify: Annotated[bool, typer.Option("--verify", help="Read every record of the cache DIR.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Mark those that are damaged as missing.")] = False,
) -> None:
    """Compute a teacher's logits for every view of the training samples, for runs with cache=DIR.

    The same command goes on where one was stopped. A teacher without weights is trained first, in DIR/teacher. With
    --verify, read a cache through: exit code 1 where a record is damaged and not repaired.
    """
    from dotkd.config import Config

    if verify or repair:
        if overrides or out or top_k:
            raise ValueError("expected nothing but a cache's folder with --verify and --repair")
        _verify(Path(source).expanduser(), repair=repair)
        return
    if out is None:
        raise ValueError("expected --out DIR, the folder of the cache")
    given = [f"cache={out}", *([] if top_k is None else [f"cache_top_k={top_k}"])]
    _fill(Config.from_sources(source, [*(overrides or []), *given]), out, _part(part))


def _fill(config: Config, out: Path, part: tuple[int, int]) -> None:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from dotkd.cache.fill import Filling
    from dotkd.cache.wanted import in_words
    from dotkd.cli.console import progress, results, say
    from dotkd.metrics import display_for
    from dotkd.signals import stop_on_signal
    from dotkd.trainer import Diverged, Interrupted, Trainer

    trainer = Trainer(config, out, display=display_for(progress()), resuming=True)
    assert trainer.cache is not None
    wanted = trainer.cache.wanted()
    trained_here = config.teacher_weights is None and config.teacher_epochs != 0
    each = wanted.bytes // (wanted.samples * wanted.views)
    size = f"samples {wanted.samples} x views {wanted.views} x {each} bytes = {in_words(wanted.bytes)}"
    say(progress(), f"{out}: {size}")
    try:
        trainer.train_teacher()
        teacher = trainer.cache.open(views=wanted.views)
    except Interrupted as stop:
        told = str(stop).partition(";")[0]
        raise failures.leave(failures.INTERRUPTED, f"{told}; give the same command again") from None
    except Diverged as error:
        raise failures.leave(failures.DIVERGED, str(error)) from None
    filling = Filling(
        teacher,
        trainer.dataset,
        trainer.batching,
        views=wanted.views,
        size=max(256, config.batch_size),
        part=part,
        device=trainer.device,
    )
    columns = TextColumn("filling"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with stop_on_signal() as stop, Progress(*columns, console=progress()) as bar:
        task = bar.add_task("", total=len(filling))
        for done in filling.run():
            bar.update(task, completed=done)
            if stop and done < len(filling):
                teacher.flush()
                told = f"{stop.name}: {done} of {len(filling)} blocks are filled; give the same command again"
                raise failures.leave(failures.INTERRUPTED, told)
    read, computed, corrupt = teacher.counts
    again = f", {corrupt} of them anew because they were damaged" if corrupt else ""
    say(results(), f"{out}: {teacher.store.count()} records; {computed} computed{again}, {read} read")
    weights = f" teacher_weights={out / 'teacher'}" if trained_here else ""
    say(results(), f"train from it with: cache={out}{weights}")


def _verify(folder: Path, *, repair: bool) -> None:
    from dotkd.cache.store import Store
    from dotkd.cli.console import results, say

    store = Store(folder)
    damaged, looked_at = list[str](), 0
    for index, view, count in store.damaged():
        looked_at += count
        damaged += [f"sample {i} view {v}" for i, v in zip(index.tolist(), view.tolist(), strict=True)]
        if repair:
            store.remove(index, view)
    say(results(), f"{folder}: {looked_at} records of {store.samples * store.views}, {len(damaged)} damaged")
    if damaged:
        shown = ", ".join(damaged[:10]) + (", ..." if len(damaged) > 10 else "")
        if not repair:
            raise failures.leave(failures.FAILURE, f"damaged: {shown}; --repair marks them as missing")
        say(results(), f"marked as missing: {shown}")


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"expected --part k/n with 1 <= k <= n, got {text!r}")
    return int(found[1]) - 1, int(found[2])
