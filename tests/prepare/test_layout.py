"""From tiny imitations of the downloads to the layout."""

import errno
import os
from pathlib import Path

import pytest

from hidiff.cli import call
from hidiff.prepare.distributions import place_download
from hidiff.prepare.layout import LAYOUT, LayoutEntry
from hidiff.utils.errors import UserError

# The content of a file says where it comes from; nothing here decodes an image.


def write(path: Path, text: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if text is not None else "/".join(path.parts[-4:]))


@pytest.fixture
def gopro(tmp_path):
    for part, sequence in (("train", "G1"), ("train", "G2"), ("test", "G3")):
        for kind in ("blur", "blur_gamma", "sharp"):
            for frame in ("000001", "000002"):
                write(tmp_path / "dl" / "GOPRO" / part / sequence / kind / f"{frame}.png")
    return tmp_path / "dl" / "GOPRO"


@pytest.fixture
def hide(tmp_path):
    source = tmp_path / "HIDE_dataset"
    write(source / "test/test-close-ups/1fromA.png")
    write(source / "test/test-long-shot/2fromA.png")
    for name in ("1fromA", "2fromA", "a_training_image"):
        write(source / "GT" / f"{name}.png")
    return source


J_FOLDER = "RealBlur-J_ECC_IMCORR_centroid_itensity_ref"
R_FOLDER = "RealBlur-R_BM3D_ECC_IMCORR_centroid_itensity_ref"


@pytest.fixture
def realblur(tmp_path):
    source = tmp_path / "RealBlur"
    for subset, folder in (("J", J_FOLDER), ("R", R_FOLDER)):
        lines = []
        for pair in ("scene001/{0}/{0}_1.png", "scene001/{0}/{0}_2.png", "scene002/{0}/{0}_1.png"):
            gt, blur = (f"{folder}/{pair.format(side)}" for side in ("gt", "blur"))
            write(source / gt)
            write(source / blur)
            lines.append(f"{gt} {blur} \n")
        write(source / f"RealBlur_{subset}_train_list.txt", "".join(lines[:2]))
        write(source / f"RealBlur_{subset}_test_list.txt", lines[2])
    return source


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


def run(command, source, data, *options):
    call("prepare", command, "--source", str(source), "--root", str(data), *options)


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_gopro(gopro, data, capsys, monkeypatch):
    monkeypatch.setitem(LAYOUT, "GoPro/train", LayoutEntry("GoPro/train", 4, "x"))
    monkeypatch.setitem(LAYOUT, "test/GoPro", LayoutEntry("test/GoPro", 1, "x"))
    run("gopro", gopro, data)
    assert content(data / "GoPro/train/input") == {
        f"{scene}-{frame}.png": f"train/{scene}/blur/{frame}.png"
        for scene in ("G1", "G2")
        for frame in ("000001", "000002")
    }
    for folder in (data / "GoPro/test/target", data / "test/GoPro/target"):
        assert content(folder) == {
            f"G3-{frame}.png": f"test/G3/sharp/{frame}.png" for frame in ("000001", "000002")
        }
    assert not any("gamma" in text.decode() for text in files(data).values())
    output = capsys.readouterr().out
    assert "16 files placed, 0 there already" in output
    assert "GoPro/train: 4 pairs, as the benchmark has" in output
    assert "GoPro/test: incomplete: 2 pairs, the benchmark has 1111" in output
    assert "test/GoPro: too many: 2 pairs, the benchmark has 1" in output


def test_links_are_absolute_outside_the_root_and_relative_within(gopro, data):
    run("gopro", gopro, data)
    link = (data / "GoPro/train/input/G1-000001.png").readlink()
    assert link == gopro / "train/G1/blur/000001.png"
    second = (data / "test/GoPro/input/G3-000001.png").readlink()
    assert second == Path("../../../GoPro/test/input/G3-000001.png")

    run("gopro", gopro, gopro.parent)
    link = (gopro.parent / "GoPro/train/input/G1-000001.png").readlink()
    assert link == Path("../../../GOPRO/train/G1/blur/000001.png")


@pytest.mark.parametrize("links_work", [True, False])
def test_copies_outlive_the_download(gopro, data, tmp_path, monkeypatch, capsys, links_work):
    def refuse(self, target, target_is_directory=False):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(self))

    if not links_work:
        monkeypatch.setattr(Path, "symlink_to", refuse)
    run("gopro", gopro, data, *(["--copy"] if links_work else []))
    before = files(data)
    assert len(before) == 16
    gopro.rename(tmp_path / "gone")
    assert files(data) == before
    assert not (data / "GoPro/train/input/G1-000001.png").is_symlink()
    assert (data / "test/GoPro/input/G3-000001.png").is_symlink() == links_work
    assert capsys.readouterr().out.count("does not take links") == (not links_work)


@pytest.mark.parametrize("mode", [[], ["--copy"]])
def test_a_second_run_adds_what_is_missing(gopro, data, capsys, mode):
    run("gopro", gopro, data, *mode)
    write(gopro / "train/G1/blur/000003.png")
    write(gopro / "train/G1/sharp/000003.png")
    capsys.readouterr()
    run("gopro", gopro, data, *mode)
    assert "2 files placed, 16 there already" in capsys.readouterr().out


def test_nothing_is_overwritten(gopro, data, tmp_path):
    write(data / "GoPro/train/target/G2-000002.png", "mine")
    with pytest.raises(UserError, match=r"G2-000002\.png"):
        run("gopro", gopro, data)
    assert files(data) == {"GoPro/train/target/G2-000002.png": b"mine"}, "something was changed"
    (data / "GoPro/train/target/G2-000002.png").unlink()
    run("gopro", gopro, data)
    with pytest.raises(UserError, match="broken links"):
        run("gopro", gopro.rename(tmp_path / "moved"), data)


def test_gopro_that_is_incomplete(gopro, data, capsys):
    (gopro / "train/G2/sharp/000002.png").unlink()
    with pytest.raises(UserError, match=r"^--source: .*blurry without sharp .*G2/blur/000002"):
        run("gopro", gopro, data)
    (gopro / "train/G2/blur").rename(gopro / "train/G2/elsewhere")
    with pytest.raises(UserError, match=r"^--source: .*G2"):
        run("gopro", gopro, data)
    assert not data.exists()
    (gopro / "train").rename(gopro / "elsewhere")
    run("gopro", gopro, data)
    assert "train has no sequences" in capsys.readouterr().out
    assert not (data / "GoPro/train").exists()


@pytest.mark.parametrize("wrong", ["..", "../..", "train", "train/G1"])
def test_gopro_source_one_level_off(gopro, data, wrong):
    with pytest.raises(UserError, match="did you mean --source") as error:
        run("gopro", gopro / wrong, data)
    suggested = str(error.value).rpartition("--source ")[2].removesuffix("?")
    assert Path(suggested).resolve() == gopro


def test_what_is_no_source(data, tmp_path):
    write(tmp_path / "GoPro/train/input/1.png")
    with pytest.raises(UserError, match="flat layout already"):
        run("gopro", tmp_path / "GoPro", data)
    write(tmp_path / "GOPRO_Large.zip", "PK")
    for name in ("GOPRO_Large.zip", "nowhere"):
        with pytest.raises(UserError, match=rf"^--source: {tmp_path / name}"):
            run("gopro", tmp_path / name, data)


@pytest.mark.parametrize("flat", [False, True])
def test_hide(hide, data, capsys, flat):
    expected = {
        "1fromA.png": "HIDE_dataset/test/test-close-ups/1fromA.png",
        "2fromA.png": "HIDE_dataset/test/test-long-shot/2fromA.png",
    }
    if flat:
        for path in list((hide / "test").rglob("*.png")):
            path.rename(hide / "test" / path.name)
        for folder in ("test-close-ups", "test-long-shot"):
            (hide / "test" / folder).rmdir()
    run("hide", hide, data)
    assert content(data / "test/HIDE/input") == expected
    assert sorted(content(data / "test/HIDE/target")) == ["1fromA.png", "2fromA.png"]
    assert "incomplete: 2 pairs, the benchmark has 2025" in capsys.readouterr().out


def test_hide_mistakes(hide, data):
    with pytest.raises(UserError, match="did you mean"):
        run("hide", hide.parent, data)
    twice = hide / "test/test-long-shot/1fromA.png"
    write(twice)
    with pytest.raises(UserError, match=str(twice)):
        run("hide", hide, data)
    twice.unlink()
    (hide / "GT/2fromA.png").unlink()
    with pytest.raises(UserError, match="2fromA"):
        run("hide", hide, data)


def test_realblur(realblur, data, capsys):
    run("realblur", realblur, data)
    assert content(data / "RealBlur/train/RealBlur_J/input") == {
        f"scene001-{n}.png": f"{J_FOLDER}/scene001/blur/blur_{n}.png" for n in (1, 2)
    }
    assert content(data / "RealBlur/train/RealBlur_R/target") == {
        f"scene001-{n}.png": f"{R_FOLDER}/scene001/gt/gt_{n}.png" for n in (1, 2)
    }
    for folder in ("RealBlur/test/RealBlur_R", "test/RealBlur_R"):
        for side, name in (("input", "blur"), ("target", "gt")):
            assert content(data / folder / side) == {
                "scene002-1.png": f"{R_FOLDER}/scene002/{name}/{name}_1.png"
            }
    output = capsys.readouterr().out
    assert "RealBlur_J: incomplete: 2 pairs, the benchmark has 3758" in output
    assert "test/RealBlur_R: incomplete: 1 pairs, the benchmark has 980" in output


def test_realblur_list_relative_to_a_parent(realblur, data):
    path = realblur / "RealBlur_J_test_list.txt"
    path.write_text(path.read_text().replace(J_FOLDER, f"RealBlur/{J_FOLDER}"))
    run("realblur", realblur, data)
    assert sorted(content(data / "test/RealBlur_J/input")) == ["scene002-1.png"]


def test_realblur_that_is_incomplete(realblur, data, capsys):
    with pytest.raises(UserError, match=r"RealBlur_J_train_list\.txt.*did you mean"):
        run("realblur", realblur / J_FOLDER, data)
    lost = realblur / J_FOLDER / "scene001/gt/gt_2.png"
    lost.rename(realblur / "lost.png")
    with pytest.raises(UserError, match=r"1 files of .*gt_2\.png"):
        run("realblur", realblur, data)
    assert not data.exists()
    (realblur / R_FOLDER).rename(realblur / "elsewhere")
    (realblur / "RealBlur_J_train_list.txt").unlink()
    run("realblur", realblur, data)
    output = capsys.readouterr().out
    assert "RealBlur_J_train_list.txt is not there" in output
    assert output.count("left out") == 2
    assert not (data / "test/RealBlur_R").exists()
    (realblur / J_FOLDER).rename(realblur / "elsewhere2")
    with pytest.raises(UserError):
        run("realblur", realblur, data)


GT, BLUR = "scene001/gt/gt_1.png", "scene001/blur/blur_1.png"


@pytest.mark.parametrize(
    "line",
    [
        f"../{GT} ../{BLUR}",
        f"a/../../{GT} {BLUR}",
        f"/{GT} /{BLUR}",
        f"C:\\{GT} C:\\{BLUR}",
        f"C:/{GT} C:/{BLUR}",
        f"{GT} scene001\\blur\\blur_1.png",
        f"a\\{GT} a\\{BLUR}",
        "gt_1.png blur_1.png",
        f"scene001/gt/gt.png {BLUR}",
        GT,
        f"{GT} {BLUR} more",
        f"{BLUR} {GT}",
        f"{GT} scene001/blur/blur_2.png",
        f"{GT} scene002/blur/blur_1.png",
        f"RealBlur-R_x/{GT} RealBlur-R_x/{BLUR}",
        f"{GT} {BLUR}\nother/{GT} other/{BLUR}",
    ],
)
def test_realblur_lines_that_are_refused(realblur, data, line):
    path = realblur / "RealBlur_J_test_list.txt"
    path.write_text(f"\n{line}\n")
    number = line.count("\n") + 2
    with pytest.raises(UserError, match=rf"{path}, line {number}: "):
        run("realblur", realblur, data)
    assert not data.exists()
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=rf"^--source: {path} "):
        run("realblur", realblur, data)


@pytest.mark.parametrize("in_layout", [False, True])
def test_an_archive_is_placed_whatever_lies_above_its_data(gopro, data, tmp_path, in_layout):
    if in_layout:
        for side in ("input", "target"):
            write(tmp_path / f"dl/x/datasets/test/HIDE/{side}/1.png")
    first, *lines = place_download(tmp_path / "dl", data)
    assert first.startswith("2 files" if in_layout else "16 files")
    names = ["test/HIDE"] if in_layout else ["GoPro/train", "GoPro/test", "test/GoPro"]
    assert [line.split(": ")[0] for line in lines] == [str(data / name) for name in names]
    assert not any(path.is_symlink() for path in (data / names[0]).rglob("*"))
    with pytest.raises(UserError, match="GoPro/train"):
        place_download(data / names[0], data)
