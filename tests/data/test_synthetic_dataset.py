"""Pairs made on the fly: what they depend on, parts that are off, and mistakes in options."""

from contextlib import closing

import cv2
import numpy as np
import pytest
import torch
from small_data import picture, write_rgb

from hidiff import UserError
from hidiff.data import (
    BatchPlan,
    CropRequest,
    PhaseBatchSampler,
    SyntheticBlurDataset,
    training_batches,
)
from hidiff.options import Phase
from hidiff.registry import DATASETS
from hidiff.synthesis.motion import source_points

PARTS = ("shake", "object", "defocus", "saturation", "noise", "processing", "jpeg")
OFF = {**dict.fromkeys(PARTS), "sharp": 0.0}
SMALL = {"min_size": 64}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for seed, (height, width) in enumerate([(96, 128), (128, 96), (100, 140)]):
        fine = np.random.default_rng(seed).integers(-30, 30, (height, width, 1))
        image = np.clip(picture(seed, height, width) + fine, 0, 255).astype(np.uint8)
        image[10:20, 10:30] = 255
        write_rgb(folder / f"photo-{seed}.png", image)
    return folder


def dataset(folder, **options):
    return SyntheticBlurDataset(
        where="datasets.train", dataroot_gt=str(folder), **{**SMALL, **options}
    )


def request(number: int = 0, index: int = 0, size: int = 48) -> CropRequest:
    return CropRequest(index, size, 64, (7, 1, number))


def same(one, other) -> bool:
    keys = one.keys() & {"lq", "gt"}
    return one["name"] == other["name"] and all(torch.equal(one[k], other[k]) for k in keys)


def test_defaults_need_no_options(photographs):
    item = dataset(photographs)[request()]
    assert item["lq"].shape == item["gt"].shape == (48, 48, 3)
    assert item["lq"].dtype == item["gt"].dtype == torch.uint8
    assert 0 <= item["symmetry"] < 8
    assert not torch.equal(item["lq"], item["gt"])


def test_whole_photographs_have_one_blur_each(photographs):
    data = dataset(photographs, scale=(1.0, 1.0))
    item = data[1]
    assert item["lq"].shape == item["gt"].shape == (3, 128, 96)
    assert item["lq"].dtype == torch.float32
    assert item["lq"].min() >= 0 <= 1 >= item["lq"].max()
    assert same(item, dataset(photographs, scale=(1.0, 1.0))[1])
    assert not same(item, dataset(photographs, scale=(1.0, 1.0), seed=5)[1])
    assert data.files(1) == [str(photographs / "photo-1.png")]
    assert [pair.name for pair in data.pairs] == ["photo-0", "photo-1", "photo-2"]


def test_a_patch_depends_on_its_request_alone(photographs):
    forth = [dataset(photographs)[request(n, n % 3)] for n in range(6)]
    data = dataset(photographs)
    back = [data[request(n, n % 3)] for n in reversed(range(6))][::-1]
    assert all(map(same, forth, back))
    assert len({item["lq"].numpy().tobytes() for item in forth}) == 6


def test_batches_are_the_same_for_any_number_of_loader_processes(photographs):
    def batches(workers: int, first_step: int = 1):
        sampler = PhaseBatchSampler(
            size=3,
            plan=BatchPlan([Phase(32, 2, 4)], 1),
            rank=0,
            seed=3,
            crop_size=48,
            total_iter=4,
            first_step=first_step,
        )
        loaded = training_batches(dataset(photographs), sampler, num_workers=workers)
        with closing(loaded):
            return [
                {**batch, "lq": batch["lq"].clone(), "gt": batch["gt"].clone()} for batch in loaded
            ]

    alone, shared, resumed = batches(0), batches(2), batches(0, first_step=3)
    assert len(alone) == len(shared) == 4
    for one, other in zip(alone + alone[2:], shared + resumed, strict=True):
        assert same(one, other)
        assert one["symmetry"] == other["symmetry"]


def test_the_cache_changes_no_pixel(photographs, tmp_path):
    cached = dataset(photographs, cache=str(tmp_path))
    assert all(same(dataset(photographs)[request(n)], cached[request(n)]) for n in range(3))


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.7, 0.9)])
def test_with_every_part_off_nothing_is_blurred(photographs, scale):
    data = dataset(photographs, blur=OFF, scale=scale)
    for number in range(6):
        item = data[request(number, number % 3)]
        assert torch.equal(item["lq"], item["gt"])


def test_the_target_without_processing_is_the_photograph(photographs):
    item = dataset(photographs, blur={"processing": None}, scale=(1.0, 1.0))[2]
    photograph = cv2.imread(str(photographs / "photo-2.png"))[..., ::-1] / 255
    # Highlights that are brighter than white are white in the picture, as they were.
    dark = photograph.max(axis=2) < 0.94
    np.testing.assert_allclose(item["gt"].numpy().transpose(1, 2, 0)[dark], photograph[dark])


@pytest.mark.parametrize("part", PARTS)
def test_each_part_alone_changes_the_blurry_picture_as_it_should(photographs, part):
    on = {"probability": 1.0, **({"shot": [1e-3, 1e-2]} if part == "noise" else {})}
    data = dataset(photographs, blur={**OFF, part: on}, scale=(1.0, 1.0))
    changed = [not torch.equal(i["lq"], i["gt"]) for i in (data[request(n)] for n in range(6))]
    # Highlights and colours of a picture that does not move are the same on both sides.
    assert all(changed) or (part == "defocus" and any(changed)) or not any(changed)
    assert any(changed) == (part not in ("saturation", "processing"))


def test_a_part_that_is_off_leaves_the_others_as_they_are(photographs):
    shaken = [
        dataset(photographs, blur={**OFF, "shake": {}, **more})[request(3)]
        for more in ({}, {"defocus": {"probability": 0.0}}, {"noise": {"probability": 0.0}})
    ]
    assert same(shaken[0], shaken[1])
    assert same(shaken[0], shaken[2])


def test_scale_offset_and_shake_are_independent(photographs, monkeypatch):
    """Each has a stream of its own; streams that repeat each other would be correlated."""
    blur = {**OFF, "shake": {"probability": 1.0}}
    data = dataset(photographs, blur=blur, scale=(0.7, 1.0))
    drawn = []

    def record(photograph, size, patch, seed):
        samples = data.recipe.draw(seed, size, patch).samples
        middle = source_points(samples.paths[0], np.array([[size[1] / 2, size[0] / 2]]))[:, 0]
        offset = patch.left / (size[1] - patch.width)
        drawn.append((size[0], offset, np.linalg.norm(np.ptp(middle, axis=0))))
        return np.empty(0), np.empty(0)

    monkeypatch.setattr(data, "_make", record)
    for number in range(300):
        data[CropRequest(0, 32, 32, (7, "patch", number))]
    correlations = np.corrcoef(np.array(drawn).T)[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 4 / np.sqrt(len(drawn))


def test_sharp_samples_are_not_blurred_and_come_as_often_as_asked(photographs):
    blur = {**dict.fromkeys(PARTS[2:]), "shake": {"probability": 1.0, "extent": [9, 9]}}
    data = dataset(photographs, blur={**blur, "object": None, "sharp": 0.3})
    items = [data[request(number, size=32)] for number in range(50)]
    sharp = np.mean([torch.equal(item["lq"], item["gt"]) for item in items])
    assert 0.15 < sharp < 0.45


def test_a_large_photograph_is_reduced_and_never_below_the_patch(photographs):
    data = dataset(photographs, blur=OFF, scale=(0.1, 0.1))
    item = data[CropRequest(0, 64, 64, (1, 1, 1))]
    assert item["gt"].shape == (64, 64, 3)
    photograph = cv2.imread(str(photographs / "photo-0.png"))[..., ::-1]
    reduced = cv2.resize(photograph, (85, 64), interpolation=cv2.INTER_AREA).astype(int)
    # The whole height, anywhere along the width; averaged in linear light, so a little brighter.
    errors = [np.abs(item["gt"].numpy() - reduced[:, x : x + 64]).mean() for x in range(22)]
    assert min(errors) < 6 < 15 < max(errors)


def test_grey_photographs_have_three_equal_channels(tmp_path):
    image = picture(0, 96, 96)[..., 0]
    assert cv2.imwrite(str(tmp_path / "grey.png"), image)
    item = dataset(tmp_path, blur={"noise": None, "jpeg": None, "processing": None})[request()]
    for side in ("lq", "gt"):
        assert torch.equal(item[side][..., 0], item[side][..., 2])


def test_several_folders_keep_their_names_apart(photographs):
    data = SyntheticBlurDataset(
        where="datasets.train", dataroot_gt=[str(photographs), str(photographs)], **SMALL
    )
    assert len({pair.name for pair in data.pairs}) == len(data) == 6
    assert data.files(5) == [str(photographs / "photo-2.png")]


def test_unusable_photographs_are_named_and_left_out(photographs, tmp_path):
    write_rgb(tmp_path / "good.png", picture(0, 80, 80))
    write_rgb(tmp_path / "tiny.png", picture(0, 80, 40))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    data = dataset(tmp_path)
    assert [pair.name for pair in data.pairs] == ["good"]
    assert "broken.jpg" in "".join(data.notices)
    assert "tiny.png" in "".join(data.notices)
    with pytest.raises(UserError, match=r"datasets\.train\.dataroot_gt.*good\.png"):
        dataset(tmp_path, min_size=200)
    with pytest.raises(UserError, match=r"good\.png.*min_size: 96"):
        data[CropRequest(0, 96, 96, (1, 1, 1))]


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"blur": {"shak": None}}, "blur.shak"),
        ({"blur": {"shake": {"extnt": [1, 2]}}}, "blur.shake.extnt"),
        ({"blur": {"shake": {"extent": [3, 2]}}}, "blur.shake.extent"),
        ({"blur": {"shake": {"extent": [0, 2]}}}, "blur.shake.extent"),
        ({"blur": {"object": {"turn": [-1, 2]}}}, "blur.object.turn"),
        ({"blur": {"defocus": {"probability": 1.5}}}, "blur.defocus.probability"),
        ({"blur": {"jpeg": {"quality": [50, 101]}}}, "blur.jpeg.quality"),
        ({"blur": {"noise": {"shot": [1e-4]}}}, "blur.noise.shot"),
        ({"blur": {"noise": 3}}, "blur.noise"),
        ({"blur": {"sharp": 2}}, "blur.sharp"),
        ({"blur": ["shake"]}, "blur"),
        ({"scale": (0.9, 0.5)}, "scale"),
        ({"scale": (0.5, 1.5)}, "scale"),
        ({"dataroot_gt": []}, "dataroot_gt"),
    ],
)
def test_mistakes_name_their_place(photographs, options, place):
    with pytest.raises(UserError) as caught:
        section = {"type": "SyntheticBlurDataset", "dataroot_gt": str(photographs), **SMALL}
        DATASETS.build({**section, **options}, "datasets.train", where="datasets.train")
    assert str(caught.value).startswith(f"datasets.train.{place}")
