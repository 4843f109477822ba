"""BasicSR's learning rate schedules against PyTorch's and against hand-made values."""

import pytest
import torch

from hidiff import UserError
from hidiff.engine.optim import build_lr_schedule


def rates(total_iter=12, **section):
    lr = build_lr_schedule(section, base_lr=0.1, total_iter=total_iter)
    return [lr(step) for step in range(1, total_iter + 1)]


def test_restarting_cosines_end_at_one_value():
    """Each cycle is PyTorch's cosine; where two meet, the first one ends."""
    ours = rates(
        type="CosineAnnealingRestartLR", periods=[5, 6], restart_weights=[1, 0.5], eta_min=0.01
    )
    expected = []
    for length, weight in ((5, 1), (6, 0.5)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.1)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, length, eta_min=0.01)
        for _ in range(length + 1):
            expected.append(0.01 + weight * (cosine.get_last_lr()[0] - 0.01))
            optimizer.step()
            cosine.step()
    del expected[6]  # the second cycle's first step is the first one's last
    assert ours == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["MultiStepLR", "MultiStepRestartLR"])
def test_steps_are_taken_again_after_a_restart(kind):
    ours = rates(
        type=kind, milestones=[2, 2, 4, 9], gamma=0.5, restarts=[0, 6], restart_weights=[1, 0.4]
    )
    halvings = [0, 0, 2, 2, 3, 3, 0, 0, 0, 1, 1, 1]
    weights = [1] * 6 + [0.4] * 6
    assert ours == pytest.approx([0.1 * w * 0.5**h for w, h in zip(weights, halvings, strict=True)])


def test_without_restarts_it_is_pytorch_s():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.1)
    reference = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 7], gamma=0.1)
    expected = []
    for _ in range(12):
        expected += reference.get_last_lr()
        optimizer.step()
        reference.step()
    assert rates(type="MultiStepRestartLR", milestones=[3, 7]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("section", "place"),
    [
        ({"type": "MultiStepLR", "milestones": [], "restarts": [0, 5]}, "restart_weights"),
        ({"type": "CosineAnnealingRestartLR", "periods": [5]}, "periods"),
        ({"type": "CosineAnnealingRestartLR", "periods": [12], "restart_weights": []}, ""),
    ],
)
def test_lists_that_do_not_fit_are_refused(section, place):
    with pytest.raises(UserError, match=rf"train\.scheduler.*{place}"):
        rates(**section)
