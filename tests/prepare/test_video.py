"""Pairs from frames: means, centres, order, parts, and what is kept and refused."""

import re
import shutil

import cv2
import numpy as np
import pytest
from small_data import picture, write_rgb

from hidiff import UserError
from hidiff.cli import call
from hidiff.data.image import read_image
from hidiff.data.pairs import find_pairs
from hidiff.prepare.video import VideoTask, frame_counts, video_tasks


def main(arguments):
    return call("prepare", *map(str, arguments))


TO_LIGHT = {
    "none": lambda v: v,
    "gamma2.2": lambda v: v**2.2,
    "srgb": lambda v: np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4),
}


def frames(count, seed=0, height=12, width=16):
    return [picture(seed * 100 + i, height, width) for i in range(count)]


@pytest.fixture
def sequence(tmp_path):
    """A folder of 23 frames whose names sort otherwise than their numbers."""
    images = frames(23)
    for number, image in enumerate(images):
        write_rgb(tmp_path / "walk" / f"f{number}.png", image)
    return tmp_path / "walk", images


def prepare(tmp_path, *sources, **options):
    options = {"frames": 3, "jobs": 1, **options}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return main(["video", "--input", *map(str, sources), "--output", str(tmp_path / "out"), *words])


def written(tmp_path):
    """Name in the output → pixels."""
    out = tmp_path / "out"
    return {str(path.relative_to(out)): read_image(path) for path in sorted(out.rglob("*.png"))}


@pytest.mark.parametrize("response", list(TO_LIGHT))
def test_the_blurry_image_is_the_mean_of_the_light(sequence, tmp_path, response):
    """The formula solved for light: what is rounded to is the nearest of all 256 values."""
    folder, images = sequence
    assert prepare(tmp_path, folder, frames=7, response=response, split=1) == 0
    found = written(tmp_path)
    assert len(found) == 6
    to_light = TO_LIGHT[response]
    borders = to_light((np.arange(255) + 0.5) / 255)
    for centre in (3, 10, 17):
        group = np.stack(images[centre - 3 : centre + 4]) / 255
        expected = np.searchsorted(borders, to_light(group).mean(axis=0))
        name = f"walk-{centre:06d}.png"
        # A mean within float32's precision of a border may fall on either side.
        off = found[f"train/input/{name}"] != expected
        assert off.mean() < 0.001
        assert np.array_equal(found[f"train/target/{name}"], images[centre])


def test_pairs_take_the_counts_of_a_range_in_turn(sequence, tmp_path):
    assert prepare(tmp_path, sequence[0], frames="3-7", split=0) == 0
    centres = [1, 3 + 2, 8 + 3, 15 + 1, 18 + 2]
    assert list(written(tmp_path))[:5] == [f"test/input/walk-{c:06d}.png" for c in centres]


def test_a_short_stride_lets_pairs_overlap(sequence, tmp_path):
    folder, images = sequence
    assert prepare(tmp_path, folder, frames=5, stride=2, response="none", split=1) == 0
    found = written(tmp_path)
    assert len(found) == 2 * 10
    for centre in range(2, 21, 2):
        mean = np.stack(images[centre - 2 : centre + 3]).mean(axis=0)
        assert np.array_equal(found[f"train/input/walk-{centre:06d}.png"], np.rint(mean))


def write_video(path, count):
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 240, (32, 24))
    for image in frames(count, height=24, width=32):
        video.write(image)
    video.release()


def test_a_video_gives_what_its_frames_give(tmp_path):
    write_video(tmp_path / "clip.avi", 9)
    reader = cv2.VideoCapture(str(tmp_path / "clip.avi"))
    (tmp_path / "stills").mkdir()
    for number in range(9):
        cv2.imwrite(str(tmp_path / "stills" / f"{number}.png"), reader.read()[1])
    assert prepare(tmp_path, tmp_path / "clip.avi", tmp_path / "stills", split=1) == 0
    found = written(tmp_path)
    assert len(found) == 12
    for name, image in found.items():
        assert np.array_equal(image, found[name.replace("clip", "stills")])


def test_a_video_that_is_cut_short_is_named(tmp_path, capsys):
    path = tmp_path / "clip.avi"
    write_video(path, 30)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert prepare(tmp_path, path, split=1) == 1
    assert re.search(r"clip\.avi ends after \d+ frames of 30;", capsys.readouterr().err)
    assert 0 < len(written(tmp_path)) < 20


def test_16_bits_are_averaged_as_16_bits(tmp_path):
    for number, value in enumerate((1000, 1100, 1230)):
        path = tmp_path / "deep" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), np.full((8, 8, 3), value, np.uint16))
    assert prepare(tmp_path, path.parent, response="none", split=1) == 0
    found = written(tmp_path)
    assert found["train/input/deep-000001.png"].max() == round(1110 / 257)


def test_a_second_run_makes_what_is_missing_and_nothing_else(sequence, tmp_path, capsys):
    folder, _ = sequence
    assert prepare(tmp_path, folder, split=1) == 0
    first = written(tmp_path)
    for name in ("input/walk-000004.png", "target/walk-000007.png"):
        (tmp_path / "out/train" / name).unlink()
    kept = tmp_path / "out/train/input/walk-000010.png"
    before = kept.stat().st_mtime_ns
    assert prepare(tmp_path, folder, split=1) == 0
    assert "7 pairs (2 written, 5 there already)" in capsys.readouterr().out
    assert kept.stat().st_mtime_ns == before
    assert prepare(tmp_path, folder, split=1, response="none") == 1
    assert "input/walk-000001.png exists" in capsys.readouterr().err
    again = written(tmp_path)
    assert again.keys() == first.keys()
    assert all(np.array_equal(again[name], image) for name, image in first.items())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"frames": 5, "split": 1}, r"--frames.*walk-0"),
        ({"stride": 2, "split": 1}, r"--stride.*walk-0"),
        ({"split": 0}, r"train/.*--test"),
    ],
)
def test_pairs_of_other_settings_are_not_mixed_in(sequence, tmp_path, change, named):
    assert prepare(tmp_path, sequence[0], split=1) == 0
    first = written(tmp_path)
    with pytest.raises(UserError, match=named):
        prepare(tmp_path, sequence[0], **change)
    assert written(tmp_path).keys() == first.keys()


@pytest.mark.parametrize(
    ("count", "options", "tested"),
    [
        (5, {"split": 0.8}, ["s10"]),
        (5, {"split": 0.6}, ["s9", "s10"]),
        (2, {"split": 0.9}, ["s10"]),
        (2, {"split": 0.1}, ["s10"]),
        (1, {"split": 0.8}, []),
        (3, {"split": 0}, ["s8", "s9", "s10"]),
        (5, {"split": 0.8, "test": ["s7", "s6"]}, ["s6", "s7"]),
    ],
)
def test_a_sequence_is_in_one_part(tmp_path, count, options, tested):
    folders = [tmp_path / f"s{number}" for number in range(11 - count, 11)]
    for folder in folders:
        folder.mkdir()
    tasks = video_tasks(
        folders, tmp_path / "out", counts=(3,), stride=None, response="none", **options
    )
    assert [task.name for task in tasks if task.folder.name == "test"] == tested
    assert len(tasks) == count


def test_what_cannot_be_used_is_named_and_the_rest_is_made(sequence, tmp_path, capsys):
    folder, images = sequence
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    write_rgb(tmp_path / "short" / "0.png", images[0])
    (tmp_path / "empty").mkdir()
    shutil.copytree(folder, tmp_path / "uneven")
    write_rgb(tmp_path / "uneven" / "f4.png", picture(0, 8, 8))
    shutil.copytree(folder, tmp_path / "hurt")
    (tmp_path / "hurt" / "f5.png").write_bytes(b"\x89PNG")
    bad = [tmp_path / name for name in ("noise.mp4", "short", "empty", "uneven", "hurt")]
    assert prepare(tmp_path, *bad, folder, split=1) == 1
    problems = capsys.readouterr().err
    for place in ("noise.mp4", "short: 1 ", "empty", "uneven/f4.png: 8×8", "hurt/f5.png"):
        assert str(tmp_path / place) in problems
    names = [name for name in written(tmp_path) if "input" in name]
    assert len([name for name in names if "walk" in name]) == 7
    assert [name for name in names if "walk" not in name] == [
        f"train/input/{name}-000001.png" for name in ("hurt", "uneven")
    ], "what was read before the mistake"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"frames": 8}, "--frames 8"),
        ({"frames": "7-12"}, "--frames 7-12"),
        ({"frames": "13-7"}, "--frames 13-7"),
        ({"frames": 1}, "--frames 1"),
        ({"frames": "many"}, "--frames many"),
        ({"stride": 0}, "--stride: "),
        ({"frames": "7-13", "stride": 3}, "--stride 3"),
        ({"split": 1.5}, r"--split 1\.5"),
        ({"test": "wlak"}, "--test: .*'walk'"),
        ({"jobs": 0}, "--jobs: "),
    ],
)
def test_a_mistake_in_the_call(sequence, tmp_path, options, named):
    with pytest.raises(UserError, match=named):
        prepare(tmp_path, sequence[0], **options)
    assert not (tmp_path / "out").exists()


def test_sequences_that_are_missing_or_share_a_name(sequence, tmp_path):
    (tmp_path / "Walk.mp4").touch()
    for name in ("gone", "Walk.mp4"):
        with pytest.raises(UserError, match=rf"^--input: .*{name}"):
            prepare(tmp_path, sequence[0], tmp_path / name)


@pytest.mark.parametrize(("text", "stride"), [("7-13", 4), ("3", 1), ("3-9", None)])
def test_no_two_pairs_have_one_centre(tmp_path, text, stride):
    counts = frame_counts(text, stride)
    task = VideoTask("clip", tmp_path, tmp_path, counts, stride, "none")
    exposures = task.exposures()
    names = [task.files(next(exposures))[0].name for _ in range(40)]
    assert names == sorted(set(names))


def test_frames_without_pairs_get_advice_that_works(sequence, tmp_path):
    folder, _ = sequence
    with pytest.raises(UserError, match="has no pairs") as refused:
        find_pairs(folder)
    command = re.search(r"hidiff (prepare video .*?) makes", str(refused.value))[1].split()
    places = {"FOLDER": str(folder), "DIR": str(tmp_path / "mine")}
    assert main([places.get(word, word) for word in command[1:]]) == 0
    assert find_pairs(tmp_path / "mine").pairs
