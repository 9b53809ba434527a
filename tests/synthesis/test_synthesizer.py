import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nayer_pl import DataFreeDistillation, FrozenTeacher, InputError, Synthesizer
from nayer_pl.losses.functional import kl_divergence

SHAPE = (1, 8, 8)


def cross_entropy(images, targets, teacher, student, warm_up):
    return {"loss": F.cross_entropy(teacher(images), targets)}


class Pixels(Synthesizer):
    """Gray images, to which every round adds pixels that it learns from zero."""

    def __init__(self, steps=12):
        super().__init__(cross_entropy, steps)
        self.pixels, self.rounds = nn.Parameter(torch.zeros(12, *SHAPE)), []

    def configure_optimizers(self):
        return [torch.optim.Adam([self.pixels], lr=0.1)]

    def start_round(self, targets, teacher, bank):
        self.rounds.append((len(bank), targets))
        self.pixels.data.zero_()

    def generate(self, targets):
        return (0.5 + self.pixels[: len(targets)]).clamp(0, 1)


def test_training(tiny_classifier, tiny_data, fit):
    """Without any of our methods: every round finds better images, and the student learns."""
    synthesizer, teacher = Pixels(), FrozenTeacher(tiny_classifier())
    student = tiny_classifier().eval()
    before = copy.deepcopy(student)
    method = DataFreeDistillation(teacher, student, synthesizer, check_teacher=False)
    data = tiny_data({"epochs": 3, "warmup_rounds": 3, "kd_steps": 20})
    fit(method, data)
    student.eval()
    images, labels = data.bank.images / 255, data.bank.labels
    firsts, targets = zip(*synthesizer.rounds, strict=True)
    assert firsts == (0, 12, 24, 36, 48, 60)
    assert torch.equal(torch.cat(targets), labels)
    loss = [F.cross_entropy(teacher(x), labels, reduction="none").view(6, 12).mean(1)
            for x in (images, torch.full_like(images, 0.5))]  # fmt: skip
    assert (loss[0] < loss[1] - 0.05).all()
    assert (method.rounds, method.synthesis_steps, method.student_updates) == (6, 6 * 12, 3 * 20)
    errors = [kl_divergence(net(images), teacher(images), 1).mean() for net in (before, student)]
    assert errors[1] < errors[0] / 3
    assert method.results()["images_banked"] == 72


@pytest.mark.parametrize("steps", [0, 1.5])
def test_steps(steps):
    with pytest.raises(InputError, match="steps must be"):
        Pixels(steps)
