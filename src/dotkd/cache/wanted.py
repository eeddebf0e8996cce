"""The cache that a configuration asks for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from dotkd.assembly import Batching
from dotkd.cache.identity import identity_of
from dotkd.cache.layout import HEADER, room_needed
from dotkd.cache.records import Records, records_of
from dotkd.cache.store import Store, matching, open_or_create
from dotkd.config import Config
from dotkd.data import Dataset
from dotkd.distiller import Distiller
from dotkd.methods import card_of


class Wanted(NamedTuple):
    """Where it is, and what it must be. `views` is how many of a sample the run may see."""

    folder: Path
    records: Records
    samples: int
    views: int
    identity: dict[str, Any]

    @classmethod
    def of(cls, config: Config, distiller: Distiller, dataset: Dataset, batching: Batching, precision: str) -> Wanted:
        """What `config.cache` is to be for the teacher as its weights are now. precision: of its passes.

        Raises ValueError for a method or a `cache_top_k` that it cannot serve.
        """
        assert config.cache is not None
        if distiller.looks_inside or distiller.objective.wants_strong:
            raise ValueError(
                f"cache: expected null with method {config.method}, which needs more than one view's logits"
            )
        records = records_of(dataset.num_classes, config.cache_top_k, config.temperature or card_of("kd").temperature)
        identity = identity_of(config, distiller.teacher, dataset, batching, precision)
        views = batching.view_count or config.epochs
        return cls(Path(config.cache).expanduser(), records, len(dataset.train.targets), views, identity)

    @property
    def bytes(self) -> int:
        """What all records take."""
        return room_needed(self.records, self.samples * self.views)

    def refuse_other(self) -> None:
        """Raise ValueError where there is a cache of something else already."""
        if (self.folder / HEADER).exists():
            matching(self.folder, **self._what())

    def open(self, *, room_for: int) -> Store:
        """The cache, made where there is none.

        room_for: how many records of a sample there must be room for. Raises as of `dotkd.cache.store.open_or_create`;
        ValueError where the disk has not that much.
        """
        store = open_or_create(self.folder, **self._what())
        count = self.samples * min(self.views, room_for)
        needed = room_needed(self.records, max(0, count - store.count()))
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise ValueError(
                f"{self.folder}: the cache needs another {in_words(needed)}, and {in_words(free)} are free: make room, "
                "or take fewer views, or cache_top_k"
            )
        return store

    def _what(self) -> dict[str, Any]:
        return {key: value for key, value in self._asdict().items() if key != "folder"}


def in_words(size: int) -> str:
    """A number of bytes as people read it."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"
