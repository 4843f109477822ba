"""Restoring one image: noise, symmetries, tiles, local statistics, steps of the chain."""

import numpy as np
import pytest
import torch
from small_data import train_options

from hidiff import UserError, build_model
from hidiff.archs.windows import Windows
from hidiff.data.dataset import to_tensor
from hidiff.data.image import to_uint8
from hidiff.data.transforms import symmetry, undo_symmetry
from hidiff.options import LocalOptions, parse_options
from hidiff.restore.image import (
    image_generator,
    restore_image,
    restore_in_tiles,
    restore_steps,
    to_image,
)


def stage2(tmp_path, **schedule):
    options = train_options(tmp_path, 2)
    options["diffusion_schedule"] |= schedule
    torch.manual_seed(0)
    return build_model(options).eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return stage2(tmp_path_factory.mktemp("x"))


class Noisy(torch.nn.Module):
    """Adds noise that depends on the generator, and on where a pixel is."""

    restores_from_gt = False

    def __init__(self):
        super().__init__()
        self.net_g = torch.nn.Linear(1, 1)

    def restore(self, lq, *, generator, progress=None):
        for done in (0.25, 1.0) if progress else ():
            progress(done)
        return lq + torch.rand(lq.shape, generator=generator)


@pytest.mark.parametrize("self_ensemble", [False, True])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_mean_over_noise_and_symmetries_and_its_progress(self_ensemble, seeds):
    image, heard = torch.rand(3, 5, 7), []
    runs = [
        undo_symmetry(
            turned + torch.rand(turned[None].shape, generator=image_generator(4 + k, "x"))[0], index
        )
        for k in range(seeds)
        for index in range(8 if self_ensemble else 1)
        for turned in (symmetry(image, index),)
    ]
    how = {"name": "x", "seed": 4, "self_ensemble": self_ensemble, "seeds": seeds}
    ours = restore_image(Noisy(), image, **how, progress=heard.append)
    torch.testing.assert_close(ours, torch.stack(runs).mean(0))
    expected = [(run + done) / len(runs) for run in range(len(runs)) for done in (0.25, 1.0)]
    assert heard == pytest.approx(expected)
    assert torch.equal(ours, restore_image(Noisy(), image, **how))


@pytest.mark.parametrize("stage", [1, 2])
def test_symmetries_on_the_device_are_those_of_numpy(tmp_path, stage):
    """Bit by bit; an image whose sides differ, so that a wrong turn would not even fit."""
    model = build_model(train_options(tmp_path, stage)).eval()
    item = {"lq": torch.rand(3, 19, 24), "gt": torch.rand(3, 19, 24)}
    total = 0
    for index in range(8):
        turned = [np.rot90(item[side].numpy(), index // 2, (1, 2)) for side in ("lq", "gt")]
        turned = [image[:, ::-1] if index % 2 else image for image in turned]
        restored = model.restore(
            *(torch.from_numpy(np.ascontiguousarray(image))[None] for image in turned),
            generator=image_generator(0, "x"),
        )
        array = restored[0].permute(1, 2, 0).numpy()
        total = total + np.rot90(array[::-1] if index % 2 else array, -(index // 2))
    ours = restore_image(model, item["lq"], gt=item["gt"], name="x", self_ensemble=True)
    assert np.array_equal(ours.permute(1, 2, 0).numpy(), total / 8)


def test_pixels_are_rounded_as_numpy_rounds_them():
    """Every half-way value and its neighbours, and what lies outside of [0, 1]."""
    halves = ((np.arange(-3, 260) + 0.5) / 255).astype(np.float32)
    near = [np.nextafter(halves, np.float32(side)) for side in (-9, 9)]
    exact = np.arange(256, dtype=np.float32) / np.float32(255)
    spread = np.random.default_rng(0).uniform(-0.5, 1.5, 30_000).astype(np.float32)
    special = np.array([np.inf, -np.inf, 0.0, -0.0, 1e-45, 3e38], np.float32)
    values = np.concatenate([halves, *near, exact, spread, special])
    image = values[: len(values) // 3 * 3].reshape(3, 1, -1)
    expected = np.rint(np.clip(image, 0.0, 1.0) * np.float32(255)).astype(np.uint8)
    ours = to_image(torch.from_numpy(image)[None])
    assert ours.dtype == np.uint8
    assert ours.flags.c_contiguous
    assert np.array_equal(ours, expected.transpose(1, 2, 0))
    assert np.array_equal(ours, to_uint8(image.transpose(1, 2, 0)))
    assert len(np.unique(ours)) == 256


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_value_comes_back(dtype):
    pixels = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(-1, 16, 1).repeat(3, axis=2)
    back = to_image(to_tensor(pixels), dtype)
    assert back.dtype == dtype
    assert np.array_equal(back, pixels)


def test_what_is_not_finite_or_does_not_fit_names_the_image(model, monkeypatch):
    with pytest.raises(UserError, match="photo: .*not finite"):
        restore_image(model, torch.full((3, 16, 16), torch.nan), name="photo")

    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "restore", full)
    with pytest.raises(UserError, match="photo: 24×16 pixels"):
        restore_image(model, torch.zeros(3, 16, 24), name="photo")


def test_an_image_of_one_tile_is_restored_as_without_tiles(model):
    image = torch.rand(3, 37, 43)
    tiled = restore_image(
        model, image, name="x", local=LocalOptions(mode="tile", size=48, overlap=8)
    )
    assert torch.equal(tiled, restore_image(model, image, name="x"))


@pytest.mark.parametrize("at_once", [1, 4])
def test_tiles_are_restored_by_themselves_from_the_same_noise_and_blended(
    model, monkeypatch, at_once
):
    monkeypatch.setattr("hidiff.restore.image.TILES_AT_ONCE", {"cpu": at_once})
    lq, windows, told = torch.rand(1, 3, 50, 90), Windows(32, 8), []
    out = restore_in_tiles(
        model, windows, lq, generator=torch.Generator().manual_seed(1), progress=told.append
    )
    noise = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(1))
    expected = torch.zeros_like(lq)
    for (rows, columns), weight in windows.over(50, 90):
        expected[..., rows, columns] += weight * model.restore(lq[..., rows, columns], noise=noise)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    assert told == sorted(told)
    assert told[-1] == 1.0
    # Another part of the image has no influence.
    changed = lq.clone()
    changed[..., 60:] = 0
    other = restore_in_tiles(model, windows, changed, generator=torch.Generator().manual_seed(1))
    first = windows.along(90)[1][0].start
    assert torch.equal(out[..., :first], other[..., :first])
    assert not torch.equal(out[..., 60:], other[..., 60:])


def test_eq_6s_noise_is_that_of_the_image_however_many_tiles_are_computed_at_once(
    tmp_path, monkeypatch
):
    model, image = stage2(tmp_path, reverse_noise=True), torch.rand(3, 24, 40)
    local, results = LocalOptions(mode="tile", size=16, overlap=8), []
    for at_once in (1, 2, 5):
        monkeypatch.setattr("hidiff.restore.image.TILES_AT_ONCE", {"cpu": at_once})
        results.append(restore_image(model, image, name="x", local=local))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("local", "place"),
    [
        ({"mode": "tiles"}, r"val\.local\.mode: .*did you mean 'tile'"),
        ({"sizes": 8}, r"val\.local\.sizes: .*did you mean 'size'"),
        ({"mode": "tile", "size": 0}, r"val\.local\.size: "),
        ({"mode": "tile", "size": 64, "overlap": 64}, r"val\.local\.overlap: "),
    ],
)
def test_mistakes_in_the_section(tmp_path, local, place):
    options = train_options(tmp_path, 2)
    options["val"]["local"] = local
    with pytest.raises(UserError, match=place):
        parse_options(options)


def test_statistics_of_windows_are_a_mode_of_their_own(model):
    image, seen = torch.rand(3, 37, 43), []
    none, tlc, wide = (
        restore_image(model, image, name="a", local=local, progress=seen.append)
        for local in (
            None,
            LocalOptions(mode="tlc", size=16, overlap=8),
            LocalOptions(mode="tlc", size=48, overlap=8),
        )
    )
    assert not torch.allclose(tlc, none, rtol=0, atol=1e-6)
    # The weights and the prior are the same: it is not another picture.
    assert (tlc - none).norm() < 0.5 * none.norm()
    torch.testing.assert_close(wide, none, rtol=0, atol=1e-6)
    assert len(seen) > 30
    assert seen[-1] == 1.0


@pytest.mark.parametrize("beside", [{"compile": True}, {"strip_rows": "whole"}])
def test_statistics_of_windows_need_strips(beside, tmp_path):
    options = train_options(tmp_path, 2)
    options["val"] |= {"local": {"mode": "tlc"}, **beside}
    with pytest.raises(UserError, match=r"val\.local\.mode"):
        parse_options(options)


@pytest.mark.parametrize("reverse_noise", [False, True])
def test_the_trajectory_starts_with_pure_noise_and_ends_with_the_restored_image(
    tmp_path, reverse_noise
):
    model, image = stage2(tmp_path, reverse_noise=reverse_noise), torch.rand(3, 21, 30)
    steps = restore_steps(model, image, name="x")
    assert steps.shape == (model.diffusion.timesteps + 1, 3, 21, 30)
    assert torch.equal(steps[-1], restore_image(model, image, name="x"))
    padded = model.padded(image[None])
    noise = model.draw_noise(1, image_generator(0, "x"))
    with torch.no_grad():
        first = model.net_g(padded, noise)[0, :, :21, :30]
    torch.testing.assert_close(steps[0], first, rtol=1e-5, atol=1e-6)
    batch = torch.stack([image, image.flip(-1)])
    trajectory = model.restore_trajectory(batch, generator=image_generator(0, "x"))
    assert trajectory.shape == (model.diffusion.timesteps + 1, 2, 3, 21, 30)
    restored = model.restore(batch, generator=image_generator(0, "x"))
    assert torch.equal(trajectory[-1], restored)


def test_only_a_reverse_process_has_steps():
    with pytest.raises(UserError, match="--trajectory"):
        restore_steps(Noisy(), torch.rand(3, 8, 8), name="x")
