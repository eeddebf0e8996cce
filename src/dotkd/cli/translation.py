"""What became of a file written for mdistiller, key by key, on stderr."""

from __future__ import annotations

from dotkd.cli import console
from dotkd.config_rules import shown
from dotkd.recipes.mdistiller import Translation

# Columns of a terminal with room for all; in fewer the keys of both sides are what should stay whole.
_WIDE = 120


def show_translation(translation: Translation) -> None:
    """A line for each key that the file gives, and for each default of mdistiller's that counts here."""
    remarks = console.progress()
    table = console.table(remarks, "mdistiller", "value", "here")
    table.columns[2].justify = "left"
    if remarks.width < _WIDE:
        table.columns[1].max_width = 14
    for line in translation.lines:
        if line.given or isinstance(line.became, str):
            value = shown(line.value) + ("" if line.given else " (its default)")
            table.add_row(line.key, value, line.became if isinstance(line.became, str) else line.became.why)
    for assignment in translation.implied:
        table.add_row("(always)", "", assignment)
    remarks.print(table)
    if translation.loads_teacher:
        console.say(remarks, "mdistiller loads its teacher: teacher_weights=FILE; without it, it is trained first")
