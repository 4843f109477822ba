"""What all data sets share, and the set of blurry and sharp images that were taken."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hidiff.data.cache import ImageCache
from hidiff.data.decode import decode
from hidiff.data.image import to_float
from hidiff.data.pairs import Pair, find_pairs
from hidiff.data.sampler import CropRequest
from hidiff.data.store import file_of, is_lmdb, read_location
from hidiff.data.transforms import SYMMETRIES, draw_offset
from hidiff.registry import DATASETS, StrictModel
from hidiff.utils.errors import UserError
from hidiff.utils.random import rng


def to_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) pixels of 8 or 16 bits → float32 (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(to_float(image).transpose(2, 0, 1)))


class PairSet(Dataset):
    """Blurry and sharp images.

    Indexed by a number it gives whole images: a dict of `lq` and `gt`, float32 (3, H, W) RGB in
    [0, 1] (`gt` is absent where there is no sharp one), and `name`.

    Indexed by a `CropRequest` it gives a patch for `hidiff.data.transfer.to_device` to finish: `lq`
    and `gt`, (h, w, 3) RGB uint8, or float32 in [0, 1] where the image has 16 bits; `symmetry`, the
    number of the symmetry of the square that is still to be applied to both; and `name`.

    Args:
        pairs: what it holds, in order.
        notices: what a person should know of the folders and is no mistake.
        has_gt: whether there are sharp images.
        cache: of decoded images; None decodes on every reading.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        notices: Sequence[str] = (),
        *,
        has_gt: bool = True,
        cache: ImageCache | None = None,
    ) -> None:
        self.pairs, self.notices = list(pairs), list(notices)
        self.has_gt = has_gt
        self.cache = cache

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, item: int | CropRequest) -> dict[str, Any]:
        if isinstance(item, CropRequest):
            return {**self.patch(item), "name": self.pairs[item.index].name}
        return {**self.whole_pair(item), "name": self.pairs[item].name}

    def patch(self, request: CropRequest) -> dict[str, Any]:
        """`lq`, `gt` and `symmetry` of an item."""
        raise NotImplementedError

    def whole_pair(self, index: int) -> dict[str, Any]:
        """`lq` and `gt` of an item, and `cropped` where the sharp image was."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """The number of the pairs and a SHA-256 of their names: the same on every machine."""
        names = [(p.name, p.gt and Path(p.gt).name) for p in self.pairs]
        digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
        return f"{len(names)} pairs, SHA-256 of their names {digest}"

    def files(self, index: int) -> list[str]:
        """The files that a pair is read from."""
        pair = self.pairs[index]
        return [file_of(place) for place in dict.fromkeys((pair.lq, pair.gt)) if place is not None]

    def blurry_file(self, index: int) -> tuple[bytes, str]:
        """The content of a blurry image's file, and its place for messages.

        Raises:
            UserError: it cannot be read.
        """
        place = self.pairs[index].lq
        return read_location(place), place

    def read(self, location: str) -> np.ndarray:
        """An image (H, W, 3), uint8 or uint16; a read-only view where it comes from the cache.

        Raises:
            UserError: it cannot be read or decoded.
        """

        def load(location: str) -> np.ndarray:
            return decode(read_location(location), location).pixels

        return load(location) if self.cache is None else self.cache.read(location, load)


class IoBackend(StrictModel):
    """Where the images of a data set lie, as BasicSR's option files say it."""

    type: Literal["disk", "lmdb"] = "disk"


@DATASETS.register()
class PairedImageIRDataset(PairSet):
    """Blurry and sharp images that were taken, matched by name; for its items see `PairSet`.

    Of a sharp image that is larger than the blurry one a whole pair has the part at the top left,
    and `cropped` is there.

    Args:
        where: YAML path of the section, for messages.
        dataroot_lq: folder (or .lmdb) of the blurry images, or of both, see `find_pairs`.
        dataroot_gt: the same for the sharp ones; None where there are none.
        filename_tmpl: the blurry image's name made from the sharp one's, or both names, as in
            '{}_blur|{}_sharp'; None finds out.
        io_backend: `type: disk` or `type: lmdb`; None looks.
        meta_info_file: text file that lists the pairs to use.
        cache: folder for the decoded images, see `ImageCache`; None decodes on every reading.

    Raises:
        UserError: a folder is missing or empty, or an image has no counterpart; on reading also: an
            image is damaged, smaller than the patch, or of another size than its counterpart.
    """

    def __init__(
        self,
        *,
        where: str,
        dataroot_lq: str,
        dataroot_gt: str | None = None,
        filename_tmpl: str | None = None,
        io_backend: IoBackend | None = None,
        meta_info_file: str | None = None,
        cache: str | None = None,
    ) -> None:
        if io_backend is not None and io_backend.type == "lmdb":
            for root in (dataroot_lq, dataroot_gt):
                if root is not None and not is_lmdb(root):
                    raise UserError(
                        f"{where}.io_backend: {root} is no LMDB; where it is a folder of images, "
                        "write io_backend: {type: disk}, or leave io_backend out"
                    )
        if meta_info_file is not None and is_lmdb(dataroot_lq):
            raise UserError(
                f"{where}.meta_info_file: an LMDB lists its images itself; leave it out"
            )
        found = find_pairs(
            blurry=dataroot_lq,
            sharp=dataroot_gt,
            lists=meta_info_file,
            template=filename_tmpl,
            where=where,
            sides=(f"{where}.dataroot_lq", f"{where}.dataroot_gt"),
        )
        self._root = dataroot_lq
        super().__init__(
            found.pairs,
            found.notices,
            has_gt=dataroot_gt is not None,
            cache=None if cache is None else ImageCache(cache, f"{where}.cache"),
        )

    def whole_pair(self, index: int) -> dict[str, Any]:
        images, cropped = self._images(index, crop=True)
        tensors: dict[str, Any] = {side: to_tensor(image) for side, image in images.items()}
        return {**tensors, "cropped": True} if cropped else tensors

    def patch(self, request: CropRequest) -> dict[str, Any]:
        images, _ = self._images(request.index, crop=False)
        height, width = images["lq"].shape[:2]
        if min(height, width) < request.crop_size:
            raise UserError(
                f"{self.pairs[request.index].lq} is {width}×{height} pixels, smaller than the "
                f"patches of {request.crop_size} (datasets.train.gt_size); lower gt_size and "
                "gt_sizes, or take such pairs out: hidiff check --input "
                f"{shlex.quote(self._root)} --patch {request.crop_size} lists them"
            )
        return random_patch(images, request)

    def _images(self, index: int, *, crop: bool) -> tuple[dict[str, np.ndarray], bool]:
        """The images of a pair, and whether the sharp one was cut to the blurry one's size."""
        pair = self.pairs[index]
        lq = self.read(pair.lq)
        if pair.gt is None:
            return {"lq": lq}, False
        gt = self.read(pair.gt)
        if lq.shape == gt.shape:
            return {"lq": lq, "gt": gt}, False
        part = gt[: lq.shape[0], : lq.shape[1]]
        if crop and lq.shape == part.shape:
            return {"lq": lq, "gt": part}, True  # Released behaviour in validation and testing.
        sizes = [f"{image.shape[1]}×{image.shape[0]}" for image in (lq, gt)]
        raise UserError(
            f"the pair '{pair.name}' has two sizes: {pair.lq} is {sizes[0]}, {pair.gt} is "
            f"{sizes[1]} (width×height); replace or remove it; hidiff check lists all such pairs"
        )


def random_patch(images: Mapping[str, np.ndarray], request: CropRequest) -> dict[str, Any]:
    """The same patch of the images (H, W, 3) of a pair, and its `symmetry`."""
    height, width = next(iter(images.values())).shape[:2]
    draws = rng(*request.seed, "crop")
    top = draw_offset(height, request.crop_size, request.patch_size, draws)
    left = draw_offset(width, request.crop_size, request.patch_size, draws)
    index = int(draws.integers(SYMMETRIES))
    rows, columns = (slice(start, start + request.patch_size) for start in (top, left))
    patches = {side: image[rows, columns] for side, image in images.items()}
    # Torch hardly calculates with uint16, so 16 bits become floats here.
    tensors = {
        side: torch.from_numpy(patch.copy() if patch.dtype == np.uint8 else to_float(patch))
        for side, patch in patches.items()
    }
    return {**tensors, "symmetry": index}
