"""Files: complete under their final name, read without trust, locked folders."""

import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from hidiff import UserError
from hidiff.data.image import write_image
from hidiff.utils.files import (
    archive,
    lock_folder,
    partial_files,
    read_lines,
    read_regular_file,
    replacing,
    safe_join,
    write_text,
)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/../../x", "/x", "a//b", "a/", "..\\x", "a\0b", "a\udcff"],
)
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    with pytest.raises(UserError) as caught:
        safe_join(tmp_path, name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["a", "000/0001", "a..b", "..a", "ä b", "a:b"])
def test_other_names_lie_in_it(tmp_path, name):
    assert safe_join(tmp_path, name) == tmp_path / name


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


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "long", "nul", "none"])
@pytest.mark.timeout(10)
def test_only_regular_files_are_read(tmp_path, kind):
    path = {"device": "/dev/zero", "long": "a" * 300, "nul": "a\0b"}.get(kind, tmp_path / kind)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(UserError) as caught:
        read_regular_file(path)
    assert str(path) in str(caught.value)


def test_a_file_may_have_so_many_bytes(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(100))
    assert read_regular_file(path, 100) == bytes(100)
    with pytest.raises(UserError, match="not read"):
        read_regular_file(path, 99)


def test_lines_of_a_text_are_read_with_a_byte_order_mark_too(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfa b\r\n\n c\n")
    assert list(read_lines(path, "--list")) == [(1, "a b"), (3, "c")]
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="--list"):
        read_lines(path, "--list")


def test_what_is_archived_keeps_all_earlier_ones(tmp_path):
    for number in range(3):
        write_text(tmp_path / "a", str(number))
        archive(tmp_path / "a")
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["0", "1", "2"]


def lock_in_another_process(folder):
    program = (
        "import sys; from pathlib import Path; from hidiff.utils.files import lock_folder; "
        "lock_folder(Path(sys.argv[1]), patience=0.0)"
    )
    return subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True)


def test_a_locked_folder_names_its_holder(tmp_path):
    assert lock_folder(tmp_path / "a") == lock_folder(tmp_path / "a") == []
    done = lock_in_another_process(tmp_path / "a")
    assert done.returncode
    assert f"process {os.getpid()} " in done.stderr
    assert lock_in_another_process(tmp_path / "b").returncode == 0


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
@pytest.mark.timeout(10)
def test_a_lock_follows_no_link(tmp_path, kind):
    target, lock = tmp_path / "precious", tmp_path / ".a.lock"
    target.write_text("content")
    if kind == "link":
        lock.symlink_to(target)
    elif kind == "folder":
        lock.mkdir()
    else:
        os.mkfifo(lock)
    with pytest.raises(UserError, match=r"\.a\.lock"):
        lock_folder(tmp_path / "a")
    assert target.read_text() == "content"


def test_a_file_system_without_locks_is_a_notice(tmp_path, monkeypatch):
    import filelock

    def fails(lock):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(filelock.FileLock, "acquire", fails)
    (notice,) = lock_folder(tmp_path / "a")
    assert "Operation not supported" in notice
