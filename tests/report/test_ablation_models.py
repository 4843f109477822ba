"""Baseline, Single-Guide and Split-Training of Table 1."""

import copy
import math

import pytest
import torch
from small_data import STAGE2, TINY_G, TINY_LE, train_options

from hidiff import UserError, build_model, build_network
from hidiff.engine.optim import build_optimizer
from hidiff.engine.trainer import Trainer
from hidiff.evaluation.test_run import run_test
from hidiff.options import parse_options
from hidiff.utils.distributed import Processes

ALONE = Processes(0, 1, torch.device("cpu"))
X0_FORM = {
    "network_d": {"type": "simple_denoise", "n_feats": 8, "n_denoise_res": 1},
    "diffusion_schedule": {"apply_ldm": True, "timesteps": 4},
}
ABLATION_G = {
    "type": "Transformer",
    "num_blocks": [3, 5, 6, 6],
    "ffn_expansion_factor": 2,
    "embed_dim": 64,
}


def split_options(folder, **changes):
    """Split-Training on the stage 1 of `train_options(folder, 1)`."""
    options = train_options(folder, 2)
    options |= {"name": "tiny_Split_S2", "model_type": "HI_Diff_S2_Split", **changes}
    options["path"] = {
        f"pretrain_network_{n}": f"experiments/tiny_S1/models/net_{n}_latest.pth"
        for n in ("g", "le")
    }
    return options


def baseline_options(folder):
    options = train_options(folder, 1)
    del options["network_le"]
    options |= {"name": "tiny_baseline", "model_type": "Restormer"}
    options["network_g"]["guidance"] = "none"
    return options


@pytest.mark.parametrize(
    ("guidance", "millions"), [("none", 19.132), ("single_scale", 20.275), ("multi_scale", 22.282)]
)
def test_parameters_of_the_transformer(guidance, millions):
    """Table 1 without LE_DM (1.506 M) and denoiser (0.197 M), which only the lower two have."""
    with torch.device("meta"):
        network = build_network({**ABLATION_G, "guidance": guidance})
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 3) == millions
    names = {part for name, _ in network.named_parameters() for part in name.split(".")}
    expected = {
        "none": set(),
        "single_scale": {"him"},
        "multi_scale": {"him", "ln1", "ln2", "down_1", "down_2"},
    }
    assert names & expected["multi_scale"] == expected[guidance]


def test_single_guide_gives_all_tokens_to_every_level():
    network = build_network({**TINY_G, "guidance": "single_scale"})
    seen = {}
    for name, module in network.named_modules():
        if name.endswith("him"):
            module.register_forward_hook(
                lambda _, inputs, __, name=name: seen.update({name: inputs[1]})
            )
    prior = torch.randn(1, 16, 32)
    network(torch.rand(1, 3, 16, 24), prior)
    assert len(seen) == 8
    assert "latent.him" in seen
    assert all(tokens is prior for tokens in seen.values())


def test_the_baseline_computes_what_the_guided_network_computes_without_a_prior():
    guided = build_network(TINY_G)
    baseline = build_network({**TINY_G, "guidance": "none"})
    own = set(baseline.state_dict())
    baseline.load_state_dict({k: v for k, v in guided.state_dict().items() if k in own})
    x = torch.rand(1, 3, 16, 24)
    assert torch.equal(baseline(x), guided(x))


def test_the_baseline_trains_and_restores_without_noise(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = baseline_options(data)
    trainer = Trainer(parse_options(copy.deepcopy(options)), ALONE)
    trainer.run()
    assert [p.name for p in (tmp_path / "experiments/tiny_baseline/models").glob("*latest*")] == [
        "net_g_latest.pth"
    ]
    model = trainer.model.eval()
    lq, gt = torch.rand(2, 1, 3, 19, 16).unbind(0)
    padded = torch.nn.functional.pad(lq, (0, 0, 0, 5), mode="reflect")
    torch.testing.assert_close(model.restore(lq), model.net_g(padded)[..., :19, :])
    lq, gt = lq[..., :16, :], gt[..., :16, :]
    losses = model(lq, gt)
    assert list(losses) == ["l_pix"]
    torch.testing.assert_close(losses["l_pix"], (model.net_g(lq) - gt).abs().mean())
    losses["l_pix"].backward()
    assert all(p.grad is not None for p in model.parameters())
    options["datasets"]["test_1"] = {**options["datasets"]["val"], "name": "small"}
    models = "experiments/tiny_baseline/models"
    options["path"] = {"pretrain_network_g": f"{models}/net_g_latest.pth"}
    assert run_test(parse_options(options), ALONE)


@pytest.mark.parametrize("model_type", ["HI_Diff_S1", "HI_Diff_S2", "HI_Diff_S2_Split"])
def test_a_stage_that_needs_a_prior_refuses_a_network_that_takes_none(model_type):
    options = {
        "model_type": model_type,
        "network_g": {**TINY_G, "guidance": "none"},
        "network_le": {**TINY_LE, "in_chans": 6, "stage": 1},
        **STAGE2,
    }
    with pytest.raises(UserError, match=r"network_g\.guidance: "):
        build_model(options)


def test_the_baseline_refuses_a_network_with_a_prior():
    with pytest.raises(UserError, match=r"network_g\.guidance: "):
        build_model({"model_type": "Restormer", "network_g": TINY_G})
    with pytest.raises(UserError, match=r"^network_g\.guidance: "):
        build_network({**TINY_G, "guidance": "single"}, "network_g")


def written_out(model, lq, gt, noise, t):
    """Eq. 7 for each image, β and ᾱ written out; the mean squared error of all."""
    z, c = model.net_le(lq, gt), model.net_le_dm(lq)
    steps, predicts_x0 = model.diffusion.timesteps, model.diffusion.predicts_x0
    ends = [math.sqrt(0.1), math.sqrt(0.99)] if predicts_x0 else [0.1, 0.99]
    betas = [
        (ends[0] + (ends[1] - ends[0]) * i / (steps - 1)) ** (2 if predicts_x0 else 1)
        for i in range(steps)
    ]
    errors = []
    for index, step in enumerate(t.tolist()):
        alpha_bar = math.prod(1 - beta for beta in betas[: step + 1])
        own = slice(index, index + 1)
        z_t = math.sqrt(alpha_bar) * z[own] + math.sqrt(1 - alpha_bar) * noise[own]
        # The noise form's denoiser counts from 1, the other from 0.
        time = step if predicts_x0 else step + 1
        target = z[own] if predicts_x0 else noise[own]
        errors.append((model.net_d(z_t, c[own], time) - target) ** 2)
    return torch.cat(errors).mean()


@pytest.mark.parametrize("form", [{}, X0_FORM], ids=["noise", "x0"])
def test_the_split_loss_is_equation_7(tmp_path, form):
    options = {**split_options(tmp_path), **copy.deepcopy(form)}
    options["diffusion_schedule"]["timesteps"] = 4
    model = build_model(options).double().train()
    lq, gt = torch.rand(2, 3, 3, 16, 16).double().unbind(0)
    noise, t = torch.randn(3, 16, 32).double(), torch.tensor([0, 3, 1])
    losses = model(lq, gt, noise=noise, t=t)
    assert list(losses) == ["l_diff"]
    # The coefficients are kept in float32.
    torch.testing.assert_close(
        losses["l_diff"], written_out(model, lq, gt, noise, t), rtol=1e-6, atol=0
    )


def test_every_time_step_is_drawn_from_torchs_generator(tmp_path):
    model = build_model(split_options(tmp_path))
    drawn = []
    q_sample = model.diffusion.q_sample
    model.diffusion.q_sample = lambda z, noise, t: drawn.append(t) or q_sample(z, noise, t)
    lq, gt, noise = torch.rand(40, 3, 8, 8), torch.rand(40, 3, 8, 8), torch.randn(40, 16, 32)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model(lq, gt, noise=noise)["l_diff"])
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert set(drawn[0].tolist()) == {0, 1}


def test_split_training_moves_the_diffusion_model_only(tmp_path):
    model = build_model(split_options(tmp_path)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = build_optimizer({"type": "AdamW", "lr": 1e-2}, model)
    model(torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16))["l_diff"].backward()
    optimizer.step()
    for name, network in model.networks().items():
        changed = [
            not torch.equal(v, before[f"{name}.{k}"]) for k, v in network.state_dict().items()
        ]
        if name in ("net_le_dm", "net_d"):
            assert all(changed), name
        else:
            assert not any(changed), name
            assert not network.training
    assert set(model.trained_networks()) == {"net_le_dm", "net_d"}


def test_split_training_has_no_image_loss(tmp_path):
    for key in ("pixel_opt", "pixel_diff_opt"):
        options = split_options(tmp_path)
        options["train"][key] = {"type": "L1Loss"}
        with pytest.raises(UserError, match=rf"^train\.{key}: "):
            build_model(options)


def test_split_training_resumes_and_is_tested_with_the_transformer_of_stage_one(
    data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Trainer(parse_options(train_options(data, 1)), ALONE).run()
    schedule = {"diffusion_schedule": {"timesteps": 20}}
    whole = Trainer(parse_options(split_options(data, **schedule)), ALONE)
    whole.run()
    options = split_options(data, name="resumed", **schedule)
    cut = Trainer(parse_options(copy.deepcopy(options)), ALONE)
    cut.total_iter = 2
    cut.run()
    resumed = Trainer(parse_options(copy.deepcopy(options)), ALONE, auto_resume=True)
    resumed.run()
    assert resumed.state.step == 4
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key

    models = tmp_path / "experiments/resumed/models"
    assert not list(models.glob("net_g_*"))
    options["datasets"]["test_1"] = {**options["datasets"]["val"], "name": "small"}
    options["path"] |= {
        f"pretrain_network_{n}": str(models / f"net_{n}_latest.pth") for n in ("le_dm", "d")
    }
    assert run_test(parse_options(options), ALONE)
