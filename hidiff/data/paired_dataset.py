"""The paired data set of the release, read from folders, LMDB or a list of pairs."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hidiff.data.frame_cache import FrameCache, file_identity
from hidiff.data.image import decode_image, to_float
from hidiff.data.pairs import Pair, match_stores, pairs_from_list, refuse_one_place
from hidiff.data.sampler import CropRequest
from hidiff.data.store import ImageFiles, ImageStore, open_store
from hidiff.data.transforms import SYMMETRIES, draw_offset
from hidiff.registry import DATASETS
from hidiff.utils.errors import UserError, suggestion
from hidiff.utils.random import rng

BACKENDS = ("disk", "lmdb")


@DATASETS.register()
class PairedImageIRDataset(Dataset):
    """Blurry and sharp images, matched by name.

    Indexed by a number it gives whole images: a dict of `lq` and `gt`, float32 (3, H, W) RGB in
    [0, 1] (`gt` is absent where there is no ground truth), and `name`. Of a larger sharp image `gt`
    is the part at the top left, and `cropped` is there.

    Indexed by a `CropRequest` it gives a patch for `hidiff.data.transfer.to_device` to finish: `lq`
    and `gt`, (h, w, 3) RGB uint8, or float32 in [0, 1] where the image has 16 bits; `symmetry`, the
    number of the symmetry of the square that is still to be applied to both; and `name`.

    Args:
        where: YAML path of the section, for messages.
        dataroot_lq: folder (or .lmdb) of the blurry images.
        dataroot_gt: the same for the sharp ones; None where there are none.
        filename_tmpl: the blurry image's name made from the sharp one's, '{}' when equal.
        io_backend: `type: disk` or `type: lmdb`.
        meta_info_file: text file that lists the pairs to use, see `pairs_from_list`.
        cache: folder for the decoded images, see `FrameCache`; None decodes on every reading.

    Attributes:
        pairs: what it holds, in order.
        has_gt: whether there are sharp images.
        notices: what a person should know of the folders and is no mistake.

    Raises:
        UserError: a folder is missing or empty, both are one folder, an image has no counterpart,
            or the cache cannot be built; on reading also: an image is damaged, smaller than the
            patch, or of another size than its counterpart.
    """

    def __init__(
        self,
        *,
        where: str,
        dataroot_lq: str,
        dataroot_gt: str | None = None,
        filename_tmpl: str = "{}",
        io_backend: Mapping[str, Any] | None = None,
        meta_info_file: str | None = None,
        cache: str | None = None,
    ) -> None:
        backend = dict(io_backend or {"type": "disk"})
        kind = backend.pop("type", "disk")
        if kind not in BACKENDS:
            raise UserError(
                f"{where}.io_backend.type: there is no backend '{kind}'"
                f"{suggestion(str(kind), BACKENDS)}"
            )
        if backend:
            raise UserError(f"{where}.io_backend: no option '{next(iter(backend))}'; only 'type'")
        braces = "".join(character for character in filename_tmpl if character in "{}")
        if braces != "{}" or "{}" not in filename_tmpl:
            raise UserError(
                f"{where}.filename_tmpl: '{filename_tmpl}' must contain {{}} once, for the sharp "
                "image's name"
            )
        self.has_gt = dataroot_gt is not None
        self._lq_root = dataroot_lq
        roots = {"lq": dataroot_lq, **({} if dataroot_gt is None else {"gt": dataroot_gt})}
        if meta_info_file is None:
            self.stores: dict[str, ImageStore] = {
                side: open_store(root, f"{where}.dataroot_{side}", kind)
                for side, root in roots.items()
            }
            refuse_one_place(dataroot_lq, dataroot_gt, where)
            self.pairs = match_stores(
                self.stores["lq"], self.stores.get("gt"), filename_tmpl, where
            )
        elif kind == "lmdb":
            raise UserError(
                f"{where}.meta_info_file: works with io_backend disk only; an LMDB lists its "
                "images itself"
            )
        else:
            self.stores = {side: ImageFiles() for side in roots}
            self.pairs = pairs_from_list(
                meta_info_file, dataroot_lq, dataroot_gt, filename_tmpl, where
            )
        self.notices = [notice for store in self.stores.values() for notice in store.notices]
        self.cache = None if cache is None else self._cache(cache, f"{where}.cache")

    def __len__(self) -> int:
        return len(self.pairs)

    def fingerprint(self) -> str:
        """The number of the pairs and a SHA-256 of their names: the same on every machine."""
        names = [(p.name, p.gt and Path(p.gt).name) for p in self.pairs]
        digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
        return f"{len(names)} pairs, SHA-256 of their names {digest}"

    def _sides(self, pair: Pair) -> dict[str, str]:
        return {"lq": pair.lq, **({} if pair.gt is None else {"gt": pair.gt})}

    def files(self, index: int) -> list[str]:
        """The files that the blurry and the sharp image of a pair are read from."""
        sides = self._sides(self.pairs[index])
        return [str(self.stores[side].file(key)) for side, key in sides.items()]

    def blurry_file(self, index: int) -> tuple[bytes, str]:
        """The content of a blurry image's file, and its place for messages.

        Raises:
            UserError: it cannot be read.
        """
        key, store = self.pairs[index].lq, self.stores["lq"]
        return store.read(key), store.location(key)

    def _cache(self, folder: str, where: str) -> FrameCache:
        sides = [(side, self._sides(pair)[side]) for side in self.stores for pair in self.pairs]
        frames = {self.stores[side].location(key): (side, key) for side, key in sides}
        files = dict.fromkeys(str(self.stores[side].file(key)) for side, key in sides)
        parts = [frame for frame in frames if frame not in files]  # of an LMDB
        return FrameCache(
            folder,
            list(frames),
            identity=[*map(file_identity, files), *parts],
            decode=lambda location: self._decode(*frames[location]),
            where=where,
        )

    def _decode(self, side: str, key: str) -> np.ndarray:
        store = self.stores[side]
        return decode_image(store.read(key), store.location(key))

    def _read(self, side: str, key: str) -> np.ndarray:
        """An image (H, W, 3); a read-only view where it comes from the cache."""
        image = self.cache.read(self.stores[side].location(key)) if self.cache else None
        # What could not be decoded for the cache tells here what is wrong with it.
        return self._decode(side, key) if image is None else image

    def __getitem__(self, item: int | CropRequest) -> dict[str, Any]:
        pair = self.pairs[item.index if isinstance(item, CropRequest) else item]
        images = {side: self._read(side, key) for side, key in self._sides(pair).items()}
        more: dict[str, Any] = {"name": pair.name}
        if pair.gt is not None:
            height, width = images["lq"].shape[:2]
            part = images["gt"][:height, :width]
            if images["lq"].shape == images["gt"].shape:
                pass
            elif images["lq"].shape == part.shape and not isinstance(item, CropRequest):
                # Released behaviour in validation and testing.
                more["cropped"], images["gt"] = True, part
            else:
                sizes = {s: "×".join(map(str, i.shape[1::-1])) for s, i in images.items()}
                raise UserError(
                    f"the pair '{pair.name}' has two sizes: {pair.lq} is {sizes['lq']}, {pair.gt} "
                    f"is {sizes['gt']} (width×height); replace or remove it"
                )
        if isinstance(item, CropRequest):
            self._check_patch(images["lq"], item, pair)
            return {**random_patch(images, item), **more}
        tensors = {
            side: torch.from_numpy(np.ascontiguousarray(to_float(image).transpose(2, 0, 1)))
            for side, image in images.items()
        }
        return {**tensors, **more}

    def _check_patch(self, image: np.ndarray, request: CropRequest, pair: Pair) -> None:
        height, width = image.shape[:2]
        if min(height, width) < request.crop_size:
            raise UserError(
                f"{self.stores['lq'].location(pair.lq)} is {width}×{height} pixels, smaller than "
                f"the patches of {request.crop_size} (datasets.train.gt_size); lower gt_size and "
                "gt_sizes, or take such pairs out: hidiff check --input "
                f"{shlex.quote(self._lq_root)} --patch {request.crop_size} lists them"
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
