"""LMDB stores: layout, bytes, refusal to overwrite, and use from other processes."""

import pickle
import sys

import numpy as np
import pytest
import torch

from hidiff.data.image import decode_image, write_image
from hidiff.data.lmdb_store import LmdbImages, create_lmdb
from hidiff.utils.errors import UserError

lmdb = pytest.importorskip("lmdb")


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, shape in (("b (2).png", (6, 9, 3)), ("a.b.png", (4, 5, 3)), ("c.jpg", (8, 8, 3))):
        write_image(tmp_path / "images" / name, rng.integers(0, 256, shape, np.uint8))
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


@pytest.fixture
def store(folder, tmp_path):
    assert create_lmdb(folder, tmp_path / "sub" / "x.lmdb", progress=False) == 3
    return tmp_path / "sub" / "x.lmdb"


def test_layout_is_that_of_basicsr(store, folder):
    assert sorted(path.name for path in store.iterdir()) == [
        "data.mdb",
        "lock.mdb",
        "meta_info.txt",
    ]
    assert sorted((store / "meta_info.txt").read_text().splitlines()) == [
        "a.b.png (4,5,3) 1",
        "b (2).png (6,9,3) 1",
        "c.jpg (8,8,3) 1",
    ]
    with lmdb.open(str(store), readonly=True, lock=False) as database, database.begin() as read:
        content = {bytes(key): bytes(value) for key, value in read.cursor()}
    assert content == {
        b"a.b": (folder / "a.b.png").read_bytes(),
        b"b (2)": (folder / "b (2).png").read_bytes(),
        b"c": (folder / "c.jpg").read_bytes(),
    }
    assert [path.name for path in store.parent.iterdir()] == ["x.lmdb"], "left-over files"


def test_reading(store, folder):
    images = LmdbImages(store, "here")
    assert sorted(images.names) == ["a.b", "b (2)", "c"]
    assert images.read("a.b") == (folder / "a.b.png").read_bytes()
    with pytest.raises(UserError, match="'d'"):
        images.read("d")


def test_keys_without_meta_info_come_from_the_database(store):
    (store / "meta_info.txt").unlink()
    assert sorted(LmdbImages(store, "here").names) == ["a.b", "b (2)", "c"]


def test_folders_are_part_of_the_keys(tmp_path):
    """As in BasicSR's LMDBs of REDS."""
    path = tmp_path / "reds.lmdb"
    keys = ["000/00000000", "001/00000000"]
    with lmdb.open(str(path)) as database, database.begin(write=True) as write:
        for key in keys:
            write.put(key.encode(), key.encode())
    assert list(LmdbImages(path, "here").names) == keys
    (path / "meta_info.txt").write_text("".join(f"{key}.png (4,5,3) 1\n" for key in keys))
    images = LmdbImages(path, "here")
    assert list(images.names) == keys
    assert [images.read(key).decode() for key in keys] == keys


@pytest.mark.parametrize("meta_info", [True, False])
def test_keys_that_are_no_text(tmp_path, meta_info):
    with lmdb.open(str(tmp_path)) as database, database.begin(write=True) as write:
        write.put(b"a\xff", b"")
    if meta_info:
        (tmp_path / "meta_info.txt").write_bytes(b"a\xff.png (4,5,3) 1\n")
    with pytest.raises(UserError, match=r"here: .*a\\xff"):
        list(LmdbImages(tmp_path, "here").names)


@pytest.mark.parametrize("key", ["", "a" * 600])
def test_keys_that_no_database_has(store, key):
    with pytest.raises(UserError, match="has no image"):
        LmdbImages(store, "here").read(key)


def test_two_readers_of_one_store_in_one_process(store):
    first, second = LmdbImages(store, "here"), LmdbImages(store, "there")
    assert first.read("c") == second.read("c")


def test_pickled_after_use(store):
    images = LmdbImages(store, "here")
    data = images.read("c")
    assert pickle.loads(pickle.dumps(images)).read("c") == data


class Decoded(torch.utils.data.Dataset):
    def __init__(self, images: LmdbImages) -> None:
        self.images = images
        self.keys = sorted(images.names)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[int, ...]:
        return decode_image(self.images.read(self.keys[index]), "here").shape


@pytest.mark.skipif(sys.platform != "linux", reason="tests what forking does")
def test_forked_workers_open_their_own_environment(store):
    data = Decoded(LmdbImages(store, "here"))
    data[0]  # The parent's environment is open when the workers start.
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    assert [tuple(shape) for shape in loader] == [(4, 5, 3), (6, 9, 3), (8, 8, 3)]
    assert data[2] == (8, 8, 3)


def test_many_images_fit(tmp_path):
    # More than one batch, of files far smaller than a page and larger ones, 2 MB in all.
    rng = np.random.default_rng(0)
    for number in range(150):
        side = 80 if number % 2 == 0 else 2
        write_image(
            tmp_path / "i" / f"{number}.png", rng.integers(0, 256, (side, side, 3), np.uint8)
        )
    assert create_lmdb(tmp_path / "i", tmp_path / "x.lmdb", progress=False) == 150
    images = LmdbImages(tmp_path / "x.lmdb", "here")
    keys = images.names
    assert len(keys) == 150
    assert all(images.read(key) == (tmp_path / "i" / f"{key}.png").read_bytes() for key in keys)


def test_an_existing_store_is_not_overwritten(store, folder):
    before = (store / "data.mdb").read_bytes()
    with pytest.raises(UserError):
        create_lmdb(folder, store, progress=False)
    assert (store / "data.mdb").read_bytes() == before


def test_a_damaged_image_leaves_no_store(folder, tmp_path):
    data = (folder / "a.b.png").read_bytes()
    (folder / "a.b.png").write_bytes(data[:-20])
    with pytest.raises(UserError, match=r"a\.b\.png.*truncated"):
        create_lmdb(folder, tmp_path / "y.lmdb", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_wrong_names(folder, tmp_path):
    with pytest.raises(UserError, match=r"end in \.lmdb"):
        create_lmdb(folder, tmp_path / "y", progress=False)
    with pytest.raises(UserError):
        LmdbImages(folder, "here")


def test_without_the_package(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(UserError, match="pip install lmdb"):
        create_lmdb(folder, tmp_path / "y.lmdb", progress=False)
