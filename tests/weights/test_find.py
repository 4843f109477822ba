"""Finding models: experiments, folders, model files and the Hub."""

import inspect
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from small_data import test_options, train_options
from small_models import make_experiment, make_released, random_model, same

import hidiff
from hidiff import UserError
from hidiff.cli import call
from hidiff.evaluation.results import with_scores
from hidiff.options import parse_options
from hidiff.weights.export import pack, unpack
from hidiff.weights.find import default_model, find_model, load_model

SECTIONS = {stage: parse_options(train_options(Path("data"), stage)).sections for stage in (1, 2)}


@pytest.fixture(scope="module")
def lq():
    return torch.rand(1, 3, 13, 18, generator=torch.Generator().manual_seed(1))


def restored(model, lq):
    return model.restore(lq, generator=torch.Generator().manual_seed(5))


def test_every_source_restores_the_same(trained, lq, tmp_path, monkeypatch):
    """The training's own model, and its file wherever it is."""
    monkeypatch.chdir(trained[0])
    before = torch.get_rng_state()
    loaded = load_model("tiny_S2")
    assert torch.equal(torch.get_rng_state(), before)
    parameters = {f"{n}.{k}": v for n, net in loaded.model.networks().items()
                  for k, v in net.state_dict().items()}  # fmt: skip
    assert all(torch.equal(value, trained[2][key]) for key, value in parameters.items())
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.options["network_g"] == json.loads(json.dumps(SECTIONS[2]["network_g"]))
    assert (loaded.patch_size, loaded.notices, loaded.step) == (32, (), 4)
    assert "step 4" in loaded.description and "\n" not in loaded.description
    expected = restored(loaded.model, lq)

    pack(find_model("tiny_S2"), tmp_path / "model.safetensors", for_training=True)
    unpack(find_model("tiny_S2"), tmp_path / "out")
    shutil.copytree("experiments/tiny_S2", tmp_path / "moved")
    monkeypatch.chdir(tmp_path)  # away from experiments/
    shutil.copytree("out", "with_option_file")
    (tmp_path / "with_option_file" / "options.yml").write_text(yaml.safe_dump(test_options(Path())))
    for source in (
        *("moved", "moved/models", "moved@4", Path("moved"), tmp_path / "moved", "moved@best"),
        *("moved/models/tiny_S2_4.safetensors", "model.safetensors", "out", "with_option_file"),
    ):
        found = load_model(source)
        assert torch.equal(restored(found.model, lq), expected), source
        assert found.patch_size == (None if source == "with_option_file" else 32)
    assert not torch.equal(restored(load_model("moved@2").model, lq), expected)


def test_a_model_of_the_package_is_ready(trained, lq, monkeypatch):
    monkeypatch.chdir(trained[0])
    model = hidiff.load("tiny_S2")
    assert torch.equal(restored(model, lq), restored(load_model("tiny_S2").model, lq))


def test_steps_and_best_are_named_by_their_place(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    with pytest.raises(UserError, match=r"tiny_S2: .*step 3.*2, 4"):
        find_model("tiny_S2@3")
    with pytest.raises(UserError, match="tiny_S2@last"):
        find_model("tiny_S2@last")
    with pytest.raises(UserError, match=r"tiny_S4: .*tiny_S2"):
        find_model("tiny_S4")
    assert any("ValSet/psnr" in notice for notice in find_model("tiny_S2@best").notices)
    with pytest.raises(UserError, match="device nowhere"):
        load_model("tiny_S2", device="nowhere")


def test_best_is_the_step_with_the_best_score(tmp_path):
    make_experiment(tmp_path, SECTIONS[2], step=4)
    make_experiment(tmp_path, SECTIONS[2], step=8)
    with pytest.raises(UserError, match="@best"):
        find_model(f"{tmp_path}@best")
    best = {"ValSet/ssim": {"value": 0.9, "step": 8}, "ValSet/psnr": {"value": 30.0, "step": 4}}
    (tmp_path / "training_states").mkdir()
    for step, content in ((4, {}), (8, best)):
        state = {"best": content, "networks": {}}
        torch.save(state, tmp_path / "training_states" / f"{step}.state")
    assert (find_model(f"{tmp_path}@best").step, find_model(tmp_path).step) == (4, 8)
    assert with_scores(find_model(tmp_path)).scores[0]["restored"] == {"ssim": 0.9}


def test_stage_1_is_described_but_not_loaded(tmp_path, capsys):
    make_experiment(tmp_path, SECTIONS[1])
    assert set(find_model(tmp_path).model.networks()) == {"net_g", "net_le"}
    assert call("info", str(tmp_path)) == 0
    with pytest.raises(UserError, match="stage 1"):
        load_model(tmp_path)


def test_the_option_file_names_the_entry(tmp_path):
    options = test_options(Path())
    models = {
        entry: random_model(options, seed) for seed, entry in enumerate(["params", "params_ema"])
    }
    for entry, expected in models.items():
        folder = tmp_path / entry
        folder.mkdir()
        for name in expected.networks():
            content = {key: m.networks()[name].state_dict() for key, m in models.items()}
            torch.save(content, folder / f"{name}.pth")
        options["path"] = {f"param_key_{name}": entry for name in ("g", "le_dm", "d")}
        (folder / "test.yml").write_text(yaml.safe_dump(options))
        found = find_model(folder)
        assert same(found.model, expected)


def test_folders_with_too_little_or_too_much(tmp_path):
    with pytest.raises(UserError, match="empty"):
        find_model(tmp_path)
    make_released(tmp_path / "a", SECTIONS[2])
    with pytest.raises(UserError, match="several option files.*one.yml, two.yml"):
        for name in ("one", "two"):
            (tmp_path / "a" / f"{name}.yml").write_text("")
        find_model(tmp_path / "a")
    (tmp_path / "a" / "two.yml").unlink()
    options = test_options(Path())
    options["network_g"]["dim"] = 16
    (tmp_path / "a" / "one.yml").write_text(yaml.safe_dump(options))
    with pytest.raises(UserError, match=r"net_g: .*net_g\.pth.*shape"):
        find_model(tmp_path / "a")
    make_experiment(tmp_path / "e", SECTIONS[2])
    for name in ("x", "y"):
        pack(find_model(tmp_path / "e"), tmp_path / "p" / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"x\.safetensors, y\.safetensors"):
        find_model(tmp_path / "p")
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "photo.png").write_text("")
    with pytest.raises(UserError, match=r"q holds no weights.*photo\.png"):
        find_model(tmp_path / "q")


def test_what_is_no_model_is_said(trained, monkeypatch, tmp_path):
    monkeypatch.chdir(trained[0])
    (tmp_path / "mine.yml").write_text("name: tiny_S2\n")
    (tmp_path / "notes.txt").write_text("")
    for text, words in (
        (tmp_path / "mine.yml", "option file.*tiny_S2"),
        (tmp_path / "notes.txt", "no model"),
        (tmp_path / "absent" / "folder", "absent/folder does not exist"),
        ("experiments/tiny_S2/training_states/4.state", "training state"),
        ("experiments/tiny_S2/models/tiny_S2_4.safetensors@2", "no steps"),
        ("bundeld", "bundled"),
    ):
        with pytest.raises(UserError, match=words):
            find_model(text)


def test_without_a_name_downloads_come_before_the_bundled_model(tmp_path, monkeypatch):
    monkeypatch.setenv("HIDIFF_HOME", str(tmp_path))
    name, words = default_model()
    assert name == "bundled" and "hidiff download gopro" in words
    for name in ("dmphn", "gopro"):
        make_experiment(tmp_path / name, SECTIONS[2])
        pack(
            find_model(tmp_path / name),
            tmp_path / "models" / f"{name}.safetensors",
            for_training=True,
        )
    assert default_model()[0] == "gopro"
    assert same(find_model("gopro").model, find_model(tmp_path / "gopro").model)
    assert load_model("bundled").licence == "Apache-2.0"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder in the place of every repository, and what huggingface_hub is asked for."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    folder, asked = tmp_path / "repository", []

    def answer(name):
        signature = inspect.signature(getattr(huggingface_hub, name))

        def called(*args, **kwargs):
            asked.append(signature.bind(*args, **kwargs).arguments)
            path = folder / asked[-1].get("filename", "")
            if not path.exists():
                raise OSError("404 Client Error")
            return str(path)

        monkeypatch.setattr(huggingface_hub, name, called)

    answer("hf_hub_download")
    answer("snapshot_download")
    return folder, asked


def test_models_come_from_the_hub(hub, tmp_path, lq):
    folder, asked = hub
    make_experiment(tmp_path / "e", SECTIONS[2])
    pack(find_model(tmp_path / "e"), folder / "model.safetensors")
    unpack(find_model(tmp_path / "e"), folder / "released")
    expected = restored(load_model(tmp_path / "e").model, lq)
    assert torch.equal(restored(hidiff.load("hf:owner/name"), lq), expected)
    assert torch.equal(restored(hidiff.load("hf:owner/name/model.safetensors@v1"), lq), expected)
    part = load_model("hf:owner/name/released@v2").model
    assert same(part, load_model(folder / "released").model)
    assert [call["repo_id"] for call in asked] == ["owner/name"] * 3
    assert [call["revision"] for call in asked] == [None, "v1", "v2"]
    assert "*.safetensors" in asked[0]["allow_patterns"]
    assert asked[1]["filename"] == "model.safetensors"
    assert set(asked[2]["allow_patterns"]) >= {"released/*.pth", "released/*.yml"}
    with pytest.raises(UserError, match=r"absent\.safetensors.*404"):
        load_model("hf:owner/name/absent.safetensors")
    for wrong in ("hf:name", "hf:/name", "hf:"):
        with pytest.raises(UserError, match="hf:OWNER/NAME"):
            load_model(wrong)


def test_what_was_downloaded_before_is_found_without_a_network(tmp_path, monkeypatch):
    """With the real huggingface_hub, on its folder of downloads."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    downloads, commit = tmp_path / "cache" / "models--owner--name", 5 * "0123abcd"
    make_experiment(tmp_path / "e", SECTIONS[2])
    expected = find_model(tmp_path / "e")
    pack(expected, downloads / "snapshots" / commit / "model.safetensors", for_training=True)
    (downloads / "refs").mkdir()
    (downloads / "refs" / "main").write_text(commit)
    for source in ("hf:owner/name", "hf:owner/name/model.safetensors", f"hf:owner/name@{commit}"):
        assert same(load_model(source).model, expected.model)
    with pytest.raises(UserError, match="hf:owner/other"):
        load_model("hf:owner/other")


def test_the_hub_needs_a_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        load_model("hf:owner/name")
