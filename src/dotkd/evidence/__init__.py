"""Evidence from run folders: statistics, controls, curves. Nothing here imports the trainer."""

from __future__ import annotations
