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
from hidiff.data.image import decode_image, passed_over, read_image, to_float
from hidiff.data.lmdb_store import LmdbImages
from hidiff.data.pairs import (
    Pair,
    match_names,
    pairs_from_folders,
    pairs_from_list,
    refuse_one_place,
)
from hidiff.data.sampler import CropRequest
from hidiff.data.transforms import SYMMETRIES, draw_offset
from hidiff.errors import UserError
from hidiff.files import read_bytes
from hidiff.registry import DATASETS
from hidiff.typecheck import suggestion

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
        self.stores: dict[str, LmdbImages] = {}
        self.notices: list[str] = []
        self._lq_root = dataroot_lq
        if kind == "lmdb":
            if meta_info_file is not None:
                raise UserError(
                    f"{where}.meta_info_file: works with io_backend disk only; an LMDB lists its "
                    "images itself"
                )
            self.pairs = self._pairs_from_lmdb(dataroot_lq, dataroot_gt, filename_tmpl, where)
        elif meta_info_file is not None:
            self.pairs = pairs_from_list(
                meta_info_file, dataroot_lq, dataroot_gt, filename_tmpl, where
            )
        else:
            self.pairs = pairs_from_folders(dataroot_lq, dataroot_gt, filename_tmpl, where)
            roots = {"dataroot_lq": dataroot_lq, "dataroot_gt": dataroot_gt}
            found = [passed_over(root, f"{where}.{k}") for k, root in roots.items() if root]
            self.notices = [notice for notice in found if notice is not None]
        self.has_gt = dataroot_gt is not None
        self.cache = None if cache is None else self._cache(cache, f"{where}.cache")

    def _pairs_from_lmdb(
        self, dataroot_lq: str, dataroot_gt: str | None, filename_tmpl: str, where: str
    ) -> list[Pair]:
        self.stores["lq"] = LmdbImages(dataroot_lq, f"{where}.dataroot_lq")
        if dataroot_gt is None:
            return [Pair(key, key, None) for key in self.stores["lq"].keys()]  # noqa: SIM118 (no mapping)
        self.stores["gt"] = LmdbImages(dataroot_gt, f"{where}.dataroot_gt")
        refuse_one_place(dataroot_lq, dataroot_gt, where)
        keys = {side: store.keys() for side, store in self.stores.items()}
        matched = match_names(keys["lq"], keys["gt"], filename_tmpl, where)
        return [Pair(lq, lq, gt) for lq, gt in matched]

    def __len__(self) -> int:
        return len(self.pairs)

    def fingerprint(self) -> str:
        """The number of the pairs and a SHA-256 of their names: the same on every machine."""
        names = [(p.name, p.gt and Path(p.gt).name) for p in self.pairs]
        digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
        return f"{len(names)} pairs, SHA-256 of their names {digest}"

    def files(self, index: int) -> list[str]:
        """The files that the blurry and the sharp image of a pair are read from."""
        keys = {"lq": self.pairs[index].lq, "gt": self.pairs[index].gt}
        return [
            str(Path(self.stores[side].path) / "data.mdb") if side in self.stores else key
            for side, key in keys.items()
            if key is not None
        ]

    def blurry_file(self, index: int) -> tuple[bytes, str]:
        """The content of a blurry image's file, and its place for messages.

        Raises:
            UserError: it cannot be read.
        """
        key = self.pairs[index].lq
        data = self.stores["lq"].read(key) if self.stores else read_bytes(key)
        return data, self._location("lq", key)

    def _cache(self, folder: str, where: str) -> FrameCache:
        sides = {"lq": [p.lq for p in self.pairs], "gt": [p.gt for p in self.pairs if self.has_gt]}
        frames = {self._location(side, key): (side, key) for side in sides for key in sides[side]}
        if self.stores:
            files = [Path(store.path) / "data.mdb" for store in self.stores.values()]
            identity = [*map(file_identity, files), *frames]
        else:
            identity = [file_identity(path) for path in frames]
        return FrameCache(
            folder,
            list(frames),
            identity=identity,
            decode=lambda location: self._decode(*frames[location]),
            where=where,
        )

    def _location(self, side: str, key: str) -> str:
        return f"{self.stores[side].path}: {key}" if side in self.stores else key

    def _decode(self, side: str, key: str) -> np.ndarray:
        if side in self.stores:
            return decode_image(self.stores[side].read(key), self._location(side, key))
        return read_image(key)

    def _read(self, side: str, key: str) -> np.ndarray:
        """An image (H, W, 3); a read-only view where it comes from the cache."""
        image = self.cache.read(self._location(side, key)) if self.cache else None
        # What could not be decoded for the cache tells here what is wrong with it.
        return self._decode(side, key) if image is None else image

    def __getitem__(self, item: int | CropRequest) -> dict[str, Any]:
        pair = self.pairs[item.index if isinstance(item, CropRequest) else item]
        images = {"lq": self._read("lq", pair.lq)}
        more = {"name": pair.name}
        if pair.gt is not None:
            images["gt"] = self._read("gt", pair.gt)
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
                f"{self._location('lq', pair.lq)} is {width}×{height} pixels, smaller than the "
                f"patches of {request.crop_size} (datasets.train.gt_size); lower gt_size and "
                "gt_sizes, or take such pairs out: python scripts/check_data.py --input "
                f"{shlex.quote(self._lq_root)} --patch {request.crop_size} lists them"
            )


def random_patch(images: Mapping[str, np.ndarray], request: CropRequest) -> dict[str, Any]:
    """The same patch of the images (H, W, 3) of a pair, and its `symmetry`."""
    height, width = next(iter(images.values())).shape[:2]
    rng = np.random.default_rng(request.seed)
    top = draw_offset(height, request.crop_size, request.patch_size, rng)
    left = draw_offset(width, request.crop_size, request.patch_size, rng)
    index = int(rng.integers(SYMMETRIES))
    rows, columns = (slice(start, start + request.patch_size) for start in (top, left))
    patches = {side: image[rows, columns] for side, image in images.items()}
    # Torch hardly calculates with uint16, so 16 bits become floats here.
    tensors = {
        side: torch.from_numpy(patch.copy() if patch.dtype == np.uint8 else to_float(patch))
        for side, patch in patches.items()
    }
    return {**tensors, "symmetry": index}
