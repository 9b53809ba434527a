"""What all methods without a memory promise, on the smallest of them."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from nayer_pl import BankOptions
from nayer_pl.bank import SynthesisRound
from nayer_pl.distillation.online import OnlineDistillation

SHAPE = (1, 8, 8)
PLAN = {
    "epochs": 2, "warmup_epochs": 0, "rounds_per_epoch": 3, "kd_steps": 6, "interleaved": True,
}  # fmt: skip


class Bright(OnlineDistillation):
    """Its generator only tries to make bright images."""

    def judge(self, images):
        return {"loss": -images.mean()}


@pytest.fixture
def bright(tiny_classifier):
    def make(**options):
        defaults = {"learning_rate": 0.05, "check_teacher": False, "generator_steps": 2}
        teacher, student = tiny_classifier(), tiny_classifier()
        return Bright(teacher, student, SHAPE, noise_features=6, **{**defaults, **options})

    return make


def test_generator_and_student_take_turns(bright, tiny_data, fit):
    kinds = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            kinds.append("RB"[not isinstance(batch, SynthesisRound)])

    method = bright()
    fit(method, tiny_data(PLAN, bank=BankOptions(capacity=12)), callbacks=[Watch()])
    assert "".join(kinds) == 2 * "RBBRBBRBB"
    assert (method.rounds, method.synthesis_steps, method.student_updates) == (6, 12, 12)


def test_every_student_step_sees_new_images_and_none_of_the_bank(bright, tiny_data, fit):
    method, seen = bright(), []
    loss = method.student_loss
    method.student_loss = lambda images: seen.append(images.clone()) or loss(images)
    data = tiny_data(PLAN, bank=BankOptions(capacity=12))
    fit(method, data)
    assert len(data.bank) == 12
    assert all(images.shape == (8, *SHAPE) for images in seen)
    flat = torch.cat(seen).flatten(1)
    assert len(flat.unique(dim=0)) == len(flat) == 96
    banked = data.bank.images.flatten(1) / 255
    assert torch.cdist(flat, banked).min() > 0


def test_generator_learns_over_turns_and_its_rate_falls_with_the_students(bright, tiny_data, fit):
    method, brightness, rates = bright(generator_lr=0.02), [], []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append([o.param_groups[0]["lr"] for o in trainer.optimizers])

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if isinstance(batch, SynthesisRound):
                brightness.append(float(trainer.datamodule.bank.images.float().mean()))

    teacher = copy.deepcopy(method.teacher.state_dict())
    fit(
        method, tiny_data({**PLAN, "epochs": 4}, bank=BankOptions(capacity=12)), callbacks=[Watch()]
    )
    assert brightness[-1] > brightness[0] + 10
    assert all(own / 0.02 == pytest.approx(students / 0.05) for students, own in rates)
    assert rates[-1][1] < rates[0][1]
    assert all(torch.equal(teacher[k], v) for k, v in method.teacher.state_dict().items())


def test_labels_are_what_the_teacher_sees_and_no_agreement_is_claimed(bright, tiny_data, fit):
    method, data = bright(), tiny_data(PLAN, bank=BankOptions(capacity=12))
    fit(method, data)
    assert torch.equal(method.teacher(data.bank.images / 255).argmax(1), data.bank.labels)
    assert method.results()["label_agreement"] is None
    assert method.results()["images_kept"] == 12
    assert method.results()["images_banked"] == 6 * 12


def test_the_bank_has_room_for_one_turn(bright, tiny_data, fit):
    data = tiny_data({**PLAN, "round_size": 12})
    fit(bright(), data)
    assert data.bank.capacity == len(data.bank) == 12
    assert data.bank.num_added == 2 * 3 * 12
