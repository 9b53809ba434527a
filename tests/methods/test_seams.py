"""The parts of every method that can be exchanged: of the student, and the augmentation."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim import RMSprop
from torch.optim.lr_scheduler import ExponentialLR

from nayer_pl import (
    CMI,
    DAFL,
    DFAD,
    DFQ,
    NAYER,
    ZSKT,
    DeepInversion,
    FastDFKD,
    Generator,
    InputError,
    KnowledgeDistillation,
    RealDataModule,
)
from nayer_pl.bank import SynthesisRound
from nayer_pl.data import ImageSet

SHAPE, CLASSES, LR = (1, 8, 8), 3, 0.01
ROUND = {"generator_steps": 2, "round_size": 12}
NOISE = {"noise_features": 8, "generator": partial(Generator, width=4)}
LABEL_TEXT = {"label_text": torch.eye(CLASSES), "noisy_features": 16}
BANKED = [
    (NAYER, {"generator": NOISE["generator"], **LABEL_TEXT, **ROUND}),
    (FastDFKD, {**NOISE, **ROUND}),
    (CMI, {**NOISE, **ROUND, "embedding_features": 8}),
    (DeepInversion, {"image_steps": 2, "round_size": 12}),
]
ONLINE = [(DAFL, NOISE), (DFAD, NOISE), (DFQ, NOISE), (ZSKT, {**NOISE, "round_size": 12})]
EVERY = [*BANKED, *ONLINE, (KnowledgeDistillation, {})]
every_method = pytest.mark.parametrize(
    ("method", "options"), EVERY, ids=[each.__name__ for each, _ in EVERY]
)


class Real:
    def load(self, split):
        rng = torch.Generator().manual_seed(3)
        images = torch.randint(256, (16, *SHAPE), dtype=torch.uint8, generator=rng)
        return ImageSet(images, torch.randint(CLASSES, (16,), generator=rng))


class Spy(Callback):
    """A student's loss, and what it is given; of the data module, the targets."""

    def __init__(self):
        self.logits, self.labels, self.targets, self.made = [], [], [], []

    def __call__(self, student_logits, teacher_logits, labels):
        assert not teacher_logits.requires_grad
        self.logits.append(teacher_logits)
        self.labels.append(labels.clone())
        return F.cross_entropy(student_logits, labels) + F.l1_loss(student_logits, teacher_logits)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if isinstance(batch, SynthesisRound):
            self.made.append(batch.targets)
        else:
            self.targets.append(batch[1].clone())


@every_method
def test_exchange(method, options, tiny_classifier, tiny_data, fit):
    spy, real, online = Spy(), method is KnowledgeDistillation, (method, options) in ONLINE
    networks = tiny_classifier(), tiny_classifier()
    built = method(
        *networks, SHAPE, **options, check_teacher=False, student_loss=spy,
        optimizer=partial(RMSprop, lr=LR), scheduler=partial(ExponentialLR, gamma=0.5),
    )  # fmt: skip
    if online:  # no class is everybody's favorite
        with torch.no_grad():
            images = built.synthesizer.generator(torch.randn(64, NOISE["noise_features"]))
            networks[0].network.head.bias -= networks[0](images).mean(0)
    before = {name: weight.clone() for name, weight in built.student.named_parameters()}
    plan = {"epochs": 1, "warmup_epochs": 0, "kd_steps": 2, "interleaved": online}
    data = RealDataModule(Real(), batch_size=8, epochs=1) if real else tiny_data(plan)
    trainer = fit(built, data, callbacks=[spy])

    assert len(spy.labels) == built.student_updates == 2
    expected = [logits.argmax(1) for logits in spy.logits] if online else spy.targets
    assert all(map(torch.equal, spy.labels, expected))
    assert len(torch.cat(spy.labels).unique()) > 1
    if not (real or online):  # the bank's labels are those that the images were made for
        assert torch.equal(data.bank.labels, spy.made[0])
    assert isinstance(trainer.optimizers[0], RMSprop)
    halved = 2 if real else 1  # after every step, or every epoch
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(LR * 0.5**halved)
    learned = dict(built.student.named_parameters())
    assert not any(torch.equal(before[name], weight) for name, weight in learned.items())


@every_method
def test_optimizer__cannot_be_built(method, options, tiny_classifier):
    networks = tiny_classifier(), tiny_classifier()
    with pytest.raises(InputError, match=r"The optimizer cannot be built: .*learning rate"):
        method(*networks, SHAPE, **options, optimizer=partial(RMSprop, lr=-1.0))


@pytest.mark.parametrize(("method", "options"), [*BANKED, *ONLINE])
def test_augmentation(method, options, tiny_classifier, tiny_data, fit):
    """Any callable takes the place of RandomCropFlip; its images are judged, but not banked."""
    made, judged = [], []

    def negative(images, rng):
        assert rng is synthesizer.rng
        return 1 - images

    networks = tiny_classifier(), tiny_classifier()
    built = method(*networks, SHAPE, **options, check_teacher=False, augmentation=negative)
    synthesizer, generate = built.synthesizer, built.synthesizer.generate
    synthesizer.generate = lambda targets: made.append(generate(targets)) or made[-1]
    judge = synthesizer.criterion
    if isinstance(judge, nn.Module):
        judge.register_forward_pre_hook(lambda _, inputs: judged.append(inputs[0]))
    else:
        synthesizer.criterion = lambda images, *rest: judged.append(images) or judge(images, *rest)
    data = tiny_data({"epochs": 1, "warmup_epochs": 0, "interleaved": (method, options) in ONLINE})
    fit(built, data, limit_train_batches=1)
    assert len(made) == synthesizer.steps
    assert all(torch.equal(1 - plain, seen) for plain, seen in zip(made, judged, strict=True))
    banked = data.bank.images.float() / 255
    near = [torch.allclose(banked, each, rtol=0, atol=0.51 / 255) for each in made]
    assert any(near)
    assert not any(torch.allclose(banked, each, rtol=0, atol=0.1) for each in judged)
