"""Windows that cover an image, and the weights that blend them."""

import itertools

import pytest
import torch

from hidiff.archs.windows import Windows


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
