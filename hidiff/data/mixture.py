"""The training set: one data set, or several that are mixed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from hidiff.data.dataset import PairSet
from hidiff.data.sampler import CropRequest, Shares
from hidiff.options import DatasetOptions


class Mixture(PairSet):
    """The pairs of several data sets, one set after the other.

    Items are those of the sets. Where there are several, `name` begins with the set's place among
    the options, as in 'train.reds/scene-007'.

    Args:
        sections: the options of each set.
        sets: with sharp images.

    Attributes:
        shares: of the sets in the samples.
    """

    def __init__(self, sections: Sequence[DatasetOptions], sets: Sequence[PairSet]) -> None:
        self.sections, self.sets = tuple(sections), tuple(sets)
        self.shares = Shares([section.weight for section in sections], [len(s) for s in sets])
        places = [section.where.removeprefix("datasets.") for section in sections]
        self._prefixes = [f"{place}/" for place in places] if len(places) > 1 else [""]
        pairs = [
            dataclasses.replace(pair, name=prefix + pair.name)
            for prefix, part in zip(self._prefixes, sets, strict=True)
            for pair in part.pairs
        ]
        super().__init__(pairs, [notice for part in sets for notice in part.notices])

    def __getitem__(self, item: int | CropRequest) -> dict[str, Any]:
        index = item.index if isinstance(item, CropRequest) else item
        number = self.shares.set_of(index)
        index -= self.shares.starts[number]
        inner = dataclasses.replace(item, index=index) if isinstance(item, CropRequest) else index
        found = self.sets[number][inner]
        return {**found, "name": self._prefixes[number] + found["name"]}

    def fingerprint(self) -> str:
        """That of every set, see `PairSet.fingerprint`."""
        return "; ".join(part.fingerprint() for part in self.sets)

    def counted(self, samples: int) -> str:
        """How many of the first `samples` of a training are of each set, for the log."""
        counts = zip(self.sections, self.shares.counts(samples), strict=True)
        return ", ".join(f"{section.label} {count}" for section, count in counts)

    def describe(self, samples: int) -> list[str]:
        """What is mixed, for the log of a training on `samples`; a line a set."""
        if len(self.sets) == 1:
            return [f"training set: {len(self)} pairs"]
        return [
            f"training set {section.label}: {size} pairs, weight {section.weight:g}, {count} of "
            f"{samples} samples"
            for section, size, count in zip(
                self.sections, self.shares.sizes, self.shares.counts(samples), strict=True
            )
        ]
