import copy
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim import SGD

from nayer_pl import DataFreeDistillation, FrozenTeacher, OnlineSynthesizer
from nayer_pl.bank import SynthesisRound

SHAPE = (1, 8, 8)
PLAN = {
    "epochs": 4, "warmup_epochs": 0, "rounds_per_epoch": 3, "kd_steps": 6, "interleaved": True,
}  # fmt: skip
LR, STUDENT_LR = 0.02, 0.05


def bright(images, targets, teacher, student, warm_up):
    """The generator only tries to make bright images."""
    return {"loss": -images.mean()}


class Witness(Callback):
    """What happens in each item, and the images that the student sees."""

    def __init__(self):
        self.kinds, self.brightness, self.lrs, self.seen = "", [], [], []

    def on_fit_start(self, trainer, method):
        def watched(images, labels):
            self.seen.append(images)
            return objective(images, labels)

        objective, method.student_objective = method.student_objective, watched

    def on_train_batch_start(self, trainer, method, item, i):
        self.kinds += "RB"[not isinstance(item, SynthesisRound)]
        self.lrs.append([each.param_groups[0]["lr"] for each in trainer.optimizers])

    def on_train_batch_end(self, trainer, method, outputs, item, i):
        if isinstance(item, SynthesisRound):
            self.brightness.append(float(trainer.datamodule.bank.images.float().mean()))


@pytest.fixture
def run(tiny_classifier, tiny_data, fit):
    def run(**options):
        generator = nn.Sequential(nn.Linear(6, 64), nn.Sigmoid(), nn.Unflatten(1, SHAPE))
        synthesizer = OnlineSynthesizer(generator, 6, bright, 2, LR, (0.9, 0.999), **options)
        teacher, optimizer = FrozenTeacher(tiny_classifier()), partial(SGD, lr=STUDENT_LR)
        method = DataFreeDistillation(
            teacher, tiny_classifier(), synthesizer, optimizer=optimizer, check_teacher=False
        )
        data, witness = tiny_data(PLAN), Witness()
        before = copy.deepcopy(teacher.state_dict())
        fit(method, data, callbacks=[witness])
        assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
        return method, data.bank, witness

    return run


def test_turns(run):
    """Generator and student take turns; the bank has room for one."""
    method, bank, witness = run()
    assert witness.kinds == 4 * "RBBRBBRBB"
    assert (method.rounds, method.synthesis_steps, method.student_updates) == (12, 24, 24)
    assert (bank.capacity, len(bank), bank.num_added) == (12, 12, 12 * 12)
    assert witness.brightness[-1] > witness.brightness[0] + 10
    results = method.results()
    assert (results["images_kept"], results["images_banked"]) == (12, 12 * 12)
    # Labels are what the teacher sees, so no agreement is claimed.
    assert torch.equal(method.teacher.classifier(bank.images / 255).argmax(1), bank.labels)
    assert results["label_agreement"] is None


def test_student_images(run):
    """New ones in every step, without a gradient, and none of the bank."""
    _, bank, witness = run()
    assert all(images.shape == (8, *SHAPE) for images in witness.seen)
    assert not any(images.requires_grad for images in witness.seen)
    flat = torch.cat(witness.seen).flatten(1)
    assert len(flat.unique(dim=0)) == len(flat) == 24 * 8
    assert torch.cdist(flat, bank.images.flatten(1) / 255).min() > 0


@pytest.mark.parametrize("follow_student", [True, False])
def test_learning_rate(run, follow_student):
    """It falls with the student's, or stays."""
    *_, witness = run(follow_student=follow_student)
    student, generator = map(torch.tensor, zip(*witness.lrs, strict=True))
    assert len(student.unique()) == PLAN["epochs"]
    share = student / STUDENT_LR if follow_student else torch.ones(len(student))
    torch.testing.assert_close(generator / LR, share)
