"""The cache of decoded frames: the same pixels, never stale ones, and several processes at once."""

import errno
import fcntl
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import make_pairs, picture, write_rgb

from hidiff.data import (
    BatchPlan,
    CropRequest,
    PairedImageIRDataset,
    PhaseBatchSampler,
    training_batches,
)
from hidiff.data.frame_cache import FrameCache, file_identity
from hidiff.options import Phase
from hidiff.utils.errors import UserError
from hidiff.utils.files import partial_files

FORK = multiprocessing.get_context("fork")
REQUESTS = [CropRequest(index, 16, 32, (1, index)) for index in range(3)]
ITEMS = [0, 1, 2, *REQUESTS]


@pytest.fixture
def folder(tmp_path):
    """Three pairs, of 48×40, of 33×37 and of 16 bits."""
    make_pairs(tmp_path, 3)
    for side, seed in (("input", 1), ("target", 2)):
        write_rgb(tmp_path / side / "scene-001.png", picture(seed, 37, 33))
        deep = picture(seed + 2, 40, 41).astype(np.uint16) * 250 + 7
        write_rgb(tmp_path / side / "scene-002.png", deep)
    return tmp_path


def dataset(folder, **kwargs):
    roots = {"dataroot_lq": str(folder / "input"), "dataroot_gt": str(folder / "target")}
    return PairedImageIRDataset(where="datasets.train", **{**roots, **kwargs})


def cached(folder, **kwargs):
    return dataset(folder, cache=str(folder / "cache"), **kwargs)


def files(folder, ending):
    return sorted((folder / "cache").glob(f"frames-*{ending}"))


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == theirs[key].dtype
            assert torch.equal(value, theirs[key])
        else:
            assert value == theirs[key]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) == 3
    for item in ITEMS:
        assert_equal(ours[item], theirs[item])


def no_decoding(*_):
    raise AssertionError("decoded although it is in the cache")


@pytest.mark.parametrize("source", ["disk", "lmdb", "list"])
def test_the_cache_gives_what_decoding_gives(folder, source, monkeypatch):
    options = {}
    if source == "lmdb":
        pytest.importorskip("lmdb")
        from hidiff.data.lmdb_store import create_lmdb

        for side in ("input", "target"):
            create_lmdb(folder / side, folder / f"{side}.lmdb", progress=False)
        options = {
            "dataroot_lq": str(folder / "input.lmdb"),
            "dataroot_gt": str(folder / "target.lmdb"),
            "io_backend": {"type": "lmdb"},
        }
    elif source == "list":
        (folder / "pairs.txt").write_text("scene-002.png\nscene-000.png\nscene-001.png\n")
        options = {"meta_info_file": str(folder / "pairs.txt")}
    plain = dataset(folder, **options)
    expected = [plain[item] for item in ITEMS]
    first = cached(folder, **options)
    monkeypatch.setattr(PairedImageIRDataset, "_decode", no_decoding)
    for data in (first, cached(folder, **options)):
        for item, theirs in zip(ITEMS, expected, strict=True):
            assert_equal(data[item], theirs)


def test_the_index_describes_every_frame(folder):
    cached(folder)
    (index,), (data,) = files(folder, ".json"), files(folder, ".bin")
    content = json.loads(index.read_text())
    assert content["bytes"] == data.stat().st_size
    frames = {Path(f["location"]).relative_to(folder): f for f in content["frames"]}
    assert len(frames) == 6
    frame = frames[Path("input/scene-001.png")]
    assert (frame["shape"], frame["dtype"], frame["error"]) == ([37, 33, 3], "uint8", None)
    start, size = frame["offset"], 37 * 33 * 3
    assert data.read_bytes()[start : start + size] == picture(1, 37, 33).tobytes()
    assert frames[Path("target/scene-002.png")]["dtype"] == "uint16"
    assert sorted(path.name for path in (folder / "cache").iterdir()) == sorted(
        [index.name, data.name, "frames.lock"]
    )


def test_without_ground_truth_the_blurry_images_are_cached(folder):
    data = cached(folder, dataroot_gt=None)
    assert torch.equal(data[1]["lq"], dataset(folder)[1]["lq"])
    assert len(json.loads(files(folder, ".json")[0].read_text())["frames"]) == 3


def test_changed_data_gets_a_cache_of_its_own(folder):
    before = cached(folder)[0]["lq"]
    old = files(folder, "")
    write_rgb(folder / "input" / "scene-000.png", picture(9, 40, 48))
    assert_same(cached(folder), dataset(folder))
    assert not torch.equal(cached(folder)[0]["lq"], before)
    assert set(old) < set(files(folder, ""))
    assert len(files(folder, ".json")) == 2
    # The same pixels with another time of change count as changed too.
    os.utime(folder / "target" / "scene-000.png", ns=(0, 1))
    cached(folder)
    assert len(files(folder, ".json")) == 3


def test_a_copy_of_the_data_elsewhere_gets_a_cache_of_its_own(folder, tmp_path):
    shutil.copytree(folder / "input", tmp_path / "copy" / "input")
    shutil.copytree(folder / "target", tmp_path / "copy" / "target")
    dataset(tmp_path / "copy", cache=str(folder / "cache"))
    cached(folder)
    assert len(files(folder, ".json")) == 2


def test_a_relative_path_names_the_same_cache(folder, monkeypatch):
    cached(folder)
    monkeypatch.chdir(folder)
    data = dataset(Path(), cache="cache")
    assert len(files(folder, ".json")) == 1
    assert_same(data, dataset(folder))


def flip_a_byte(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_damaged_pixels_are_noticed_once_and_named(folder):
    data = cached(folder)
    data[0]
    (pixels,), (index,) = files(folder, ".bin"), files(folder, ".json")
    frame = json.loads(index.read_text())["frames"][1]
    flip_a_byte(pixels, frame["offset"] + 11)
    data[REQUESTS[0]]
    message = rf"pixels of {frame['location']}.*delete {pixels.name} and {index.name} in .*cache"
    with pytest.raises(UserError, match=message):
        data[REQUESTS[1]]
    # Verified frames are not read through again; another process looks for itself.
    flip_a_byte(pixels, json.loads(index.read_text())["frames"][0]["offset"])
    data[REQUESTS[0]]
    with pytest.raises(UserError, match="pixels of"):
        pickle.loads(pickle.dumps(data))[REQUESTS[0]]
    for path in (pixels, index):
        path.unlink()
    assert_same(cached(folder), dataset(folder))


INDEX_DAMAGE = {
    "cut": lambda text: text[:100],
    "no frames": lambda text: text.replace('"frames"', '"framez"'),
    "no bytes": lambda text: text.replace('"bytes"', '"bytez"'),
    "no checksum": lambda text: json.dumps({**json.loads(text), "sha256": ""}),
    "a list": lambda text: "[]",
    "shape": lambda text: text.replace("[40, 48, 3]", "[48, 40, 3]"),
    "too large": lambda text: text.replace("[40, 48, 3]", "[999999, 48, 3]"),
    "dtype": lambda text: text.replace("uint8", "uint7"),
    "offset": lambda text: text.replace('"offset": 0', '"offset": 640'),
}


@pytest.mark.parametrize("damage", ["short", "gone", *INDEX_DAMAGE])
def test_a_cache_that_cannot_be_read_is_named(folder, damage):
    data = cached(folder)
    (pixels,), (index,) = files(folder, ".bin"), files(folder, ".json")
    if damage == "short":
        os.truncate(pixels, 100)
    elif damage == "gone":
        pixels.unlink()
    else:
        text = index.read_text()
        assert INDEX_DAMAGE[damage](text) != text
        index.write_text(INDEX_DAMAGE[damage](text))
    with pytest.raises(UserError, match=rf"datasets\.train\.cache: .*{index.name}"):
        data[0]


def test_a_damaged_image_is_missing_and_says_what_decoding_says(folder, capsys):
    bad = folder / "input" / "scene-001.png"
    bad.write_bytes(bad.read_bytes()[:99])
    data = cached(folder)
    assert "1 images cannot be used, the first:" in capsys.readouterr().err
    errors = []
    for source in (dataset(folder), data):
        with pytest.raises(UserError) as caught:
            source[REQUESTS[1]]
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    index = json.loads(files(folder, ".json")[0].read_text())
    assert [f["error"] for f in index["frames"] if f["error"]] == errors[:1]
    sampler = PhaseBatchSampler(
        size=3, plan=BatchPlan([Phase(16, 3, 2)], 1), rank=0, seed=0, crop_size=32, total_iter=2
    )
    for batch in training_batches(data, sampler, num_workers=1, skip_bad=True):
        assert "scene-001" not in batch["name"]
        assert "truncated" in batch["notices"][0]


def test_only_damaged_images_make_an_empty_cache(folder):
    for path in (*(folder / "input").iterdir(), *(folder / "target").iterdir()):
        path.write_bytes(b"")
    with pytest.raises(UserError):
        cached(folder)[0]


def test_pairs_are_still_checked(folder):
    write_rgb(folder / "input" / "scene-001.png", picture(1, 40, 40))
    data = cached(folder)
    with pytest.raises(UserError, match=r"'scene-001' has two sizes.*40×40.*33×37"):
        data[1]
    with pytest.raises(UserError, match=r"scene-000.png"):
        data[CropRequest(0, 32, 64, (0,))]


def test_patches_can_be_written_to(folder):
    """They are copies, not windows into the file."""
    data = cached(folder)
    item = data[CropRequest(0, 40, 40, (1,))]
    item["lq"].zero_()
    assert data[CropRequest(0, 40, 40, (1,))]["lq"].any()


def test_too_little_room_is_said_before_anything_is_decoded(folder, monkeypatch):
    usage = shutil.disk_usage(folder)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"0\.0 MB free"):
        cached(folder)
    assert files(folder, "") == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fills_up_leaves_nothing(folder, monkeypatch, number):
    def full(_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        message = "need about .* free; make room" if number == errno.ENOSPC else "Input/output"
        with pytest.raises(UserError, match=message):
            cached(folder)
    assert files(folder, "") == []
    assert_same(cached(folder), dataset(folder))


def test_a_folder_that_cannot_be_made_is_named(folder):
    (folder / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"datasets\.train\.cache: "):
        cached(folder)


def test_forked_and_new_processes_read_it(folder):
    data = cached(folder)
    data[0]  # Mapped here before the workers start.
    assert len(pickle.dumps(data)) < 5000
    assert_same(pickle.loads(pickle.dumps(data)), dataset(folder))
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    for item, expected in zip(loader, (dataset(folder)[i] for i in range(3)), strict=True):
        assert torch.equal(item["gt"], expected["gt"])


def build(folder, decode, locations=("a", "b", "c")):
    return FrameCache(
        folder, locations, identity=[list(locations)], decode=decode, where="datasets.train.cache"
    )


def colour(location):
    return np.full((4, 5, 3), ord(location), np.uint8)


def test_of_several_processes_one_builds(tmp_path):
    def work():
        def decode(location):
            with (tmp_path / "decoded").open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(0.02)
            return colour(location)

        cache = build(tmp_path / "cache", decode)
        os._exit(0 if all(np.all(cache.read(x) == ord(x)) for x in "abc") else 1)

    processes = [FORK.Process(target=work) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    # Three to tell the size, three to write.
    assert len((tmp_path / "decoded").read_text().split()) == 6
    assert len(set((tmp_path / "decoded").read_text().split())) == 1


def test_who_waits_says_so_once(tmp_path, capfd):
    (tmp_path / "frames.lock").touch()
    with (tmp_path / "frames.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        built = []
        thread = threading.Thread(target=lambda: built.append(build(tmp_path, colour)))
        thread.start()
        text = ""
        limit = time.monotonic() + 30
        while "waiting for another process" not in text and time.monotonic() < limit:
            time.sleep(0.01)
            text += capfd.readouterr().err
        assert not built
        assert not list(tmp_path.glob("*.bin*"))
    thread.join(30)
    text += capfd.readouterr().err
    assert text.count("waiting for another process") == 1
    assert np.all(built[0].read("b") == ord("b"))


def test_a_build_that_was_killed_is_no_cache_and_is_cleared_away(tmp_path):
    # Of 18 frames every second is looked at to tell the size; the last is not among them.
    locations = "abcdefghijklmnopqr"

    def work():
        build(tmp_path, lambda x: time.sleep(60) if x == "r" else colour(x), locations)

    process = FORK.Process(target=work)
    process.start()
    limit = time.monotonic() + 30
    while not partial_files(tmp_path, "frames-*") and time.monotonic() < limit:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    (left,) = partial_files(tmp_path)
    other = build(tmp_path, colour)
    assert not left.exists()
    assert np.all(other.read("c") == ord("c"))


def test_a_build_that_died_between_the_two_files_is_done_again(tmp_path):
    cache = build(tmp_path, colour)
    cache.index.unlink()
    cache.data.write_bytes(b"half")
    assert np.all(build(tmp_path, colour).read("a") == ord("a"))


def test_a_file_is_known_by_path_size_and_time(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"123")
    os.utime(path, ns=(5, 7))
    assert file_identity(path) == [str(path), 3, 7]
    assert file_identity(tmp_path / "absent") == [str(tmp_path / "absent"), None, None]
