"""Files under their final name are complete, and lie there with the user's own rights."""

import os
import stat

import numpy as np
import pytest

from hidiff import UserError
from hidiff.data.image import write_image
from hidiff.utils.files import inside, partial_files, replacing, write_text


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/../../x", "/x", "a//b", "a/", "..\\x", "a\0b", "a\udcff"],
)
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    with pytest.raises(UserError) as caught:
        inside(tmp_path, name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["a", "000/0001", "a..b", "..a", "ä b", "a:b"])
def test_other_names_lie_in_it(tmp_path, name):
    assert inside(tmp_path, name) == tmp_path / name


@pytest.fixture(params=[0o027, 0o002])
def mask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize(
    "write", [write_text, lambda p, _: write_image(p, np.zeros((2, 2, 3), np.uint8))]
)
def test_rights_are_those_of_the_umask(tmp_path, mask, write):
    path = tmp_path / "new" / "a.png"
    write(path, "text")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert list(path.parent.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / f"{'ä' * 120}.txt"
    with replacing(path) as first, replacing(path) as second:
        first.write(b"1" * 9)
        second.write(b"2")
        assert len(partial_files(tmp_path)) == 2
        assert not path.exists()
    assert path.read_bytes() == b"1" * 9
    assert partial_files(tmp_path) == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old\r\n")
    with pytest.raises(KeyError), replacing(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"old\r\n"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match=r"a\.txt/b: "):
        write_text(path / "b", "text")


def test_the_name_reaches_the_disk_after_the_content(tmp_path, monkeypatch):
    synced = []
    path = tmp_path / "a.txt"

    def fsync(descriptor):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append(("folder" if is_folder else "file", path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(path, "text")
    assert synced == [("file", False), ("folder", True)]
