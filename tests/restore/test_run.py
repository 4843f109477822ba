"""Restoring lists of photographs: names, what is left alone, what fails, and interruptions."""

import errno
import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import picture

from hidiff import UserError
from hidiff.data.decode import PHOTO_EXTENSIONS
from hidiff.data.image import read_image
from hidiff.restore.run import (
    Job,
    find_jobs,
    local_options,
    prepare_folder,
    restore_photos,
)


def save(path, seed=1, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, 14, 9)).save(path, **options)
    return path


def names(inputs, out, **options):
    """Sources and targets, from the working folder."""
    jobs, _ = find_jobs([Path(path) for path in inputs], Path(out), **options)
    return {str(job.source): str(job.target) for job in jobs}


def content(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def same(image, name, progress):
    """Gives back what it sees."""
    progress(0.5)
    progress(1.0)
    return image


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tree():
    for name in (
        "b.PNG",
        "a.jpeg",
        "deep/a.jpg",
        "deep/er/Größe 大.webp",
        ".a.png",
        ".trash/c.png",
    ):
        save(Path("in") / name)
    Path("in/notes.txt").write_text("x")


def test_a_folder_without_and_with_its_sub_folders(tree):
    top = {"in/a.jpeg": "out/a.jpeg", "in/b.PNG": "out/b.PNG"}
    assert names(["in"], "out") == top
    assert names(["in"], "out", recursive=True) == {
        **top,
        "in/deep/a.jpg": "out/deep/a.jpg",
        "in/deep/er/Größe 大.webp": "out/deep/er/Größe 大.webp",
    }
    (notice,) = find_jobs([Path("in")], Path("out"))[1]
    assert "notes.txt" in notice
    assert "deep/" in notice


def test_suffix_and_format_make_the_name(tree):
    assert names(["in"], "out", suffix="_x", ending=".png") == {
        "in/a.jpeg": "out/a_x.png",
        "in/b.PNG": "out/b_x.PNG",
    }
    assert names(["in/a.jpeg"], "out", ending=".jpg") == {"in/a.jpeg": "out/a.jpeg"}
    assert names(["in/a.jpeg", "in/deep", "in/a.jpeg"], "out") == {
        "in/a.jpeg": "out/a.jpeg",
        "in/deep/a.jpg": "out/a.jpg",
    }
    for more in (ending for ending in PHOTO_EXTENSIONS if ending in (".avif", ".heic")):
        Path(f"phone{more}").touch()
        assert names([f"phone{more}"], "out") == {f"phone{more}": "out/phone.jpg"}


def test_one_photograph_may_name_the_file_of_its_result(tree):
    assert names(["in/a.jpeg"], "sharp.png") == {"in/a.jpeg": "sharp.png"}
    assert names(["in/a.jpeg"], "in/sharp.tiff") == {"in/a.jpeg": "in/sharp.tiff"}
    assert names(["in/a.jpeg"], "sharp.jpg", ending=".jpeg") == {"in/a.jpeg": "sharp.jpg"}
    with pytest.raises(UserError, match="sharp.jpg"):
        names(["in/a.jpeg"], "sharp.jpg", ending=".png")
    with pytest.raises(UserError, match="replace it"):
        names(["in/a.jpeg"], "in/a.jpeg")


def test_what_cannot_be_read_fails_and_the_rest_goes_on(tree):
    Path("in/loop.png").symlink_to("loop.png")
    Path("in/phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    Path("in/linked").symlink_to("deep")
    inputs = [Path("in"), Path("in/loop.png")]
    jobs, notices = find_jobs(inputs, Path("out"), recursive=True)
    assert any("in/linked" in notice for notice in notices)
    restore_photos(jobs, same)
    failed = {job.source.name: job.remarks[-1] for job in jobs if job.state == "failed"}
    assert set(failed) == {"loop.png", "phone.heic"}
    assert "pip install pillow-heif" in failed["phone.heic"]
    assert sum(job.state == "written" for job in jobs) == 4
    long = Job(Path("in/b.PNG"), Path("out") / f"{'x' * 300}.png")
    restore_photos([long], same)
    assert long.state == "failed"


def test_half_written_results_of_a_killed_call_are_removed(tree):
    Path("out").mkdir()
    for name in (".a.jpeg.0123456789ab.part", ".other.txt.0123456789ab.part", ".a.jpeg.part"):
        (Path("out") / name).touch()
    jobs, _ = find_jobs([Path("in")], Path("out"))
    prepare_folder(Path("out"), jobs)
    assert content("out") == [".a.jpeg.part", ".other.txt.0123456789ab.part"]


def test_sizes_without_tiles_are_refused():
    for numbers in ({"size": 64, "overlap": None}, {"size": None, "overlap": 8}):
        with pytest.raises(UserError, match="--local tile"):
            local_options("none", **numbers, patch_size=None)
    assert local_options("tile", size=64, overlap=None, patch_size=32).overlap == 32
    assert local_options("tile", size=None, overlap=None, patch_size=48).size == 48


def test_steps_of_the_reverse_process_are_written_beside_the_result():
    save(Path("a.png"), 1)
    jobs = make_jobs(("a.png", "out/a.png"))
    restore_photos(jobs, lambda image, name, progress: torch.stack([image * 0, image]), steps=True)
    assert [path.name for path in jobs[0].steps] == ["z1.png", "z0.png"]
    assert not read_image("out/a_trajectory/z1.png").any()
    for place in ("out/a.png", "out/a_trajectory/z0.png"):
        assert np.array_equal(read_image(place), picture(1, 14, 9))
    again = make_jobs(("a.png", "out/a.png"))
    restore_photos(again, None, steps=True)
    assert again[0].state == "skipped"


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        (["in/a.jpeg", "in/deep/a.jpg"], {"ending": ".png"}),
        (["one/a.png", "two/A.PNG"], {}),
        (["one", "two"], {}),
    ],
)
def test_two_results_of_one_name_are_refused(tree, inputs, options):
    save(Path("one/a.png"))
    save(Path("two/A.PNG"))
    with pytest.raises(UserError) as caught:
        names(inputs, "out", **options)
    found = str(caught.value)
    assert all(str(part) in found for part in inputs)


def test_no_result_replaces_a_photograph(tree):
    for inputs, out in ((["in"], "in"), (["in/b.PNG"], "in"), (["in", "in/b.PNG"], "in/../in")):
        with pytest.raises(UserError, match=r"in/b\.PNG|-o: in"):
            names(inputs, out)
    Path("link").symlink_to("in")
    with pytest.raises(UserError):
        names(["in/b.PNG"], "link")
    # Of two photographs one has the name that the other's result would get.
    save(Path("in/b_x.PNG"))
    with pytest.raises(UserError, match=r"b_x\.PNG"):
        names(["in/b.PNG", "in/b_x.PNG"], "in", suffix="_x")
    assert names(["in/b.PNG"], "in", suffix="_y") == {"in/b.PNG": "in/b_y.PNG"}


def test_results_inside_of_the_input_are_no_photographs(tree):
    save(Path("in/results/a.jpeg"))
    expected = names(["in"], "out", recursive=True)
    del expected["in/results/a.jpeg"]
    jobs, notices = find_jobs([Path("in")], Path("in/results"), recursive=True)
    assert {str(job.source) for job in jobs} == set(expected)
    assert any("in/results" in notice for notice in notices)


@pytest.mark.parametrize(
    ("inputs", "out", "place"),
    [
        (["nowhere.jpg"], "out", "nowhere.jpg"),
        (["empty"], "out", "empty"),
        (["texts"], "out", r"texts.*x\.txt.*--recursive"),
        (["in"], "in/b.PNG", "-o: in/b.PNG"),
        (["in/b.PNG", "in/a.jpeg"], "sharp.png", "-o: sharp.png"),
        (["in"], "sharp.png", "-o: sharp.png"),
    ],
)
def test_mistakes_in_the_call_are_named(tree, inputs, out, place):
    Path("empty").mkdir()
    Path("texts").mkdir()
    Path("texts/x.txt").touch()
    with pytest.raises(UserError, match=place):
        names(inputs, out)
    with pytest.raises(UserError, match="--suffix"):
        names(["in"], "out", suffix="/../x")


def test_a_sub_folder_that_cannot_be_read_is_named_and_the_rest_goes_on(tree, monkeypatch):
    def scandir(path, real=os.scandir):
        if Path(path).name == "deep":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    jobs, _ = find_jobs([Path("in")], Path("out"), recursive=True)
    assert [job.source.name for job in jobs] == ["a.jpeg", "b.PNG", "deep"]
    assert jobs[2].state == "failed"
    assert "in/deep: " in jobs[2].remarks[0]
    with pytest.raises(UserError, match="in/deep"):
        find_jobs([Path("in/deep")], Path("out"))


def test_a_folder_that_cannot_be_made_is_named():
    Path("file").touch()
    with pytest.raises(UserError, match="-o: file/out"):
        prepare_folder(Path("file/out"))
    prepare_folder(Path("new/out"))
    assert list(Path("new/out").iterdir()) == []


def make_jobs(*pairs):
    return [Job(Path(source), Path(target)) for source, target in pairs]


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("hidiff"), "propagate", True)
    caplog.set_level("INFO", "hidiff")
    return caplog


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_does_not_stop_the_rest(said, workers):
    for index in range(6):
        save(Path(f"in/{index}.png"), index)
    Path("in/1.png").write_bytes(Path("in/1.png").read_bytes()[:99])
    Path("in/2.png").write_bytes(b"")
    Image.fromarray(picture(3, 14, 9)).convert("RGBA").save("in/3.png")
    Path("in/6.png").mkdir()
    save(Path("in/7.png"))

    def restore(image, name, progress):
        if name == "7":
            raise MemoryError
        return same(image, name, progress)

    jobs = make_jobs(*((f"in/{i}.png", f"out/{i}.{'jpg' if i == 3 else 'png'}") for i in range(8)))
    restore_photos(jobs, restore, workers=workers)
    states = ["written", *["failed"] * 3, "written", "written", "failed", "failed"]
    assert [job.state for job in jobs] == states
    failed = [job for job in jobs if job.state == "failed"]
    for job in failed:
        (line,) = [line for line in said.messages if line.endswith(job.remarks[-1])]
        assert f"{job.target if '3' in job.source.name else job.source}: " in line
    assert "5 failed (1.png, 2.png, 3.png, 6.png, 7.png)" in said.messages[-1]
    for job in (job for job in jobs if job.state == "written"):
        assert np.array_equal(read_image(job.target), read_image(job.source))
    assert content("out") == ["0.png", "4.png", "5.png"]


def test_results_that_exist_are_kept_unless_told_otherwise():
    save(Path("a.png"), 1)
    save(Path("b.png"), 2)
    Path("out/b.png").mkdir(parents=True)
    Path("out/a.png").write_text("mine")
    pairs = ("a.png", "out/a.png"), ("b.png", "out/b.png")
    jobs = make_jobs(*pairs)
    restore_photos(jobs, None)
    assert [job.state for job in jobs] == ["skipped", "failed"]
    assert Path("out/a.png").read_text() == "mine"
    jobs = make_jobs(*pairs)
    restore_photos(jobs, same, overwrite=True)
    # No folder is taken for a result.
    assert [job.state for job in jobs] == ["written", "failed"]
    assert "out/b.png" in jobs[1].remarks[-1]
    assert np.array_equal(read_image("out/a.png"), picture(1, 14, 9))


def test_a_full_disk_leaves_nothing_half_done(monkeypatch):
    for index in range(3):
        save(Path(f"{index}.png"), index)
    jobs = make_jobs(*((f"{index}.png", f"out/{index}.png") for index in range(3)))
    real = os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:  # file and folder of the first, file of the second
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor)

    calls = []
    monkeypatch.setattr(os, "fsync", full)
    restore_photos(jobs, same)
    assert [job.state for job in jobs] == ["written", "failed", "written"]
    assert "out/1.png" in jobs[1].remarks[-1]
    assert "No space left" in jobs[1].remarks[-1]
    assert content("out") == ["0.png", "2.png"]


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_loses_nothing_that_is_finished(said, workers):
    for index in range(4):
        save(Path(f"{index}.png"), index)
    jobs = make_jobs(*((f"{index}.png", f"out/{index}.png") for index in range(4)))

    def interrupted(image, name, progress):
        if name == "2":
            raise KeyboardInterrupt
        return image

    with pytest.raises(KeyboardInterrupt):
        restore_photos(jobs, interrupted, workers=workers)
    assert content("out") == ["0.png", "1.png"]
    assert [job.state for job in jobs] == ["written", "written", "waiting", "waiting"]
    assert "2 restored, 2 not reached" in said.text


def test_times_and_what_a_format_does_not_hold_are_said(said):
    Image.fromarray(picture(1, 14, 9)).save("a.png", exif=b"MM\0*" + bytes(9), icc_profile=b"x")

    def slow(image, name, progress):
        time.sleep(0.1)
        return image

    jobs = make_jobs(("a.png", "out/a.bmp"))
    restore_photos(jobs, slow)
    assert jobs[0].seconds > 0.1
    assert "out/a.bmp, 0." in said.text
    assert "the colour profile" in said.text
