"""What is said about YAML that is wrong, about other programs' files, and the reference."""

import copy
from pathlib import Path

import pytest
import yaml
from golden_values import load_json

from hidiff import UserError
from hidiff.cli import call
from hidiff.options import load_options, parse_options
from hidiff.options.reference import reference

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


def test_a_section_without_spaces_after_its_colons(tmp_path, content):
    path = tmp_path / "a.yml"
    content["logger"] = "print_freq:5"  # as YAML reads it
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"a\.yml: logger: .*space.*colon"):
        load_options(path)


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
