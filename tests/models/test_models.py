"""What the models promise beside the released numbers."""

import copy
from pathlib import Path

import pytest
import torch
from small_data import train_options

import hidiff
from hidiff import UserError, build_model
from hidiff.models import pad_to_multiple

OPTIONS = {stage: train_options(Path("unused"), stage) for stage in (1, 2)}


def test_networks_are_the_attributes_of_that_name():
    for stage, names in ((1, ["net_g", "net_le"]), (2, ["net_g", "net_le_dm", "net_d", "net_le"])):
        model = build_model(OPTIONS[stage])
        assert list(model.networks()) == names
        for name, network in model.networks().items():
            assert getattr(model, name) is network


def test_padding_reflects_at_the_right_and_bottom():
    image = torch.arange(2 * 9.0).reshape(1, 1, 2, 9)
    padded = pad_to_multiple(image, (3, 3))
    assert padded.shape == (1, 1, 3, 9)
    assert torch.equal(padded[0, 0, 2], image[0, 0, 0])
    assert pad_to_multiple(torch.rand(1, 3, 16, 8), (8, 8)).shape == (1, 3, 16, 8)


@pytest.mark.parametrize("size", [(37, 43), (16, 24), (5, 100)])
def test_restoring_any_size_is_restoring_the_padded_image(size):
    model = build_model(OPTIONS[2]).eval()
    lq, noise = torch.rand(2, 3, *size), torch.randn(2, 16, 32)
    restored = model.restore(lq, noise=noise)
    assert restored.shape == lq.shape
    whole = model.restore(pad_to_multiple(lq, (8, 8)), noise=noise)
    assert torch.equal(restored, whole[..., : size[0], : size[1]])


def test_an_image_too_small_to_reflect_is_refused():
    with pytest.raises(UserError, match="4×30"):
        build_model(OPTIONS[2]).restore(torch.rand(1, 3, 4, 30))


@pytest.mark.parametrize(
    "lq",
    [
        torch.zeros(1, 3, 16, 16, dtype=torch.uint8),
        torch.zeros(3, 16, 16),
        torch.zeros(1, 1, 16, 16),
        [1.0],
    ],
    ids=["uint8", "without batch", "grey", "list"],
)
def test_what_is_no_batch_of_colour_images_is_refused(lq):
    with pytest.raises(UserError, match=r"lq: .*\(B, 3, H, W\).*got "):
        build_model(OPTIONS[2]).restore(lq)


def test_a_sharp_image_of_another_size_is_refused():
    with pytest.raises(UserError, match="gt"):
        build_model(OPTIONS[1]).restore(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 8, 16))


def test_the_package_has_what_the_readme_uses():
    assert all(hasattr(hidiff, name) for name in hidiff.__all__)
    assert len(hidiff.__all__) == 6


def test_the_generator_decides_the_noise():
    model = build_model(OPTIONS[2]).eval()
    lq = torch.rand(1, 3, 16, 16)
    first, again, other = (
        model.restore(lq, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    noise = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.restore(lq, noise=noise), first)


def test_stage_one_restores_with_the_sharp_image_only():
    model = build_model(OPTIONS[1]).eval()
    lq, gt = torch.rand(2, 1, 3, 13, 16).unbind(0)
    assert model.restore(lq, gt).shape == lq.shape
    with pytest.raises(UserError, match="stage 1"):
        model.restore(lq)


def test_stage_two_restores_without_the_encoder_of_stage_one():
    options = {k: v for k, v in OPTIONS[2].items() if k != "network_le"}
    model = build_model(options).eval()
    assert model.restore(torch.rand(1, 3, 16, 16)).shape == (1, 3, 16, 16)
    with pytest.raises(UserError, match="network_le: "):
        model(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16))


def test_losses_are_weighted():
    lq, gt = torch.rand(2, 1, 3, 16, 16).unbind(0)
    noise = torch.randn(1, 16, 32)
    options = copy.deepcopy(OPTIONS[2])
    torch.manual_seed(0)
    plain = build_model(options)(lq, gt, noise=noise)
    options["train"] |= {
        "pixel_opt": {"type": "L1Loss", "loss_weight": 3.0},
        "pixel_diff_opt": {"type": "L1Loss", "loss_weight": 0.5},
    }
    torch.manual_seed(0)
    weighted = build_model(options)(lq, gt, noise=noise)
    torch.testing.assert_close(weighted["l_pix"], 3 * plain["l_pix"])
    torch.testing.assert_close(weighted["l_pix_diff"], 0.5 * plain["l_pix_diff"])


@pytest.mark.parametrize("stage", [1, 2])
def test_a_training_without_a_loss_on_images_is_refused(stage):
    options = copy.deepcopy(OPTIONS[stage])
    options["train"]["pixel_opt"] = None
    with pytest.raises(UserError, match=r"^train\.pixel_opt: "):
        build_model(options)


def test_the_loss_between_priors_can_be_left_out():
    options = copy.deepcopy(OPTIONS[2])
    options["train"]["pixel_diff_opt"] = None
    lq, gt = torch.rand(2, 1, 3, 16, 16).unbind(0)
    assert list(build_model(options)(lq, gt)) == ["l_pix"]


@pytest.mark.parametrize("section", ["network_g", "network_le_dm", "network_d"])
def test_a_missing_section_is_named(section):
    options = {k: v for k, v in OPTIONS[2].items() if k != section}
    with pytest.raises(UserError, match=f"^{section}: "):
        build_model(options)


def test_a_missing_schedule_and_type_are_named():
    options = {k: v for k, v in OPTIONS[2].items() if k != "diffusion_schedule"}
    with pytest.raises(UserError, match="^diffusion_schedule: "):
        build_model(options)
    with pytest.raises(UserError, match="^model_type: "):
        build_model({"network_g": {}})
