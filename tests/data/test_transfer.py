"""From a request to the tensors on the device: offsets, symmetries, and pixels bit by bit."""

import cv2
import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from small_data import make_pairs, picture, write_rgb

from hidiff.data import BatchPlan, CropRequest, PairedImageIRDataset, PhaseBatchSampler, transfer
from hidiff.data.loader import training_batches
from hidiff.data.transfer import DeviceBatches, to_device
from hidiff.data.transforms import symmetry, undo_symmetry
from hidiff.options import Phase
from hidiff.utils.errors import UserError
from hidiff.utils.random import rng

CPU = torch.device("cpu")
DEVICES = [CPU, *([torch.device("cuda")] if torch.cuda.is_available() else [])]


def dataset(folder, **kwargs):
    roots = {"dataroot_lq": str(folder / "input"), "dataroot_gt": str(folder / "target")}
    return PairedImageIRDataset(where="datasets.train", **roots, **kwargs)


def batches(data, *, patch_size, crop_size, batch_size, steps):
    sampler = PhaseBatchSampler(
        size=len(data),
        plan=BatchPlan([Phase(patch_size, batch_size, steps)], 1),
        rank=0,
        seed=5,
        crop_size=crop_size,
        total_iter=steps,
    )
    return list(sampler), list(training_batches(data, sampler, num_workers=0))


def reference(path, request):
    """What the release computes, from the file on: crop, patch, symmetry, division by 255."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)[..., ::-1]
    draws = rng(*request.seed, "crop")
    offsets = []
    for length in image.shape[:2]:
        crop = draws.integers(length - request.crop_size + 1)
        offsets.append((crop, draws.integers(request.crop_size - request.patch_size + 1)))
    (crop_top, top), (crop_left, left) = offsets
    crop = image[crop_top:, crop_left:][: request.crop_size, : request.crop_size]
    patch = crop[top:, left:][: request.patch_size, : request.patch_size]
    index = draws.integers(8)
    patch = np.rot90(patch, index // 2)
    if index % 2:
        patch = np.flipud(patch)
    largest = {"uint8": 255, "uint16": 65535}[str(image.dtype)]
    return index, (patch.astype(np.float32) / np.float32(largest)).transpose(2, 0, 1)


def test_batches_are_bit_for_bit_those_of_numpy(tmp_path):
    names = make_pairs(tmp_path, 3)
    requests, loaded = batches(
        dataset(tmp_path), patch_size=16, crop_size=32, batch_size=4, steps=25
    )
    seen = set()
    for wanted, batch in zip(requests, loaded, strict=True):
        assert batch["lq"].dtype == torch.uint8
        assert batch["lq"].shape == (4, 16, 16, 3)
        assert batch["name"] == [names[request.index] for request in wanted]
        pixels = to_device(batch, CPU, torch.float32)
        for tensor, side in zip(pixels, ("input", "target"), strict=True):
            assert tensor.dtype == torch.float32
            assert tensor.is_contiguous(memory_format=torch.channels_last)
            for i, request in enumerate(wanted):
                path = tmp_path / side / f"{names[request.index]}.png"
                index, expected = reference(path, request)
                assert np.array_equal(tensor[i].numpy(), expected)
                assert batch["symmetry"][i] == index
                seen.add(int(index))
    assert seen == set(range(8))


def test_offsets_have_the_distribution_of_a_crop_and_a_patch_in_it(tmp_path):
    """The release crops `gt_size` anywhere, then the patch anywhere in the crop."""
    height, width, crop, patch = 40, 48, 32, 16
    ramp = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.uint8)
    ramp = np.concatenate([ramp, np.zeros((height, width, 1), np.uint8)], axis=-1)
    for side in ("input", "target"):
        write_rgb(tmp_path / side / "ramp.png", ramp)
    data = dataset(tmp_path)
    corners = np.array(
        [
            data[CropRequest(0, patch, crop, (2, 1, position))]["gt"][0, 0].numpy()
            for position in range(4000)
        ]
    )
    for channel, length in ((1, height), (0, width)):
        first = np.full(length - crop + 1, 1 / (length - crop + 1))
        second = np.full(crop - patch + 1, 1 / (crop - patch + 1))
        expected = np.convolve(first, second) * len(corners)
        found = np.bincount(corners[:, channel], minlength=len(expected))
        assert chisquare(found, expected).pvalue > 0.01
        # The test would notice a single uniform draw.
        uniform = np.full(len(expected), len(corners) / len(expected))
        assert chisquare(found, uniform).pvalue < 1e-6


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_every_byte_becomes_its_255th_rounded_once(device):
    every = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(1, 1, 1, 3)
    batch = {"lq": every, "gt": every.flip(1), "symmetry": [0]}
    expected = (np.arange(256).astype(np.float32) / np.float32(255)).reshape(16, 16)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        lq, gt = to_device(batch, device, dtype)
        assert lq.device.type == device.type
        assert torch.equal(lq[0, 1].cpu(), torch.from_numpy(expected).to(dtype))
        assert torch.equal(gt[0, 2].cpu(), torch.from_numpy(expected[::-1].copy()).to(dtype))


def test_the_eight_symmetries_of_the_square():
    square = torch.tensor([[1, 2], [3, 4]])
    results = {tuple(symmetry(square, index).flatten().tolist()) for index in range(8)}
    assert results == {
        (1, 2, 3, 4), (3, 4, 1, 2), (2, 1, 4, 3), (4, 3, 2, 1),
        (2, 4, 1, 3), (1, 3, 2, 4), (3, 1, 4, 2), (4, 2, 3, 1),
    }  # fmt: skip
    assert torch.equal(symmetry(square, 0), square)
    assert torch.equal(symmetry(square, 1), square[[1, 0]])


@pytest.mark.parametrize("index", range(8))
def test_images_are_turned_as_numpy_does_and_back(index):
    image = np.arange(2 * 5 * 3).reshape(2, 5, 3)
    expected = np.rot90(image, index // 2)
    expected = expected[::-1] if index % 2 else expected
    turned = symmetry(torch.from_numpy(image), index, dims=(0, 1))
    assert np.array_equal(turned.numpy(), expected)
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    turned = symmetry(batch, index)
    assert np.array_equal(turned[0].permute(1, 2, 0).numpy(), expected)
    assert torch.equal(undo_symmetry(turned, index), batch)


def test_images_of_16_bits_keep_their_depth_in_a_batch_with_others(tmp_path):
    make_pairs(tmp_path, 2)
    deep = picture(7, 40, 48).astype(np.uint16) * 251 + 3
    write_rgb(tmp_path / "input" / "scene-001.png", deep)
    requests, loaded = batches(
        dataset(tmp_path), patch_size=32, crop_size=32, batch_size=2, steps=1
    )
    assert sorted(request.index for request in requests[0]) == [0, 1]
    assert (loaded[0]["lq"].dtype, loaded[0]["gt"].dtype) == (torch.float32, torch.uint8)
    lq, _ = to_device(loaded[0], CPU, torch.float32)
    for tensor, request in zip(lq, requests[0], strict=True):
        path = tmp_path / "input" / f"scene-00{request.index}.png"
        assert np.array_equal(tensor.numpy(), reference(path, request)[1])


def test_one_batch_is_ahead_and_mistakes_come_in_their_turn():
    asked = []

    def batches():
        for number in range(3):
            asked.append(number)
            if number == 2:
                raise UserError("an image is missing")
            patches = torch.full((1, 2, 2, 3), 51 * number, dtype=torch.uint8)
            yield {"lq": patches, "gt": patches, "symmetry": [0], "name": [str(number)]}

    ahead = DeviceBatches(batches(), torch.device("cpu"), torch.float64)
    assert asked == []
    first = next(ahead)
    assert asked == [0]
    ahead.prefetch()
    ahead.prefetch()
    assert asked == [0, 1]
    assert first["name"] == ["0"]
    second = next(ahead)
    assert asked == [0, 1]
    assert second["name"] == ["1"]
    assert second["gt"].dtype == torch.float64
    assert second["lq"].unique().tolist() == [float(np.float32(0.2))]
    ahead.prefetch()
    with pytest.raises(UserError):
        next(ahead)
    with pytest.raises(StopIteration):
        next(ahead)


def test_a_batch_whose_copy_failed_is_copied_again(monkeypatch):
    batches = iter([{"lq": 1, "gt": 2}, {"lq": 3, "gt": 4}])
    fails = [True, False, False]

    def copy(batch, *_):
        if fails.pop(0):
            raise MemoryError
        return batch["lq"], batch["gt"]

    monkeypatch.setattr(transfer, "to_device", copy)
    ahead = DeviceBatches(batches, torch.device("cpu"), torch.float32)
    with pytest.raises(MemoryError):
        next(ahead)
    assert [next(ahead)["lq"] for _ in range(2)] == [1, 3]
