"""The simulated camera shake, measured on dots and stripes, and the quickstart's data set."""

import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from hidiff.data.camera_shake import (
    add_sensor_noise,
    camera_path,
    expose,
    linear_to_srgb,
    shake,
    smooth_path,
    srgb_to_linear,
)
from hidiff.data.image import read_image
from hidiff.data.pairs import pairs_from_folders
from hidiff.errors import UserError

SEEDS = range(5)


def random_image(height: int = 40, width: int = 52) -> np.ndarray:
    return np.random.default_rng(9).integers(0, 256, (height, width, 3), dtype=np.uint8)


def path_of(seed: int, size=(161, 161), translation=7.0, rotation=1.0, zoom=0.01) -> np.ndarray:
    return camera_path(
        np.random.default_rng(seed),
        size,
        frames=33,
        translation=translation,
        rotation=rotation,
        zoom=zoom,
    )


def dots(positions: list[tuple[int, int]], size: int = 161) -> np.ndarray:
    """Linear-light image, black but for a bright soft dot at every (x, y)."""
    y, x = np.mgrid[:size, :size]
    image = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / 4.5) for px, py in positions)
    return np.repeat(image[..., None], 3, axis=2).astype(np.float32)


def centre_and_spread(image: np.ndarray, position: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Centre of gravity (x, y) and variance in px² of the light within 18 px of a position."""
    x0, y0 = position[0] - 18, position[1] - 18
    light = image[y0 : y0 + 37, x0 : x0 + 37, 0].astype(np.float64)
    y, x = np.mgrid[y0 : y0 + 37, x0 : x0 + 37]
    centre = np.array([(light * x).sum(), (light * y).sum()]) / light.sum()
    return centre, (light * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2)).sum() / light.sum()


GRID = [(x, y) for x in (24, 80, 136) for y in (24, 80, 136)]


def test_srgb_curve_has_the_standards_values():
    encoded = np.array([0.0, 0.04045, 0.5, 1.0])
    linear = np.array([0.0, 0.0031308, 0.21404114, 1.0])
    np.testing.assert_allclose(srgb_to_linear(encoded), linear, atol=1e-7)
    np.testing.assert_allclose(linear_to_srgb(linear), encoded, atol=1e-6)
    np.testing.assert_allclose(linear_to_srgb(np.array([-0.1, 1.2])), [0.0, 1.0], atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_path_is_centred_smooth_and_of_extent_one(seed):
    path = smooth_path(np.random.default_rng(seed), 65, 2)
    np.testing.assert_allclose(path.mean(axis=0), 0, atol=1e-12)
    distances = np.sqrt(((path[:, None] - path[None]) ** 2).sum(-1))
    assert distances.max() == pytest.approx(1.0)
    speed, acceleration = np.diff(path, axis=0), np.diff(path, n=2, axis=0)
    # In a random walk the steps are independent and this ratio is above 1.
    assert np.abs(acceleration).max() < 0.25 * np.abs(speed).max()


def test_one_frame_stays_at_the_origin():
    np.testing.assert_array_equal(smooth_path(np.random.default_rng(0), 1, 2), [[0, 0]])
    path = camera_path(
        np.random.default_rng(0), (20, 30), frames=1, translation=9.0, rotation=5.0, zoom=0.1
    )
    np.testing.assert_allclose(path, [[[1, 0, 0], [0, 1, 0]]], atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_point_is_displaced_on_average(seed):
    path = path_of(seed, rotation=8.0, zoom=0.1)
    for point in [(0, 0, 1), (160, 0, 1), (31, 77, 1), (160, 160, 1)]:
        seen = path @ np.array(point, float)
        np.testing.assert_allclose(seen.mean(axis=0), point[:2], atol=1e-9)
        assert np.ptp(seen, axis=0).max() > 1


def test_extents_have_the_documented_units():
    seen = path_of(1, translation=7.0, rotation=0, zoom=0) @ np.array([40.0, 90.0, 1.0])
    assert np.linalg.norm(seen[:, None] - seen[None], axis=-1).max() == pytest.approx(7.0)

    turned = path_of(1, translation=0, rotation=2.0, zoom=0)
    degrees = np.rad2deg(np.arctan2(turned[:, 1, 0], turned[:, 0, 0]))
    assert np.ptp(degrees) == pytest.approx(2.0, rel=1e-3)

    zoomed = path_of(1, translation=0, rotation=0, zoom=0.05)
    assert np.ptp(zoomed[:, 0, 0]) == pytest.approx(0.05)
    assert np.abs(zoomed[:, 0, 1]).max() == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_dots_keep_their_place_and_their_light(seed):
    sharp = dots(GRID)
    blurry = expose(sharp, path_of(seed))
    assert blurry.sum() == pytest.approx(sharp.sum(), rel=2e-3)
    for position in GRID:
        centre, _ = centre_and_spread(blurry, position)
        np.testing.assert_allclose(centre, position, atol=0.1)


def test_blur_varies_over_the_image_when_the_camera_turns():
    sharp = dots(GRID)
    before = centre_and_spread(sharp, GRID[0])[1]

    def added_spread(**extents: float) -> np.ndarray:
        blurry = expose(sharp, path_of(3, **extents))
        return np.array([centre_and_spread(blurry, position)[1] - before for position in GRID])

    shifted = added_spread(translation=7.0, rotation=0, zoom=0)
    assert shifted.min() > 2
    assert shifted.max() / shifted.min() < 1.05
    turned = added_spread(translation=7.0, rotation=3.0, zoom=0)
    assert turned.max() / turned.min() > 1.5


def test_light_is_averaged_before_the_gamma_curve():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    rng = np.random.default_rng(2)
    blurry, _ = shake(stripes, rng=rng, strength=2.0, rotation=0, zoom=0)
    # Half the light is 0.5, which sRGB encodes as 188; the mean of the pixel values is 127.5.
    assert blurry.mean() == pytest.approx(188, abs=2)


def test_noise_has_the_stated_variance():
    rng = np.random.default_rng(0)
    flat = np.full((200, 200), 0.25)
    noise = add_sensor_noise(flat, rng, full_well=1000.0, read_noise=10.0) - flat
    # 250 electrons of shot variance and 100 of read variance, in units of the full well.
    assert noise.std() == pytest.approx(np.sqrt(350) / 1000, rel=0.02)
    assert abs(noise.mean()) < 5e-4


def test_shake_depends_on_nothing_but_the_generator():
    image = random_image()
    before = image.copy()
    blurry, sharp = shake(image, rng=np.random.default_rng(4))
    assert (blurry.dtype, blurry.shape) == (np.uint8, image.shape)
    np.testing.assert_array_equal(sharp, before)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(blurry, shake(image, rng=np.random.default_rng(4))[0])
    assert (blurry != shake(image, rng=np.random.default_rng(5))[0]).mean() > 0.5


def test_zero_strength_leaves_only_noise():
    image = random_image()
    error = shake(image, rng=np.random.default_rng(0), strength=0.0)[0] - image.astype(float)
    assert abs(error.mean()) < 0.1
    assert 0 < error.std() < 2
    linear = srgb_to_linear(image / 255.0).astype(np.float32)
    still = path_of(0, image.shape[:2], translation=0, rotation=0, zoom=0)
    np.testing.assert_allclose(expose(linear, still), linear, atol=1e-6)


# The quickstart's data set.


@pytest.fixture(scope="module")
def script(request):
    path = request.config.rootpath / "scripts" / "make_quickstart_data.py"
    spec = importlib.util.spec_from_file_location("make_quickstart_data", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def small(script, monkeypatch):
    """The script with two tiny pairs instead of the whole recipe."""
    make = script.Photograph
    recipe = {
        "train": (make("coins.png", ((24, 30),), (0.2, 0.3)),),
        "test": (make("chelsea.png", ((25, 33),), (0.2, 0.3)),),
    }
    monkeypatch.setattr(script, "PHOTOGRAPHS", recipe)
    return script


def contents(folder):
    """Every file's bytes and time of change, by relative name."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def pixels(folder):
    return {name: data for name, (data, _) in contents(folder).items() if name.endswith(".png")}


def test_the_whole_data_set(script, root, tmp_path):
    output = tmp_path / "quickstart"
    command = [sys.executable, str(root / "scripts" / "make_quickstart_data.py")]
    run = subprocess.run(
        [*command, "--output", "quickstart"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["quickstart"]
    sources, errors, sizes = {}, [], set()
    for split in ("train", "test"):
        pairs = pairs_from_folders(
            str(output / split / "input"), str(output / split / "target"), "{}", split
        )
        sources[split] = {pair.name.rsplit("-", 1)[0].split("_")[0] for pair in pairs}
        for pair in pairs:
            blurry, sharp = read_image(pair.lq), read_image(pair.gt)
            assert blurry.shape == sharp.shape
            assert all(256 <= side <= 400 for side in sharp.shape[:2])
            if split == "test":
                sizes.add(sharp.shape[:2])
                errors.append(((blurry - sharp.astype(float)) ** 2).mean())
    # The two motorcycle pictures count as one here: they show the same scene.
    assert not sources["train"] & sources["test"]
    assert len(sources["test"]) >= 3
    assert any(height % 8 and width % 8 for height, width in sizes)
    assert 24 < np.mean(10 * np.log10(255**2 / np.array(errors))) < 28

    before = contents(output)
    assert not script.make_data_set(output, 0)
    assert contents(output) == before
    # A copy whose bytes agree with the recorded digests is complete as well, whatever its times.
    shutil.copytree(output, tmp_path / "copy")
    assert not script.make_data_set(tmp_path / "copy", 0)


def test_bytes_depend_on_the_seed_alone(small, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert small.make_data_set(tmp_path / name, seed)
    assert len(pixels(tmp_path / "a")) == 4
    assert pixels(tmp_path / "a") == pixels(tmp_path / "b")
    changed = [n for n, data in pixels(tmp_path / "c").items() if data != pixels(tmp_path / "a")[n]]
    assert len(changed) == 4


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_missing_and_altered_files_are_made_again(small, tmp_path, capsys, damage):
    folder = tmp_path / "set"
    small.main(["--output", str(folder)])
    assert "made 1 training and 1 test pairs" in capsys.readouterr().out
    whole = pixels(folder)
    victim = folder / "test" / "target" / "chelsea-1.png"
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(b"damaged")
    small.main(["--output", str(folder)])
    assert "made" in capsys.readouterr().out
    assert pixels(folder) == whole
    small.main(["--output", str(folder)])
    assert "nothing to do" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_another_seed_replaces_the_files(small, tmp_path):
    folder = tmp_path / "set"
    small.make_data_set(folder, 0)
    before = pixels(folder)
    assert small.make_data_set(folder, 1)
    assert pixels(folder).keys() == before.keys()
    assert pixels(folder) != before


@pytest.mark.parametrize("made_before", [False, True])
def test_foreign_files_are_never_touched(small, tmp_path, made_before):
    folder = tmp_path / "set"
    if made_before:
        small.make_data_set(folder, 0)
    (folder / "train" / "input").mkdir(parents=True, exist_ok=True)
    (folder / "train" / "input" / "mine.png").write_bytes(b"a person's file")
    before = contents(folder)
    with pytest.raises(UserError, match=r"mine\.png is not on the record"):
        small.make_data_set(folder, 1)
    assert contents(folder) == before
    # With everything in place there is nothing to replace, so a stray file is no obstacle.
    if made_before:
        assert not small.make_data_set(folder, 0)


def test_a_file_that_turns_up_meanwhile_is_kept(small, tmp_path, monkeypatch):
    folder = tmp_path / "set"
    small.make_data_set(folder, 0)
    make_images = small.make_images

    def interfered(*arguments):
        make_images(*arguments)
        (folder / "notes.txt").write_text("mine", encoding="utf-8")

    monkeypatch.setattr(small, "make_images", interfered)
    with pytest.raises(UserError, match=r"notes\.txt"):
        small.make_data_set(folder, 1)
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert len(pixels(folder)) == 4


def test_an_interruption_leaves_the_old_state(small, tmp_path, monkeypatch):
    folder = tmp_path / "set"
    small.make_data_set(folder, 0)
    before = contents(folder)

    def interrupted(photograph, size, scales, rng):
        raise KeyboardInterrupt

    monkeypatch.setattr(small, "make_pair", interrupted)
    with pytest.raises(SystemExit) as stop:
        small.main(["--output", str(folder), "--seed", "1"])
    assert stop.value.code == 130
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    "record",
    [
        "{",
        "[]",
        '{"recipe": 1, "seed": 0}',
        '{"recipe": 1, "seed": 0, "files": ["train/input/coins-1.png"]}',
        json.dumps({"recipe": 1, "seed": 0, "files": {"../../elsewhere.png": "00"}}),
    ],
)
def test_a_damaged_record_stops_the_program(small, tmp_path, record):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "made_with.json").write_text(record, encoding="utf-8")
    with pytest.raises(UserError, match=r"made_with\.json is damaged"):
        small.make_data_set(folder, 0)
    assert [path.name for path in folder.iterdir()] == ["made_with.json"]


def test_mistakes_on_the_command_line(small, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for arguments, message in (
        (["--output", str(tmp_path / "file")], "is a file; name a folder"),
        (["--output", str(tmp_path / "file" / "set")], "cannot be made"),
        (["--output", str(tmp_path / "set"), "--seed", "-1"], "-1 is negative"),
    ):
        with pytest.raises(SystemExit) as stop:
            small.main(arguments)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr(small.skimage, "__file__", str(tmp_path / "skimage" / "__init__.py"))
    with pytest.raises(UserError, match=r"coins\.png is missing: scikit-image"):
        small.make_data_set(tmp_path / "set", 0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
