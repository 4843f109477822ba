"""Curves for Weights & Biases; its package is replaced by a stand-in."""

import sys
import types

import pytest
from small_data import make_pairs, train_options
from small_training import train


class Refused(Exception):
    """As wandb.Error."""


@pytest.fixture
def options(tmp_path, monkeypatch):
    make_pairs(tmp_path / "train", 2)
    monkeypatch.chdir(tmp_path)
    options = train_options(tmp_path, 1, total_iter=2)
    del options["datasets"]["val"]
    options["logger"]["wandb"] = {"project": "deblurring", "resume_id": None}
    return options


def stand_in(monkeypatch, init):
    module = types.ModuleType("wandb")
    module.init, module.Error = init, Refused
    monkeypatch.setitem(sys.modules, "wandb", module)


def test_the_numbers_of_every_line_arrive(options, monkeypatch):
    started, logged = [], []

    def init(**arguments):
        started.append(arguments)
        return types.SimpleNamespace(log=lambda values, step: logged.append((step, values)))

    stand_in(monkeypatch, init)
    train(options)
    (run,) = started
    assert (run["project"], run["name"], run["id"], run["resume"]) == (
        "deblurring", "tiny_S1", "tiny_S1", "allow",
    )  # fmt: skip
    assert run["config"]["train"]["total_iter"] == 2
    assert [step for step, _ in logged] == [1, 2]
    assert {"losses/l_pix", "train/lr", "speed/steps_per_second"} <= logged[0][1].keys()


def test_without_a_login_the_run_goes_on(options, monkeypatch, capsys):
    def init(**arguments):
        raise Refused("api_key not configured (no-tty).")

    stand_in(monkeypatch, init)
    assert train(options).state.step == 2
    assert "logger.wandb: api_key not configured" in capsys.readouterr().out


def test_without_the_package_the_run_goes_on(options, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert train(options).state.step == 2
    assert "pip install wandb" in capsys.readouterr().out


def test_without_a_project_nothing_is_asked_for(options, monkeypatch):
    stand_in(monkeypatch, lambda **arguments: pytest.fail("started"))
    options["logger"]["wandb"]["project"] = None
    train(options)
