import copy
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim import SGD

from nayer_pl import BankOptions, DataFreeDistillation, FrozenTeacher, OnlineSynthesizer
from nayer_pl.bank import SynthesisRound

SHAPE = (1, 8, 8)
PLAN = {
    "epochs": 4, "warmup_epochs": 0, "rounds_per_epoch": 3, "kd_steps": 6, "interleaved": True,
}  # fmt: skip
LR, STUDENT_LR = 0.02, 0.05


def bright(images, targets, teacher, student, warm_up):
    """The generator only tries to make bright images."""
    return {"loss": -images.mean()}


@pytest.fixture
def method(tiny_classifier):
    layers = nn.Linear(6, 64), nn.Sigmoid(), nn.Unflatten(1, SHAPE)
    synthesizer = OnlineSynthesizer(nn.Sequential(*layers), 6, bright, 2, LR, (0.9, 0.999))
    teacher, optimizer = FrozenTeacher(tiny_classifier()), partial(SGD, lr=STUDENT_LR)
    return DataFreeDistillation(
        teacher, tiny_classifier(), synthesizer, optimizer=optimizer, check_teacher=False
    )


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


@pytest.fixture
def found(method, tiny_data, fit):
    """A run that was watched, and the images that the student saw."""
    seen, witness, objective = [], Witness(), method.student_objective
    method.student_objective = lambda *batch: seen.append(batch[0].clone()) or objective(*batch)
    teacher = copy.deepcopy(method.teacher.state_dict())
    data = tiny_data(PLAN, bank=BankOptions(capacity=12))
    fit(method, data, callbacks=[witness])
    assert all(torch.equal(teacher[k], v) for k, v in method.teacher.state_dict().items())
    return data.bank, witness, seen


def test_turns(method, found):
    bank, witness, _ = found
    assert witness.kinds == 4 * "RBBRBBRBB"
    assert (method.rounds, method.synthesis_steps, method.student_updates) == (12, 24, 24)
    assert (len(bank), bank.num_added) == (12, 12 * 12)
    assert method.results()["images_kept"] == 12
    assert method.results()["images_banked"] == 12 * 12


def test_student_images(found):
    """New ones in every step, and none of the bank."""
    bank, _, seen = found
    assert all(images.shape == (8, *SHAPE) for images in seen)
    flat = torch.cat(seen).flatten(1)
    assert len(flat.unique(dim=0)) == len(flat) == 24 * 8
    assert torch.cdist(flat, bank.images.flatten(1) / 255).min() > 0


def test_generator(found):
    """It learns over turns, and its learning rate falls with the student's."""
    _, witness, _ = found
    assert witness.brightness[-1] > witness.brightness[0] + 10
    assert all(own / LR == pytest.approx(student / STUDENT_LR) for student, own in witness.lrs)
    assert witness.lrs[-1][1] < witness.lrs[0][1]


def test_labels(method, found):
    """They are what the teacher sees, so no agreement is claimed."""
    bank, *_ = found
    assert torch.equal(method.teacher.classifier(bank.images / 255).argmax(1), bank.labels)
    assert method.results()["label_agreement"] is None


def test_capacity(method, tiny_data, fit):
    """By itself the bank has room for one turn."""
    data = tiny_data({**PLAN, "epochs": 1})
    fit(method, data)
    assert data.bank.capacity == len(data.bank) == 12
