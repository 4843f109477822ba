"""Reading option files: YAML and what it may hold, `base:` and --force_yml."""

import os
import re
from pathlib import Path

import pytest

from hidiff import UserError
from hidiff.options import load_options
from hidiff.options.yaml_file import MAX_BYTES, apply_overrides, read_yaml

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def written(tmp_path):
    """Writes files named by keyword; gives the path of the first one."""

    def write(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.yml").write_text(text)
        return tmp_path / f"{next(iter(texts))}.yml"

    return write


def test_the_shipped_files_are_found_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load_options("options/test/GoPro.yml").name == "test_HI_Diff_GoPro"
    (tmp_path / "options/test").mkdir(parents=True)
    own = (ROOT / "options/test/GoPro.yml").read_text().replace("test_HI_Diff_GoPro", "own")
    (tmp_path / "options/test/GoPro.yml").write_text(own)
    assert load_options("options/test/GoPro.yml").name == "own"
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        load_options("options/absent.yml")


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("train:\n  total_iter:5\n  lr: 1\n", 3, "space"),
        ("name: a\n  train: 5\n", 2, "indented"),
        ("train:\n\ttotal_iter: 5\n", 2, "tab"),
        ("name: [1, 2\n", 2, ""),
        ("train:\n  lr: 1\n  steps: 2\n  lr: 3\n", 4, "'lr'"),
        ("a: 1\nb: !!python/object/apply:os.getcwd []\n", 2, ""),
    ],
)
def test_a_mistake_is_named_with_its_line(written, text, line, word):
    with pytest.raises(UserError, match=rf"^\S*a\.yml, line {line}: .*{word}"):
        read_yaml(written(a=text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- 1\n",
        "just text",
        "a: \0\n",
        "[1, 2]: 3\n",
        "a: &a [*a]\n",
        "a: " + "[" * 3000,
        "".join(f"{' ' * i}a:\n" for i in range(2000)),
        f"a: {'9' * 5000}\n",
        "a: !!timestamp 2024-05-01\n",
        "a: !!binary aGk=\n",
        "a: !!set {a, b}\n",
    ],
    ids=lambda text: repr(text[:20]),
)
def test_what_is_no_section_of_plain_data_is_refused(written, text):
    with pytest.raises(UserError, match=r"a\.yml"):
        read_yaml(written(a=text))


@pytest.mark.parametrize("text", ["2024-05-01", "2001-12-14 21:59:43.1"])
def test_a_date_is_text(written, text):
    """Training states hold the options, and dates are no plain data."""
    content, *_ = read_yaml(written(a=f"a: {text}\nb: {{c: [{text}]}}\n"))
    apply_overrides(content, [f"d={text}"])
    assert content == {"a": text, "b": {"c": [text]}, "d": text}


def test_a_merge_key_gives_defaults(written):
    text = "first: &base {x: 1, y: 2}\nmore: &more {<<: *base, z: 3}\na:\n  <<: [*more]\n  y: 5\n"
    content, notices, _ = read_yaml(written(a=text))
    assert content["a"] == {"x": 1, "y": 5, "z": 3}
    assert notices == []


def test_only_small_regular_texts_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.yml")
    (tmp_path / "large.yml").write_text("a: 1\n" + "#" * MAX_BYTES)
    (tmp_path / "model.yml").write_bytes(b"\x80\x02")
    (tmp_path / "folder.yml").mkdir()
    for name in ("pipe", "large", "model", "folder"):
        with pytest.raises(UserError, match=f"{name}.yml"):
            read_yaml(tmp_path / f"{name}.yml")
    (tmp_path / "marked.yml").write_text("name: a\n", encoding="utf-8-sig")
    assert read_yaml(tmp_path / "marked.yml")[0] == {"name": "a"}


def test_a_file_takes_over_what_its_base_says(written, tmp_path):
    (tmp_path / "more").mkdir()
    written(root="a: {x: 1, y: [1, 2], s: {type: A, p: 1}, t: {type: A, p: 1}}\nb: 1\nc: {z: 1}\n")
    middle = "base: ../root.yml\na: {y: [3], s: {type: A, q: 2}}\n"
    (tmp_path / "more/middle.yml").write_text(middle)
    path = written(child="base: more/middle.yml\na: {t: {type: B, q: 3}}\nb: 2\nc: ~\n")
    content, *_ = read_yaml(path)
    assert content == {
        "a": {"x": 1, "y": [3], "s": {"type": "A", "p": 1, "q": 2}, "t": {"type": "B", "q": 3}},
        "b": 2,
        "c": None,
    }


@pytest.mark.parametrize(
    ("files", "place"),
    [
        ({"a": "base: b.yml\n"}, r"a\.yml: base: .*b\.yml"),
        ({"a": "base: a.yml\n"}, r"a\.yml: base: "),
        ({"a": "base: b.yml\n", "b": "base: ./a.yml\n"}, r"b\.yml: base: .*a\.yml"),
        ({"a": "base: b.yml\n", "b": "- 1\n"}, r"a\.yml: base: .*b\.yml"),
        ({"a": "base: [b.yml]\n"}, r"a\.yml: base: "),
    ],
)
def test_a_wrong_base_is_named(written, files, place):
    with pytest.raises(UserError, match=place):
        read_yaml(written(**files))


def test_a_mistake_names_the_file_that_it_stands_in(written):
    base = f"base: {ROOT}/options/train/GoPro_S1.yml\nlogger: {{print_frq: 1}}\n"
    path = written(a="base: b.yml\ntrain: {total_iter: 0.5}\n", b=base)
    with pytest.raises(UserError, match=r"a\.yml: train\.total_iter: "):
        load_options(path)
    with pytest.raises(UserError, match=r"b\.yml: logger\.print_frq: "):
        load_options(path, ["train:total_iter=5"])
    with pytest.raises(UserError, match=r"--force_yml: scale: "):
        load_options(path, ["train:total_iter=5", "logger=~", "scale=4"])


def test_overrides_are_yaml_values_at_a_path():
    content = {"train": {"total_iter": 5}, "path": None}
    overrides = [
        "train:total_iter=7",
        "train:optim_total:betas=[0.9, 0.99]",
        "path:resume_state=~",
        "name=a=b",
        "val:save_img=true",
        "val.suffix=x",
        "network_g:guidance=none",
    ]
    apply_overrides(content, overrides)
    assert content == {
        "train": {"total_iter": 7, "optim_total": {"betas": [0.9, 0.99]}},
        "path": {"resume_state": None},
        "name": "a=b",
        "val": {"save_img": True, "suffix": "x"},
        "network_g": {"guidance": None},
    }


@pytest.mark.parametrize("text", ["train", "=3", "a::b=1", "train:total_iter:x=1", "a=[1"])
def test_a_wrong_override_says_how_to_write_it(text):
    with pytest.raises(UserError, match="--force_yml"):
        apply_overrides({"train": {"total_iter": 5}}, [text])


def test_what_would_grow_without_end_is_refused(tmp_path):
    lines = ["a0: &a0 [1, 1]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))]
    (tmp_path / "bomb.yml").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"bomb\.yml: more than 30 aliases"):
        load_options(tmp_path / "bomb.yml")
    with pytest.raises(UserError, match="--force_yml a:a:a"):
        apply_overrides({}, [f"{':'.join(['a'] * 3000)}=1"])
