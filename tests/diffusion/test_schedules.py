"""β schedules against their definitions, and the chain's paper variants."""

import math

import numpy as np
import pytest
import torch

from hidiff import UserError
from hidiff.diffusion import LatentDDPM, beta_schedule
from hidiff.diffusion.schedule import SCHEDULES


@pytest.mark.parametrize(
    ("name", "apply_ldm", "expected"),
    [
        ("linear", False, [0.1, 0.4, 0.7]),
        ("quad", False, [0.1, ((math.sqrt(0.1) + math.sqrt(0.7)) / 2) ** 2, 0.7]),
        ("const", False, [0.7, 0.7, 0.7]),
        ("warmup50", False, [0.1, 0.7, 0.7]),
        ("warmup10", False, [0.7, 0.7, 0.7]),
        ("jsd", False, [1 / 3, 1 / 2, 1.0]),
        ("linear", True, [0.1, ((math.sqrt(0.1) + math.sqrt(0.7)) / 2) ** 2, 0.7]),
        ("sqrt_linear", True, [0.1, 0.4, 0.7]),
        ("sqrt", True, [math.sqrt(0.1), math.sqrt(0.4), math.sqrt(0.7)]),
    ],
)
def test_three_steps_by_hand(name, apply_ldm, expected):
    betas = beta_schedule(name, 3, 0.1, 0.7, apply_ldm=apply_ldm)
    np.testing.assert_allclose(betas, expected, rtol=1e-12)


@pytest.mark.parametrize("apply_ldm", [False, True])
def test_cosine_keeps_its_definition(apply_ldm):
    """ᾱ_t = f(t+1)/f(0) with f(t) = cos²((t/T + s)/(1 + s) · π/2), until β reaches 0.999."""
    betas = beta_schedule("cosine", 10, 0.1, 0.9, apply_ldm=apply_ldm)
    f = [math.cos((t / 10 + 8e-3) / 1.008 * math.pi / 2) ** 2 for t in range(11)]
    np.testing.assert_allclose(np.cumprod(1 - betas)[:9], np.array(f[1:10]) / f[0], rtol=1e-9)
    assert betas[-1] == 0.999


@pytest.mark.parametrize(
    ("name", "last", "told"),
    [("linear", 0.9999, False), ("cosine", 0.999, False), ("jsd", 0.999, True)],
)
def test_only_what_must_be_is_clipped(name, last, told):
    """As in the release 'cosine' alone; 'jsd', which gives NaN there, is clipped and said."""
    ddpm = LatentDDPM(schedule=name, timesteps=4, linear_end=0.9999)
    assert ddpm.tables.betas[-1].item() == pytest.approx(last, rel=1e-6)
    assert bool(ddpm.notices) == told


def test_a_schedule_that_the_release_ignores_is_told():
    assert not LatentDDPM(apply_ldm=True, schedule="linear").notices
    (notice,) = LatentDDPM(apply_ldm=True, schedule="cosine").notices
    assert "diffusion_schedule.schedule" in notice and "'cosine'" in notice


def test_every_schedule_runs_a_finite_chain():
    for apply_ldm, names in SCHEDULES.items():
        for name in names:
            ddpm = LatentDDPM(apply_ldm=apply_ldm, schedule=name, timesteps=4, linear_end=0.9)
            z = ddpm.reverse(lambda z, c, t: 0.5 * z, torch.randn(1, 2, 3), torch.zeros(1, 2, 3))
            assert torch.isfinite(z).all(), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("linar", 4, 0.1, 0.9), "no schedule 'linar'.*did you mean 'linear'"),
        (("linear", 4, 0.0, 0.9), r"gives β outside \(0, 1\]"),
        (("linear", 4, 0.1, 1.5), r"gives β outside \(0, 1\]"),
        (("linear", 0, 0.1, 0.9), "0 is less than one step"),
        (("const", 4, 0.1, 1.0), r"diffusion_schedule\.linear_end: .*reaches β = 1"),
    ],
)
def test_impossible_schedules_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        beta_schedule(*arguments, apply_ldm=False)


def test_noising_at_any_step_is_equation_4():
    ddpm = LatentDDPM(timesteps=3, linear_start=0.2, linear_end=0.6)
    z, noise = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    t = torch.tensor([0, 2])
    out = ddpm.q_sample(z, noise, t)
    for row, cumulative in enumerate([0.8, 0.8 * 0.6 * 0.4]):
        expected = math.sqrt(cumulative) * z[row] + math.sqrt(1 - cumulative) * noise[row]
        torch.testing.assert_close(out[row], expected)


def test_the_textbook_start_is_an_option():
    z, noise = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    released = LatentDDPM(timesteps=3, linear_start=0.2, linear_end=0.6)
    textbook = LatentDDPM(timesteps=3, linear_start=0.2, linear_end=0.6, noising="textbook")
    a = 0.8 * 0.6 * 0.4
    torch.testing.assert_close(
        released.training_start(z, noise), a * z + math.sqrt(1 - a * a) * noise
    )
    torch.testing.assert_close(
        textbook.training_start(z, noise), math.sqrt(a) * z + math.sqrt(1 - a) * noise
    )


def test_reverse_noise_adds_the_last_term_of_equation_6():
    """With x0 = 0 each step is z ← coef2·z + √β·ε, and none is added in the last one."""
    ddpm = LatentDDPM(
        apply_ldm=True, schedule="sqrt_linear", timesteps=2, linear_start=0.2, linear_end=0.6,
        reverse_noise=True,
    )  # fmt: skip
    z = torch.randn(1, 2, 3)
    out = ddpm.reverse(
        lambda z, c, t: z if t == 0 else torch.zeros_like(z),
        z,
        torch.zeros_like(z),
        ddpm.draw_step_noise(z.shape, torch.Generator().manual_seed(1)),
    )
    epsilon = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(1))
    coef2 = (1 - 0.8) * math.sqrt(0.4) / (1 - 0.8 * 0.4)
    torch.testing.assert_close(out, coef2 * z + math.sqrt(0.6) * epsilon)
