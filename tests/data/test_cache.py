"""The cache of decoded images: the same pixels, never stale ones, whole files."""

import errno
import os

import numpy as np
import pytest
from small_data import picture, write_rgb

from hidiff.data import CropRequest, PairedImageIRDataset
from hidiff.data.cache import ImageCache, file_identity
from hidiff.data.image import read_image
from hidiff.utils.errors import UserError


@pytest.fixture
def place(tmp_path):
    write_rgb(tmp_path / "a.png", picture(1, 37, 33))
    return tmp_path / "a.png"


def never(location):
    raise AssertionError(f"{location} was decoded although it is in the cache")


@pytest.mark.parametrize("deep", [False, True])
def test_an_image_is_decoded_once_and_then_mapped(tmp_path, place, deep):
    expected = picture(1, 37, 33).astype(np.uint16) * 250 + 7 if deep else picture(1, 37, 33)
    write_rgb(place, expected)
    cache = ImageCache(tmp_path / "cache", "here")
    assert np.array_equal(cache.read(str(place), read_image), expected)
    again = ImageCache(tmp_path / "cache", "here").read(str(place), never)
    assert isinstance(again, np.memmap)
    assert again.dtype == expected.dtype
    assert np.array_equal(again, expected)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npy"]


def test_changed_images_are_decoded_again(tmp_path, place):
    cache = ImageCache(tmp_path / "cache", "here")
    cache.read(str(place), read_image)
    write_rgb(place, picture(2, 37, 33))
    os.utime(place, ns=(1, 1))
    assert np.array_equal(cache.read(str(place), read_image), picture(2, 37, 33))


def test_damaged_files_are_named(tmp_path, place):
    cache = ImageCache(tmp_path / "cache", "here")
    cache.read(str(place), read_image)
    (file,) = (tmp_path / "cache").iterdir()
    for content in (b"", file.read_bytes()[:-1], b"x" * 200):
        file.write_bytes(content)
        with pytest.raises(UserError, match=rf"^here: {file}"):
            cache.read(str(place), never)


def test_a_folder_that_cannot_be_used_is_named(tmp_path, place, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^here: .*file"):
        ImageCache(tmp_path / "file", "here").read(str(place), read_image)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match=r"No space left.*make room"):
        ImageCache(tmp_path / "cache", "here").read(str(place), read_image)
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_cannot_be_decoded_says_so_and_leaves_nothing(tmp_path, place):
    place.write_bytes(place.read_bytes()[:50])
    with pytest.raises(UserError, match=r"a\.png: "):
        ImageCache(tmp_path / "cache", "here").read(str(place), read_image)
    assert not (tmp_path / "cache").exists()


def test_data_sets_read_through_it(tmp_path, place):
    for side in ("input", "target"):
        write_rgb(tmp_path / side / "a.png", picture(3, 40, 40))
    roots = {"dataroot_lq": str(tmp_path / "input"), "dataroot_gt": str(tmp_path / "target")}
    plain = PairedImageIRDataset(where="datasets.train", **roots)
    cached = PairedImageIRDataset(where="datasets.train", cache=str(tmp_path / "c"), **roots)
    for item in (0, CropRequest(0, 16, 32, (1, 0)), 0):
        for side in ("lq", "gt"):
            assert plain[item][side].equal(cached[item][side])
    assert len(list((tmp_path / "c").iterdir())) == 2


def test_files_are_known_by_place_size_and_time(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    os.utime(path, ns=(5, 7))
    assert file_identity(path) == [str(path), 3, 7]
    assert file_identity(tmp_path / "absent") == [str(tmp_path / "absent"), None, None]
