"""Means over noise and symmetries, and how far they are."""

import numpy as np
import pytest
import torch

from hidiff.data.transforms import symmetry, undo_symmetry
from hidiff.restore.restoring import image_generator, photo_item, restore_item, to_image

CPU = torch.device("cpu")


class Noisy(torch.nn.Module):
    """Adds noise that depends on the generator, and on where a pixel is."""

    restores_from_gt = False

    def restore(self, lq, *, generator, progress=None):
        for done in (0.25, 1.0) if progress else ():
            progress(done)
        return lq + torch.rand(lq.shape, generator=generator)


@pytest.mark.parametrize("self_ensemble", [False, True])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_mean_over_noise_and_symmetries_and_its_progress(self_ensemble, seeds):
    item, heard = {"lq": torch.rand(3, 5, 7), "name": "x"}, []
    runs = [
        undo_symmetry(
            symmetry(item["lq"], index)
            + torch.rand(
                symmetry(item["lq"], index)[None].shape, generator=image_generator(4 + k, "x")
            )[0],
            index,
        )
        for k in range(seeds)
        for index in range(8 if self_ensemble else 1)
    ]
    ours = restore_item(
        *(Noisy(), item), seed=4, device=CPU, self_ensemble=self_ensemble, seeds=seeds,
        progress=heard.append,
    )  # fmt: skip
    torch.testing.assert_close(ours, torch.stack(runs).mean(0))
    expected = [(run + done) / len(runs) for run in range(len(runs)) for done in (0.25, 1.0)]
    assert heard == pytest.approx(expected)
    again = restore_item(
        Noisy(), item, seed=4, device=CPU, self_ensemble=self_ensemble, seeds=seeds
    )
    assert torch.equal(ours, again)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_value_comes_back(dtype):
    pixels = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(-1, 16, 1).repeat(3, axis=2)
    back = to_image(photo_item(pixels, "x")["lq"], dtype)
    assert back.dtype == dtype
    assert np.array_equal(back, pixels)
