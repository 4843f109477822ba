"""Finding pairs: every layout that is known, lists, templates, and what is said of the rest."""

import unicodedata
from pathlib import Path

import pytest
from small_data import picture, write_rgb

from hidiff.data import find_pairs
from hidiff.utils.errors import UserError


def make(root: Path, *places: str) -> Path:
    for number, place in enumerate(places):
        write_rgb(root / place, picture(number, 4, 4))
    return root


def found(root: Path, **options) -> list[tuple[str, str, str, str]]:
    """Name, scene, and the two files below the root, of every pair."""
    if not options.keys() & {"blurry", "lists"}:
        options["root"] = root
    pairs = find_pairs(**options).pairs
    return [
        (p.name, p.scene, *(str(Path(str(side)).relative_to(root)) for side in (p.lq, p.gt)))
        for p in pairs
    ]


@pytest.mark.parametrize(
    ("lq", "gt"),
    [
        ("input", "target"), ("Blur", "Sharp"), ("blurry", "sharp"), ("LQ", "GT"),
        ("input", "GT"), ("train_blur", "train_sharp"),
    ],
)  # fmt: skip
def test_folders_beside_each_other(tmp_path, lq, gt):
    root = make(tmp_path, f"{lq}/a-1.png", f"{gt}/a-1.jpg")
    assert found(root) == [("a-1", "a", f"{lq}/a-1.png", f"{gt}/a-1.jpg")]


def test_scenes_above_and_below_the_sides(tmp_path):
    sides = ("blur", "sharp", "blur_gamma")
    root = make(tmp_path / "above", *(f"s{n}/{side}/0.png" for n in (1, 2) for side in sides))
    assert [pair[:2] for pair in found(root)] == [("s1-0", "s1"), ("s2-0", "s2")]
    sides = ("test/input", "test/GT")
    root = make(tmp_path / "below", *(f"{side}/s{n}/0.png" for n in (1, 2) for side in sides))
    expected = [("test-s1-0", "s1"), ("test-s2-0", "s2")]
    assert {pair.part for pair in find_pairs(root).pairs} == {"test"}
    assert [pair[:2] for pair in found(root)] == expected
    two = {"blurry": root / "test/input", "sharp": root / "test/GT"}
    assert [pair[:2] for pair in found(root, **two)] == [("s1-0", "s1"), ("s2-0", "s2")]


def test_both_sides_in_one_folder(tmp_path):
    root = make(tmp_path, "07_blur.png", "07_sharp.png", "s/08_blur.png", "s/08_sharp.png")
    assert found(root) == [("07_blur", "", "07_blur.png", "07_sharp.png")]
    both = {"blurry": root, "sharp": root}
    assert len(find_pairs(**both).pairs) == 1
    assert "{}_blur|{}_sharp" in find_pairs(root).notices[-1]
    root = make(tmp_path / "own", "b1.png", "g1.png", "b2.png", "g2.png", "other.png")
    with pytest.raises(UserError, match="filename_tmpl.*meta_info_file"):
        find_pairs(root)
    pairs = found(root, template="b{}|g{}")
    assert [pair[2:] for pair in pairs] == [("b1.png", "g1.png"), ("b2.png", "g2.png")]


@pytest.mark.parametrize(
    ("lq", "gt", "template"),
    [("{}_blur", "{}", "{}_blur"), ("blur_{}", "gt_{}", "blur_{}|gt_{}"),
     ("x_{}_b", "x_{}_s", "{}_b|{}_s")],
)  # fmt: skip
def test_a_constant_difference_of_names_is_told_and_can_be_set(tmp_path, lq, gt, template):
    places = [f"input/{lq.format(i)}.png" for i in (1, 12)]
    root = make(tmp_path, *places, *(f"target/{gt.format(i)}.png" for i in (1, 12)))
    with pytest.raises(UserError, match="filename_tmpl") as caught:
        find_pairs(root)
    assert f"'{template}'" in str(caught.value)
    assert len(found(root, template=template)) == 2


def test_missing_counterparts_are_counted(tmp_path):
    root = make(tmp_path, "input/a.png", "input/b.png", "target/a.png", "target/c.png")
    with pytest.raises(UserError, match=r"1 sharp without blurry \(.*c\).*\(.*b\)"):
        find_pairs(root)
    partial = find_pairs(root, complete=False)
    assert [len(x) for x in (partial.pairs, partial.no_blurry, partial.no_sharp)] == [1, 1, 1]


def test_names_in_two_unicode_forms_are_one(tmp_path):
    names = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    root = make(tmp_path, f"input/{names[0]}.png", f"target/{names[1]}.png")
    assert len(found(root)) == 1
    (root / "list.txt").write_text(f"target/{names[0]}.png input/{names[1]}.png\n")
    assert len(found(root, lists=root / "list.txt", blurry=root, sharp=root)) == 1


@pytest.mark.parametrize(
    ("line", "pair"),
    [
        ("a.png", ("b/a.png", "s/a.png")),
        ("a.png (40,48,3)", ("b/a.png", "s/a.png")),
        ("a.png (40,48,3) 1", ("b/a.png", "s/a.png")),
        ("IMG (1).png", ("b/IMG (1).png", "s/IMG (1).png")),
        ("IMG (1).png (40,48,3)", ("b/IMG (1).png", "s/IMG (1).png")),
        ("a.png IMG (1).png", ("b/IMG (1).png", "s/a.png")),
        ("IMG (1).png\ta.png", ("b/a.png", "s/IMG (1).png")),
        ("IMG (1).png a.png", ("b/a.png", "s/IMG (1).png")),
    ],
)
def test_lines_of_lists(tmp_path, line, pair):
    make(tmp_path, *(f"{side}/{name}.png" for side in "bs" for name in ("a", "IMG (1)")))
    (tmp_path / "list.txt").write_text(f"\n{line}\n", encoding="utf-8-sig")
    sides = {"blurry": tmp_path / "b", "sharp": tmp_path / "s"}
    assert [p[2:] for p in found(tmp_path, lists=tmp_path / "list.txt", **sides)] == [pair]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("scene-009.png", "scene-009"),
        ("", "names no image"),
        ("a.png\na.png", "twice"),
        ("a b c.png", "line 1"),
        ("s/../s/a.png s/a.png", "one file"),
    ],
)
def test_wrong_lists_are_named(tmp_path, text, words):
    make(tmp_path, "b/a.png", "s/a.png")
    (tmp_path / "list.txt").write_text(text)
    roots = (tmp_path, tmp_path) if "/" in text else (tmp_path / "b", tmp_path / "s")
    with pytest.raises(UserError, match=rf"--data\S*: .*{words}"):
        find_pairs(blurry=roots[0], sharp=roots[1], lists=tmp_path / "list.txt")
