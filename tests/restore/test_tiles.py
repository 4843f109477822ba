"""Tiles: their places, their weights, and what an image restored in them is."""

import itertools

import pytest
import torch
from small_data import train_options

from hidiff import UserError, build_model
from hidiff.archs.windows import Windows
from hidiff.options import LocalOptions, parse_options
from hidiff.restore.restoring import restore_item
from hidiff.restore.tiles import restore_in_tiles

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    return build_model(train_options(tmp_path_factory.mktemp("x"), 2)).eval()


@pytest.mark.parametrize("overlap", [0, 1, 16, 40, 63])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 100, 128, 300])
def test_windows_cover_an_axis_and_their_weights_sum_to_one(length, overlap):
    windows = Windows(64, overlap).along(length)
    total = torch.zeros(length)
    for place, weight in windows:
        assert place.stop - place.start == len(weight) == min(length, 64)
        assert (weight > 0).all()
        total[place] += weight
    torch.testing.assert_close(total, torch.ones(length), rtol=0, atol=1e-6)
    shared = [a[0].stop - b[0].start for a, b in itertools.pairwise(windows)]
    assert all(pixels >= overlap for pixels in shared)
    # No more of them than needed.
    assert (len(windows) - 1) * (64 - overlap) < max(length - overlap, 1)


def test_weights_are_a_raised_cosine():
    (first, down), (second, up) = Windows(64, 32).along(96)
    assert (first, second) == (slice(0, 64), slice(32, 96))
    pixels = torch.arange(32, dtype=torch.float64) + 0.5
    expected = 0.5 - 0.5 * torch.cos(torch.pi * pixels / 32)
    torch.testing.assert_close(up, torch.cat([expected, torch.ones(32)]).float())
    torch.testing.assert_close(down, up.flip(0))


def test_windows_of_a_coarser_level_lie_in_the_same_places():
    fine, coarse = (Windows(64, 32).along(160 // scale, scale) for scale in (1, 8))
    assert [place.start for place, _ in coarse] == [place.start // 8 for place, _ in fine]


def test_an_image_of_one_tile_is_restored_as_without_tiles(model):
    lq = torch.rand(1, 3, 37, 43)
    tiled, whole = (
        restore(lq, generator=torch.Generator().manual_seed(1))
        for restore in (
            lambda *a, **k: restore_in_tiles(model, Windows(48, 8), *a, **k),
            model.restore,
        )
    )
    assert torch.equal(tiled, whole)


@pytest.mark.parametrize("at_once", [1, 4])
def test_tiles_are_restored_by_themselves_from_the_same_noise_and_blended(
    model, monkeypatch, at_once
):
    monkeypatch.setattr("hidiff.restore.tiles.TILES_AT_ONCE", {"cpu": at_once})
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


def test_items_are_restored_in_tiles(model):
    item = {"lq": torch.rand(3, 16, 24), "name": "x"}
    local = LocalOptions("tile", 16, 8)
    tiled, whole, ensemble = (
        restore_item(model, item, seed=0, device=CPU, local=how, self_ensemble=eight)
        for how, eight in ((local, False), (LocalOptions(), False), (local, True))
    )
    assert torch.equal(whole, restore_item(model, item, seed=0, device=CPU))
    assert not torch.equal(tiled, whole)
    assert not torch.equal(tiled, ensemble)


@pytest.mark.parametrize(
    ("local", "place"),
    [
        ({"mode": "tiles"}, r"val\.local\.mode: .*did you mean 'tile'"),
        ({"sizes": 8}, r"val\.local\.sizes: .*did you mean 'size'"),
        ({"mode": "tile", "size": 100}, r"val\.local\.size: "),
        ({"mode": "tile", "size": 0}, r"val\.local\.size: "),
        ({"mode": "tile", "size": 64, "overlap": 64}, r"val\.local\.overlap: "),
        ({"mode": "tile", "overlap": -8}, r"val\.local\.overlap: "),
    ],
)
def test_mistakes_in_the_section(tmp_path, local, place):
    options = train_options(tmp_path, 2)
    options["val"]["local"] = local
    with pytest.raises(UserError, match=place):
        parse_options(options)


def test_statistics_of_windows_are_a_mode_of_their_own(model):
    item = {"lq": torch.rand(3, 37, 43), "name": "a"}
    seen = []
    none, tlc, wide = (
        restore_item(model, item, seed=0, device=CPU, local=local, progress=seen.append)
        for local in (None, LocalOptions("tlc", 16, 8), LocalOptions("tlc", 48, 8))
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
