"""Finding models: experiments, folders, packed files and the Hub."""

import inspect
import logging
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from small_data import test_options, train_options
from small_models import make_experiment, make_released, random_model, same, small
from small_training import ALONE, train

import hidiff
from hidiff import UserError
from hidiff.cli import main
from hidiff.evaluation.rows import with_scores
from hidiff.evaluation.test_run import run_test
from hidiff.options import load_options, parse_options
from hidiff.weights.load import find_model, load_model
from hidiff.weights.packed import pack

ROOT = Path(__file__).resolve().parent.parent.parent
SECTIONS = {stage: parse_options(train_options(Path("data"), stage)).sections for stage in (1, 2)}


@pytest.fixture(scope="module")
def lq():
    return torch.rand(1, 3, 13, 18, generator=torch.Generator().manual_seed(1))


def restored(model, lq):
    return model.restore(lq, generator=torch.Generator().manual_seed(5))


def test_every_source_restores_the_same(trained, lq, tmp_path, monkeypatch):
    """The training's own model, and its files wherever they are."""
    monkeypatch.chdir(trained[0])
    before = torch.get_rng_state()
    loaded = load_model("tiny_S2")
    assert torch.equal(torch.get_rng_state(), before)
    parameters = {f"{n}.{k}": v for n, net in loaded.model.networks().items()
                  for k, v in net.state_dict().items()}  # fmt: skip
    assert all(torch.equal(value, trained[2][key]) for key, value in parameters.items())
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.options["network_g"] == SECTIONS[2]["network_g"]
    assert (loaded.patch_size, loaded.normalization, loaded.notices) == (32, None, [])
    assert "step 4" in loaded.description and "\n" not in loaded.description
    expected = restored(loaded.model, lq)

    pack(find_model("tiny_S2"), tmp_path / "model.safetensors")
    assert main(["unpack", str(tmp_path / "model.safetensors"), "-o", str(tmp_path / "out")]) == 0
    shutil.copytree("experiments/tiny_S2", tmp_path / "moved")
    monkeypatch.chdir(tmp_path)  # away from experiments/
    (tmp_path / "with_option_file").mkdir()
    for name in loaded.model.networks():
        shutil.copy(f"moved/models/{name}_latest.pth", f"with_option_file/{name}.pth")
    (tmp_path / "with_option_file" / "test.yml").write_text(yaml.safe_dump(test_options(Path())))
    for source in (
        *("moved", "moved/models", "moved@4", Path("moved"), tmp_path / "moved", "moved@best"),
        *("model.safetensors", "out", "with_option_file"),
    ):
        found = load_model(source)
        assert torch.equal(restored(found.model, lq), expected), source
        assert found.options == loaded.options, source
        assert found.patch_size == (None if source == "with_option_file" else 32)
    assert not torch.equal(restored(load_model("moved@2").model, lq), expected)


def test_a_model_of_the_package_is_ready(trained, lq, monkeypatch):
    monkeypatch.chdir(trained[0])
    model = hidiff.load("tiny_S2")
    assert torch.equal(restored(model, lq), restored(load_model("tiny_S2").model, lq))


def test_steps_and_best_are_named_by_their_place(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    with pytest.raises(UserError, match=r"tiny_S2: .*net_g_3\.pth.*2, 4"):
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
    assert main(["info", str(tmp_path)]) == 0
    with pytest.raises(UserError, match="stage 1"):
        load_model(tmp_path)


def test_what_stage_2_did_not_train_is_found_after_moving(data, tmp_path, monkeypatch):
    """Split-Training keeps stage 1's Transformer, which only its training state has."""
    monkeypatch.chdir(tmp_path)
    train(train_options(data, 1, total_iter=1))
    options = {**train_options(data, 2, total_iter=1), "name": "split_S2"}
    options |= {"model_type": "HI_Diff_S2_Split", "path": {"stage1": "tiny_S1"}}
    trainer = train({**options, "path": {**options["path"], "allow_incomplete_stage1": True}})
    shutil.move("experiments/split_S2", "moved")
    shutil.rmtree("moved/training_states")
    with_stage1 = find_model("moved").model
    assert "net_le" not in with_stage1.networks()
    expected = trainer.model.net_g.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in with_stage1.net_g.state_dict().items())
    shutil.rmtree("experiments/tiny_S1")
    with pytest.raises(UserError, match=r"path\.stage1"):
        find_model("moved")
    (tmp_path / "moved/training_states").mkdir()
    state = {"networks": {"net_g": expected}, "best": {}}
    torch.save(state, "moved/training_states/1.state")
    assert same(find_model("moved").model, with_stage1)


@pytest.mark.parametrize("name", ["GoPro", "RealBlur_J"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_released_files_need_no_option_file(tmp_path, lq, name, prefix):
    sections = small(load_options(ROOT / f"options/test/{name}.yml").sections)
    model = make_released(tmp_path / "released", sections, prefix)
    loaded = load_model(tmp_path / "released")
    assert torch.equal(restored(loaded.model, lq), restored(model, lq))
    for network in ("network_g", "network_le_dm", "network_d", "diffusion_schedule"):
        assert any(notice.startswith(network) for notice in loaded.notices)
    assert "module" not in "".join(loaded.model.state_dict())


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
        assert found.origin["net_g"]["entry"] == entry


def test_folders_with_too_little_or_too_much(tmp_path):
    with pytest.raises(UserError, match=r"net_g\.pth"):
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
    (tmp_path / "a" / "one.yml").unlink()
    with pytest.raises(UserError, match=r"net_g\.pth is one part"):
        find_model(tmp_path / "a" / "net_g.pth")
    (tmp_path / "a" / "net_d.pth").unlink()
    with pytest.raises(UserError, match=r"a: .*net_d\.pth"):
        find_model(tmp_path / "a")
    make_experiment(tmp_path / "e", SECTIONS[2])
    for name in ("x", "y"):
        pack(find_model(tmp_path / "e"), tmp_path / "p" / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"x\.safetensors, y\.safetensors"):
        find_model(tmp_path / "p")


def test_scores_of_the_same_weights_are_found(trained, data, monkeypatch):
    monkeypatch.chdir(trained[0])
    for name, weights in (("of_S2", "tiny_S2"), ("of_others", "experiments/tiny_S2/step2")):
        options = {**test_options(data), "name": name, "path": {"weights": weights}}
        if name == "of_others":
            folder = Path(weights)
            folder.mkdir(exist_ok=True)
            for network in ("net_g", "net_le_dm", "net_d"):
                source = f"experiments/tiny_S2/models/{network}_2.pth"
                shutil.copy(source, folder / f"{network}.pth")
        assert run_test(parse_options(options), ALONE)
    validation, test = with_scores(find_model("tiny_S2")).scores
    assert (validation["source"], validation["dataset"]) == ("validation", "ValSet")
    assert (test["settings"]["name"], test["protocol"], test["images"]) == ("of_S2", "basicsr", 2)
    assert set(test["restored"]) == {"psnr", "ssim"}
    assert validation["local"] == test["local"] == "none"
    # The validation has the same images, noise and weights.
    assert validation["restored"]["psnr"] == pytest.approx(test["restored"]["psnr"], rel=1e-6)
    (other,) = with_scores(find_model("tiny_S2@2")).scores
    assert other["settings"]["name"] == "of_others"


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
    make_released(folder / "released", SECTIONS[2])
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
    pack(expected, downloads / "snapshots" / commit / "model.safetensors")
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


def test_notices_are_logged(tmp_path, caplog, monkeypatch):
    make_released(tmp_path / "released", SECTIONS[2])
    monkeypatch.setattr(logging.getLogger("hidiff"), "propagate", True)
    hidiff.load(tmp_path / "released")
    assert "diffusion_schedule" in caplog.text
