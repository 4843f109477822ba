"""What is seen of a run: console, log file, TensorBoard, Weights & Biases, speed."""

import errno
import re
import sys
import types

import pytest
from small_training import build, log_of, quick_options, train

from hidiff import UserError
from hidiff.data import BatchPlan
from hidiff.engine.logger import MetricsWriter, start_logging
from hidiff.engine.speed import WARM_UP, Speed, duration
from hidiff.options import Phase


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def full_disk(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_file_that_cannot_be_written_ends_the_run(tmp_path, monkeypatch):
    log = start_logging(is_main=True, file=tmp_path / "a.log")
    log.info("one")
    monkeypatch.setattr(log.handlers[1].stream, "write", full_disk)
    with pytest.raises(UserError, match=r"a\.log.*No space left"):
        log.info("two")
    assert "one" in (tmp_path / "a.log").read_text()


def test_other_processes_show_warnings_only(capsys):
    log = start_logging(is_main=False)
    log.info("progress")
    log.warning("trouble")
    assert capsys.readouterr().out == "trouble\n"


@pytest.mark.parametrize("when", ["at the start", "later"])
def test_tensorboard_is_switched_off_where_it_fails(tmp_path, capsys, when):
    start_logging(is_main=True)
    if when == "at the start":
        (tmp_path / "tb_logger").touch()
    writer = MetricsWriter(tmp_path / "tb_logger" / "run")
    if when == "later":
        writer._writer.add_scalar = full_disk
    for step in (1, 2):
        writer.scalars({"loss": 0.5}, step)
    writer.close()
    assert capsys.readouterr().out.count("TensorBoard") == 1


class Refused(Exception):
    """As wandb.Error."""


def wandb_options(data):
    options = quick_options(data, total_iter=1)
    options["logger"] |= {"wandb": {"project": "deblurring"}, "use_tb_logger": True}
    return options


def stand_in(monkeypatch, init):
    module = types.ModuleType("wandb")
    module.init, module.Error = init, Refused
    monkeypatch.setitem(sys.modules, "wandb", module)


def test_wandb_follows_tensorboard(data, monkeypatch):
    started = []
    stand_in(monkeypatch, lambda **arguments: started.append(arguments))
    train(wandb_options(data))
    (run,) = started
    assert run["sync_tensorboard"]
    assert (run["project"], run["name"], run["id"]) == ("deblurring", "quick", "quick")
    assert run["config"]["train"]["total_iter"] == 1


@pytest.mark.parametrize("missing", ["login", "package"])
def test_without_wandb_the_run_goes_on(data, monkeypatch, missing):
    def init(**arguments):
        raise Refused("api_key not configured (no-tty).")

    stand_in(monkeypatch, init)
    if missing == "package":
        monkeypatch.setitem(sys.modules, "wandb", None)
    assert train(wandb_options(data)).state.step == 1
    assert "logger.wandb: " in log_of()


@pytest.mark.parametrize(
    ("change", "warned"), [({"wandb": {"project": None}}, 0), ({"use_tb_logger": False}, 1)]
)
def test_wandb_without_a_project_or_tensorboard_is_left_alone(data, monkeypatch, change, warned):
    stand_in(monkeypatch, lambda **arguments: pytest.fail("started"))
    options = wandb_options(data)
    options["logger"] |= change
    train(options)
    assert log_of().count("logger.wandb has no effect") == warned


def test_a_line_has_the_figures_of_the_step(data):
    options = quick_options(data)
    options["logger"]["print_freq"] = 2
    train(options)
    lines = [line for line in log_of().splitlines() if re.search(r"INFO: step \d/", line)]
    assert len(lines) == 2
    for figure in (
        r"phase 1, lr [\d.e+-]+, l_pix [\d.]+, gradient norm [\d.]+",
        r"[\d.]+ steps/s, \d+ s left, \d+% spent waiting for data",
    ):
        assert re.search(figure, lines[0]), figure


PHASES = tuple(
    Phase(iters=iters, batch_size=batch, patch_size=size)
    for iters, batch, size in ((100, 4, 32), (50, 2, 64), (50, 1, 128))
)


def measured(steps, seconds, between=lambda step: 0.0):
    """A `Speed` after these steps of the phases."""
    now = [0.0]
    plan = BatchPlan(PHASES, 1)
    speed = Speed(plan, 200, lambda: now[0])
    for step in range(1, steps + 1):
        now[0] += seconds(plan.phase_index(step)) + between(step)
        speed.step(step)
    return speed


def test_the_time_left_follows_from_the_pixels_of_the_phases_to_come():
    speed = measured(40, lambda phase: 1.0)
    assert speed.seconds(0) == pytest.approx(1)
    assert speed.seconds_left(40) == pytest.approx(60 + 50 * 2 + 50 * 4)
    speed = measured(120, lambda phase: (1.0, 3.0)[phase])
    assert speed.seconds_left(120) == pytest.approx(30 * 3 + 50 * 6)
    assert speed.seconds_left(200) == 0


def test_first_steps_do_not_count_and_validations_do():
    times = iter([50.0] * WARM_UP + [1.0] * 10)
    assert measured(WARM_UP + 10, lambda phase: next(times)).seconds(0) == pytest.approx(1)
    speed = measured(50, lambda phase: 1.0, between=lambda step: 10.0 * (step % 10 == 0))
    assert speed.seconds(0) == pytest.approx(2, rel=0.1)


def test_figures_are_those_since_the_last_line():
    speed = measured(10, lambda phase: 0.5)
    assert speed.since_last(1.0) == pytest.approx({"steps_per_second": 2, "waiting": 0.2})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"), (8, "8 s"), (200, "3 min 20 s"), (7500.2, "2 h 5 min"),
        (3 * 86400 + 4 * 3600 + 59, "3 d 4 h"), (59.7, "1 min 0 s"),
    ],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_failure_stands_in_the_log_and_nothing_is_said_twice(data):
    run = build(quick_options(data))
    run.gradients.accumulate = None
    with pytest.raises(TypeError):
        run.run()
    assert log_of().count("ERROR: process 0 of 1 failed") == 1
