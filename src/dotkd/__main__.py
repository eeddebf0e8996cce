"""`python -m dotkd` is the command `dotkd`."""

from __future__ import annotations

from dotkd.cli import main

# Worker processes import this file again: the guard keeps them from starting the command once more.
if __name__ == "__main__":
    main()
