"""The quickstart's data set."""

import dataclasses

import numpy as np
import pytest

from hidiff.data.image import read_image
from hidiff.data.pairs import find_pairs
from hidiff.prepare import quickstart
from hidiff.prepare.quickstart import make_quickstart
from hidiff.utils.errors import UserError


@pytest.fixture
def small(monkeypatch):
    """Two tiny pairs in place of the whole recipe."""
    make = quickstart.Photograph
    recipe = {
        "train": (make("coins.png", ((24, 30),), (0.2, 0.3)),),
        "test": (make("chelsea.png", ((25, 33),), (0.2, 0.3)),),
    }
    monkeypatch.setattr(quickstart, "PHOTOGRAPHS", recipe)


def contents(folder):
    """Every file's bytes by relative name."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_whole_data_set(tmp_path, monkeypatch):
    """All test pairs, and the first training pair of each photograph."""
    first = [
        dataclasses.replace(photograph, sizes=photograph.sizes[:1])
        for photograph in quickstart.PHOTOGRAPHS["train"]
    ]
    monkeypatch.setitem(quickstart.PHOTOGRAPHS, "train", first)
    output = tmp_path / "quickstart"
    assert make_quickstart(output)
    sources, errors, sizes = {}, [], set()
    for split in ("train", "test"):
        pairs = find_pairs(output / split).pairs
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
    assert not make_quickstart(output)
    assert [path.name for path in tmp_path.iterdir()] == ["quickstart"]


@pytest.mark.usefixtures("small")
def test_bytes_depend_on_the_seed_alone(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert make_quickstart(tmp_path / name, seed)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert len(a) == 5
    assert [name for name in a if a[name] == c[name]] == []


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("change", ["missing", "altered", "seed", "record", "foreign"])
def test_what_is_not_this_data_set_is_set_aside_and_made_anew(tmp_path, change):
    folder = tmp_path / "set"
    victim = folder / "test/target/chelsea-1.png"
    make_quickstart(folder)
    whole = contents(folder)
    if change == "missing":
        victim.unlink()
    elif change == "altered":
        victim.write_bytes(b"damaged")
    elif change == "record":
        (folder / quickstart.RECORD).write_text("{")
    elif change == "foreign":
        (folder / quickstart.RECORD).unlink()
        victim.with_name("mine.png").write_bytes(b"somebody's file")
    before = contents(folder)
    seed = 1 if change == "seed" else 0
    assert make_quickstart(folder, seed)
    assert not make_quickstart(folder, seed)
    assert (contents(folder) == whole) == (change != "seed")
    (archived,) = (path for path in tmp_path.iterdir() if path != folder)
    assert contents(archived) == before


@pytest.mark.usefixtures("small")
def test_an_interruption_leaves_the_old_state(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    make_quickstart(folder)
    before = contents(folder)

    def interrupted(photograph, size, scales, rng):
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "make_pair", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_quickstart(folder, 1)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.usefixtures("small")
def test_mistakes_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="file"):
        make_quickstart(tmp_path / "file" / "set")
    monkeypatch.setattr(quickstart.skimage, "__file__", str(tmp_path / "skimage/__init__.py"))
    with pytest.raises(UserError, match=r"coins\.png"):
        make_quickstart(tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
