import math
from functools import partial

import pytest
import torch
from torch.optim import lr_scheduler

from nayer_pl.distillation.student import build_scheduler, step_decay
from nayer_pl.runtime.options import OptionError

EPOCHS, LR = 20, 0.2


def one_cycle(epoch, peak=5):
    """A cosine from LR / 25 up to LR at the peak, and one down to LR / 25e4 at the end."""
    low, share = (LR / 25, epoch / peak - 1) if epoch <= peak else (LR / 25e4, None)
    share = share if share is not None else (epoch - peak) / (EPOCHS - 1 - peak)
    return low + (LR - low) * (1 + math.cos(math.pi * share)) / 2


SCHEDULES = {
    "cosine": (
        partial(lr_scheduler.CosineAnnealingLR, eta_min=0.01),
        lambda epoch: 0.01 + (LR - 0.01) * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2,
    ),
    "cosine of another length": (
        partial(lr_scheduler.CosineAnnealingLR, T_max=40),
        lambda epoch: LR * (1 + math.cos(math.pi * epoch / 40)) / 2,
    ),
    "one cycle": (partial(lr_scheduler.OneCycleLR, max_lr=LR, pct_start=0.3), one_cycle),
    "one cycle of another length": (
        partial(lr_scheduler.OneCycleLR, max_lr=LR, pct_start=0.3, epochs=5, steps_per_epoch=4),
        one_cycle,
    ),
    "polynomial": (
        partial(lr_scheduler.PolynomialLR, power=2),
        lambda epoch: LR * (1 - epoch / EPOCHS) ** 2,
    ),
    "step": (partial(lr_scheduler.StepLR, step_size=6), lambda epoch: LR * 0.1 ** (epoch // 6)),
    "shares": (
        partial(step_decay, milestones=[0.42, 0.8], decay=0.1),
        lambda epoch: LR * 0.1 ** ((epoch >= 8) + (epoch >= 16)),
    ),
    "function": (
        lambda optimizer, total_iters: lr_scheduler.ConstantLR(optimizer, 0.5, total_iters),
        lambda epoch: LR * (0.5 if epoch < EPOCHS else 1),
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rate_of_each_epoch(name):
    scheduler, expected = SCHEDULES[name]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    built = build_scheduler(scheduler, optimizer, EPOCHS)
    found = []
    for _ in range(EPOCHS):
        found += built.get_last_lr()
        optimizer.step()
        if len(found) < EPOCHS:
            built.step()
    assert found == pytest.approx([expected(epoch) for epoch in range(EPOCHS)])


@pytest.mark.parametrize(
    ("option", "value"), [("epochs", 0), ("milestones", [0.4, 1.2]), ("decay", 0)]
)
def test_step_decay__options(option, value):
    options = {"epochs": EPOCHS, "milestones": [0.4], "decay": 0.1, option: value}
    with pytest.raises(OptionError, match=option):
        step_decay(torch.optim.SGD([torch.zeros(1)], lr=LR), **options)
