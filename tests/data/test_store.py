"""Locations of images: folders, links and LMDBs, also from other processes."""

import sys

import pytest
import torch
from small_data import make_lmdb, picture, write_rgb

from hidiff.data.decode import decode
from hidiff.data.store import file_of, find_images, read_location
from hidiff.utils.errors import UserError

lmdb = pytest.importorskip("lmdb")


@pytest.fixture
def folder(tmp_path):
    for name in ("a.b.png", "b (2).png", "c.jpg"):
        write_rgb(tmp_path / "images" / name, picture(len(name), 8, 9))
    return tmp_path / "images"


@pytest.fixture
def store(folder, tmp_path):
    make_lmdb(folder, tmp_path / "x.lmdb")
    return tmp_path / "x.lmdb"


def test_an_lmdb_gives_the_files_bytes(store, folder):
    images, notices = find_images(str(store), "here")
    assert notices == []
    assert {name: read_location(place) for name, place in images.items()} == {
        path.stem: path.read_bytes() for path in folder.iterdir()
    }
    assert {file_of(place) for place in images.values()} == {str(store / "data.mdb")}
    files, _ = find_images(str(folder), "here")
    assert file_of(files["c"]) == files["c"] == str(folder / "c.jpg")


def test_folders_are_part_of_the_keys(tmp_path):
    """As in BasicSR's LMDBs of REDS."""
    path = tmp_path / "reds.lmdb"
    keys = ["000/00000000", "001/00000000"]
    with lmdb.open(str(path)) as database, database.begin(write=True) as write:
        for key in keys:
            write.put(key.encode(), key.encode())
    images, _ = find_images(str(path), "here")
    assert [read_location(images[key]).decode() for key in keys] == keys


def test_damaged_databases_are_named(tmp_path, store):
    location = find_images(str(store), "here")[0]["c"]
    for key in ("", "d", "a" * 600):
        with pytest.raises(UserError, match="has no image"):
            read_location(location.removesuffix("c") + key)
    (tmp_path / "y.lmdb").mkdir()
    with pytest.raises(UserError, match=r"^here: .*y\.lmdb is no LMDB"):
        find_images(str(tmp_path / "y.lmdb"), "here")
    with lmdb.open(str(tmp_path / "z.lmdb")) as database, database.begin(write=True) as write:
        write.put(b"a\xff", b"")
    with pytest.raises(UserError, match=r"^here: .*a\\xff"):
        find_images(str(tmp_path / "z.lmdb"), "here")


def test_without_the_package(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(UserError, match="pip install lmdb"):
        find_images(str(store), "here")


class Shapes(torch.utils.data.Dataset):
    def __init__(self, places: list[str]) -> None:
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[int, ...]:
        return decode(read_location(self.places[index]), "here").pixels.shape


@pytest.mark.skipif(sys.platform != "linux", reason="tests what forking does")
def test_forked_workers_open_their_own_environment(store):
    data = Shapes(list(find_images(str(store), "here")[0].values()))
    data[0]  # The parent's environment is open when the workers start.
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    assert [tuple(shape) for shape in loader] == [(8, 9, 3)] * 3


def test_scenes_links_and_folders_without_rights(tmp_path):
    for place in ("s1/0.png", "s2/deep/0.png", ".hidden/0.png"):
        write_rgb(tmp_path / "d" / place, picture(0, 8, 8))
    (tmp_path / "d" / "loop").symlink_to(tmp_path / "d")
    images, notices = find_images(str(tmp_path / "d"), "here")
    assert list(images) == ["s1/0", "s2/deep/0"]
    assert [notice for notice in notices if "loop" in notice]
