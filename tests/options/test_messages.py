"""What is said about YAML that is wrong, about other programs' files, and the reference."""

import copy
import os
from pathlib import Path

import pytest
import yaml
from golden_values import load_json

from hidiff import UserError
from hidiff.cli import call
from hidiff.options import load_options, parse_options
from hidiff.options.reference import reference
from hidiff.options.yaml_file import MAX_BYTES, read_yaml

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def content():
    return copy.deepcopy(load_json("released_options.json")["train/GoPro_S2.yml"]["options"])


def test_the_reference_is_up_to_date():
    """If not: hidiff options --reference > docs/options.md."""
    assert (ROOT / "docs/options.md").read_text(encoding="utf-8") == reference()


def test_a_shipped_file_is_listed_and_its_copy_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("options") == 0
    assert "baselines/nafnet_32 " in capsys.readouterr().out
    for name, file in (
        ("baselines/nafnet_32", "options/baselines/nafnet_32.yml"),
        ("options/bundled/S2.yml", "options/bundled/S2.yml"),
    ):
        assert call("options", name, "-o", "mine.yml") == 0
        assert load_options("mine.yml").sections == load_options(ROOT / file).sections
        with pytest.raises(UserError, match="mine"):
            call("options", name, "-o", "mine.yml")
        Path("mine.yml").unlink()
    with pytest.raises(UserError, match="'baselines/nafnet_32'"):
        call("options", "baselines/nafnet32")


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("train:\n  total_iter:5\n  lr: 1\n", 2, "space"),
        ("name: a\n  train: 5\n", 2, "indented"),
        ("train:\n\ttotal_iter: 5\n", 2, "tab"),
        ("name: [1, 2\n", 2, ""),
    ],
)
def test_a_mistake_in_yaml_is_named_with_its_line(tmp_path, text, line, word):
    path = tmp_path / "a.yml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"^\S*a\.yml, line {line}: .*{word}"):
        read_yaml(path)


def test_a_section_without_spaces_after_its_colons(tmp_path, content):
    path = tmp_path / "a.yml"
    content["logger"] = "print_freq:5"  # as YAML reads it
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"a\.yml: logger: .*space.*colon"):
        load_options(path)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "a.yml"
    path.write_text("name: a\n", encoding="utf-8-sig")
    assert read_yaml(path)[0] == {"name": "a"}


def test_only_small_regular_texts_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.yml")
    (tmp_path / "large.yml").write_text("a: 1\n" + "#" * MAX_BYTES)
    (tmp_path / "model.yml").write_bytes(b"\x80\x02")
    (tmp_path / "folder.yml").mkdir()
    for name in ("pipe", "large", "model", "folder"):
        with pytest.raises(UserError, match=f"{name}.yml"):
            read_yaml(tmp_path / f"{name}.yml")


def test_an_override_of_many_sections_is_refused(tmp_path):
    (tmp_path / "a.yml").write_text("name: a\n")
    with pytest.raises(UserError, match="--force_yml"):
        load_options(tmp_path / "a.yml", [f"{'a:' * 3000}b=1"])


def test_all_differences_of_another_programs_file_are_listed_at_once(content):
    content["model_type"] = "ImageCleanModel"
    content["network_g"]["type"] = "Restormer"
    content["train"]["optim_g"] = content["train"].pop("optim_total")
    content["datasets"]["train"] |= {
        "type": "Dataset_PairedImage", "geometric_augs": True, "use_hflip": True
    }  # fmt: skip
    with pytest.raises(UserError) as refused:
        parse_options(content)
    for place, here in (
        ("model_type", "Regression"),
        ("network_g.type", "Transformer"),
        ("train.optim_g", "train.optim_total"),
        ("datasets.train.type", "PairedImageIRDataset"),
        ("datasets.train.geometric_augs", "always"),
        ("datasets.train.use_hflip", "always"),
    ):
        assert any(
            line.strip().startswith(f"{place}: ") and here in line
            for line in str(refused.value).splitlines()
        ), place


def test_a_file_of_the_other_purpose_says_what_it_is_for():
    with pytest.raises(UserError, match="hidiff test -opt"):
        load_options(ROOT / "options/test/GoPro.yml").for_training()
    with pytest.raises(UserError, match="hidiff train -opt"):
        load_options(ROOT / "options/train/GoPro_S1.yml").test_sets()


def test_metrics_are_found_by_a_part_of_their_name(content):
    content["val"]["metrics"]["psnr"]["type"] = "psnr"
    with pytest.raises(UserError, match=r"val\.metrics\.psnr\.type: .*'calculate_psnr'"):
        parse_options(content)
