"""Pairs made on the fly: a sharp photograph, and the same with the blur of `hidiff.synthesis`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt

from hidiff.data.cache import ImageCache
from hidiff.data.dataset import PairSet, to_tensor
from hidiff.data.decode import read_header
from hidiff.data.image import listing, to_uint8
from hidiff.data.pairs import Pair
from hidiff.data.sampler import CropRequest
from hidiff.data.store import file_of, find_images, read_location
from hidiff.data.transforms import SYMMETRIES, draw_offset
from hidiff.registry import DATASETS
from hidiff.synthesis.exposure import Box
from hidiff.synthesis.recipe import Recipe, check_order
from hidiff.utils.errors import UserError, expanded
from hidiff.utils.random import StreamKey, rng

KEPT_BYTES = 128 * 2**20
"""Decoded photographs that each process keeps, those read last."""

Factor = Annotated[float, Field(gt=0, le=1)]
ScaleRange = Annotated[tuple[Factor, Factor], AfterValidator(check_order)]


@DATASETS.register()
class SyntheticBlurDataset(PairSet):
    """Sharp photographs, and blurry versions of them that are made when they are read.

    Items are those of `PairSet`. Indexed by a number it gives the whole photograph,
    always with the same blur, that of `seed` and the photograph's name. Indexed by a `CropRequest`
    it gives a patch and a blur that depend on the photograph, the request and the options alone.

    Grey photographs are used: their targets have three equal channels.

    Args:
        where: YAML path of the section, for messages.
        dataroot_gt: folder or LMDB of sharp photographs, or a list of such.
        blur: a section for each part of `hidiff.synthesis.recipe.Recipe`; `part: ~` turns it off.
        scale: limits of the random factor, at most 1, by which a photograph is made smaller; it
            removes noise and traces of compression, and varies the textures. A photograph never
            becomes smaller than the patch.
        min_size: photographs with a shorter side below this many pixels are left out.
        seed: of the blur of whole photographs.
        cache: folder for the decoded photographs, see `ImageCache`; None decodes when needed, and
            each process keeps those it read last.

    Raises:
        UserError: a folder is missing or has no usable photograph, or an option makes no sense; on
            reading also: a photograph is damaged, or smaller than the patch.
    """

    def __init__(
        self,
        *,
        where: str,
        dataroot_gt: str | list[str],
        blur: Mapping[str, Any] | None = None,
        scale: ScaleRange = (0.5, 1.0),
        min_size: PositiveInt = 256,
        seed: NonNegativeInt = 0,
        cache: str | None = None,
    ) -> None:
        self.recipe = Recipe.checked({} if blur is None else blur, f"{where}.blur")
        self.scale = scale
        self.seed = seed
        roots = [dataroot_gt] if isinstance(dataroot_gt, str) else list(dataroot_gt)
        if not roots:
            raise UserError(f"{where}.dataroot_gt: the list is empty; name a folder of photographs")
        pairs, notices = _usable(roots, min_size, where)
        super().__init__(
            pairs, notices, cache=None if cache is None else ImageCache(cache, f"{where}.cache")
        )
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()

    def _photograph(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8; not to be written to."""
        if self.cache is not None:
            return to_uint8(self.read(self.pairs[index].lq))
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        image = to_uint8(self.read(self.pairs[index].lq))
        self._kept[index] = image
        while len(self._kept) > 1 and sum(i.nbytes for i in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return image

    def whole_pair(self, index: int) -> dict[str, Any]:
        lq, gt = self.whole(index)
        return {"lq": to_tensor(lq), "gt": to_tensor(gt)}

    def whole(self, index: int, number: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The blurry and the sharp version of a whole photograph, (H, W, 3) uint8 RGB.

        Args:
            number: of the blur; 0 is that of the data set's items.
        """
        photograph = self._photograph(index)
        seed = (self.seed, "whole", number, self.pairs[index].name)
        scale = rng(*seed, "scale").uniform(*self.scale)
        height, width = (max(round(side * scale), 1) for side in photograph.shape[:2])
        return self._make(photograph, (height, width), Box(0, 0, width, height), seed)

    def patch(self, request: CropRequest) -> dict[str, Any]:
        photograph = self._photograph(request.index)
        height, width = photograph.shape[:2]
        shorter = min(height, width)
        if shorter < request.crop_size:
            raise UserError(
                f"{self.pairs[request.index].lq} is {width}×{height} pixels, smaller than the "
                f"patches of {request.crop_size} (datasets.train.gt_size); lower gt_size and "
                f"gt_sizes, or leave such photographs out with min_size: {request.crop_size}"
            )
        draws = rng(*request.seed, "crop")
        scale = max(draws.uniform(*self.scale), request.crop_size / shorter)
        size = tuple(max(round(side * scale), request.crop_size) for side in (height, width))
        sizes = request.crop_size, request.patch_size
        top, left = (draw_offset(length, *sizes, draws) for length in size)
        symmetry = int(draws.integers(SYMMETRIES))
        patch = Box(left, top, request.patch_size, request.patch_size)
        lq, gt = self._make(photograph, size, patch, request.seed)
        return {"lq": torch.from_numpy(lq), "gt": torch.from_numpy(gt), "symmetry": symmetry}

    def _make(
        self, photograph: np.ndarray, size: tuple[int, int], patch: Box, seed: StreamKey
    ) -> tuple[np.ndarray, np.ndarray]:
        """The blurry and the sharp `patch` of a photograph reduced to `size`, uint8."""
        sample = self.recipe.draw(seed, size, patch)
        return sample.render(_part(photograph, sample.source, size))


def _part(photograph: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """The pixels of the photograph that a box of it, reduced to `size`, is made of."""

    def span(start: int, length: int, side: int, reduced: int) -> slice:
        factor = side / reduced
        first = min(round(start * factor), side - length)
        return slice(first, max(round((start + length) * factor), first + length))

    rows = span(box.top, box.height, photograph.shape[0], size[0])
    columns = span(box.left, box.width, photograph.shape[1], size[1])
    return photograph[rows, columns]


def _usable(roots: Sequence[str], min_size: int, where: str) -> tuple[list[Pair], list[str]]:
    """The photographs in some folders that can be used, and notices about the others."""
    where_root = f"{where}.dataroot_gt"
    pairs, notices, unreadable, small = [], [], [], []
    for number, root in enumerate(roots, start=1):
        images, said = find_images(expanded(root), where_root)
        notices += said
        for name, place in images.items():
            try:
                source = Path(place) if place == file_of(place) else read_location(place)
                header = read_header(source, place)
            except UserError:
                unreadable.append(place)
                continue
            if min(header.width, header.height) < min_size:
                small.append(f"{place} ({header.width}×{header.height})")
                continue
            # Folders may have equal names.
            unique = name if len(roots) == 1 else f"{number}_{name}"
            pairs.append(Pair(unique.replace("/", "-"), place, place))
    left_out = {
        f"{len(unreadable)} files are damaged or no images": unreadable,
        f"{len(small)} photographs have a side below {min_size} pixels (min_size)": small,
    }
    notices += [
        f"{where_root}: {what}, and are left out ({listing(places)})"
        for what, places in left_out.items()
        if places
    ]
    if not pairs:
        raise UserError(
            f"{where_root}: no photograph can be used: {' and '.join(left_out)} "
            f"({listing(unreadable + small)}); name other folders or lower {where}.min_size"
        )
    return pairs, notices
