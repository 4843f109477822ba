"""Symmetries of the square."""

import numpy as np
import pytest
import torch

from hidiff.data.transforms import symmetry, undo_symmetry


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
