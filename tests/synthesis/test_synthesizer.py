"""`OnlineSynthesizer`; rounds that fill a bank are in tests/methods/test_rounds.py."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim import SGD

from nayer_pl import DataFreeDistillation, FrozenTeacher, OnlineSynthesizer
from nayer_pl.bank import SynthesisRound

PLAN = {
    "epochs": 4, "warmup_epochs": 0, "rounds_per_epoch": 3, "kd_steps": 6, "interleaved": True,
}  # fmt: skip
LR, STUDENT_LR = 0.02, 0.05


class Witness(Callback):
    """What happens in each item."""

    def __init__(self):
        self.kinds, self.brightness, self.lrs = "", [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.kinds += "RB"[not isinstance(batch, SynthesisRound)]
        self.lrs.append([each.param_groups[0]["lr"] for each in trainer.optimizers])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if isinstance(batch, SynthesisRound):
            self.brightness.append(float(trainer.datamodule.bank.images.float().mean()))


@pytest.mark.parametrize("follow_student", [True, False])
def test_turns(tiny_classifier, tiny_data, fit, follow_student):
    """They are banked with the teacher's answers; each step of the student has its own images."""
    bright = lambda images, *_: {"loss": -images.mean()}  # noqa: E731
    layers = nn.Sequential(nn.Linear(6, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8)))
    options = {"steps": 2, "lr": LR, "betas": (0.9, 0.999), "follow_student": follow_student}
    synthesizer, seen, witness = OnlineSynthesizer(layers, 6, bright, **options), [], Witness()
    draw = synthesizer.student_images
    synthesizer.student_images = lambda count: seen.append(draw(count)) or seen[-1]
    teacher, student = FrozenTeacher(tiny_classifier()), tiny_classifier()
    sgd = partial(SGD, lr=STUDENT_LR)
    method = DataFreeDistillation(teacher, student, synthesizer, optimizer=sgd, check_teacher=False)
    data = tiny_data(PLAN)
    fit(method, data, callbacks=[witness])

    assert torch.equal(teacher.classifier(data.bank.images / 255).argmax(1), data.bank.labels)
    assert witness.kinds == 4 * "RBBRBBRBB"
    assert (method.rounds, method.synthesis_steps, method.student_updates) == (12, 24, 24)
    counts = {"images_kept": 12, "images_banked": 12 * 12, "label_agreement": None}
    assert counts.items() <= method.results().items()
    assert not any(images.requires_grad for images in seen)
    flat = torch.cat(seen).flatten(1)
    assert len(flat.unique(dim=0)) == len(flat) == 24 * 8
    assert torch.cdist(flat, data.bank.images.flatten(1) / 255).min() > 0
    assert witness.brightness[-1] > witness.brightness[0] + 10  # it learns over turns

    students, own = zip(*witness.lrs, strict=True)
    assert students[-1] < 0.2 * students[0]
    assert own == pytest.approx([r / STUDENT_LR * LR if follow_student else LR for r in students])
