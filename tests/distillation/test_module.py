import copy
import csv
import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.optim import SGD

from nayer_pl import Classifier, DivergenceError, InputError
from nayer_pl.bank import DistillationBatch, SynthesisRound
from nayer_pl.data import ImageSet


def copied(net):
    return copy.deepcopy(net.state_dict())


def changed(before, net):
    return {
        name for name, tensor in net.state_dict().items() if not torch.equal(before[name], tensor)
    }


def parameters(net):
    return {name for name, _ in net.named_parameters()}


def accuracies(method, images, labels):
    """By plain counting, as a run reports them."""
    networks = method.student.eval(), method.teacher.classifier
    own, theirs = (net(images / 255).argmax(1) for net in networks)
    pairs = {
        "student_accuracy": own == labels, "teacher_accuracy": theirs == labels,
        "agreement": own == theirs,
    }  # fmt: skip
    return {name: pytest.approx(hits.float().mean().item()) for name, hits in pairs.items()}


# A run


def test_fit(tiny_method, tiny_data, fit, tmp_path):
    """What it changes, and what it leaves behind: results, metrics by update, plain checkpoints."""
    method, data = tiny_method(), tiny_data({"rounds_per_epoch": 2})
    teacher, student = copied(method.teacher), copied(method.student)
    saver, logger = ModelCheckpoint(tmp_path, "last"), CSVLogger(tmp_path, name="", version="")
    trainer = fit(method, data, logger=logger, enable_checkpointing=True, callbacks=[saver])
    assert not changed(teacher, method.teacher)
    assert parameters(method.student) <= changed(student, method.student)
    assert method.exported_classifier is method.student
    assert data.bank.num_added == len(data.bank) == (2 + 2 * 2) * 12
    assert accuracies(method, *data.source.load("evaluation")).items() <= method.results().items()

    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    steps = {"synthesis/loss": "000033", "val/agreement": "36", "distillation/loss": "123456"}
    for name, expected in steps.items():
        assert "".join(row["step"] for row in rows if row[name]) == expected

    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["progress"] == {"student_updates": 6, "rounds": 6}
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    weights = torch.load(tmp_path / "weights.ckpt", weights_only=False)
    for state in (content["state_dict"], weights["state_dict"]):
        assert {name.partition(".")[0] for name in state} == {"student"}
        for name, tensor in method.student.network.state_dict().items():
            assert torch.equal(state[f"student.network.{name}"], tensor)


def test_fit__holdout(tiny_method, tiny_data, fit):
    """And without any logging."""
    method, data = tiny_method(), tiny_data(evaluation=False, holdout=0.25)
    fit(method, data, log_every_n_steps=0)
    results, images = method.results(), data.holdout.images
    assert results["student_accuracy"] is results["teacher_accuracy"] is None
    assert results["agreement"] == accuracies(method, images, 0)["agreement"]
    assert (len(images), method.student_updates) == (4 * 3, 6)


def test_fit__default_trainer(tiny_method, tiny_data, tmp_path):
    """Sanity check, checkpoints, a logger: as in a notebook."""
    method = tiny_method()
    trainer = Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path)
    trainer.fit(method, datamodule=tiny_data({"warmup_epochs": 0}))
    assert method.student_updates == 6


def test_validate(tiny_method, tiny_data, tmp_path):
    """Without a fit; and then with other labels."""
    method, trainer = tiny_method(), Trainer(logger=False, default_root_dir=tmp_path)
    images, labels = tiny_data().source.load("evaluation")
    for given in (labels, torch.zeros_like(labels)):
        data = tiny_data()
        data.source.load = lambda _, given=given: ImageSet(images, given)
        trainer.validate(method, datamodule=data)
        expected = accuracies(method, images, given)
        assert {f"val/{name}": value for name, value in expected.items()} == {
            name: float(value) for name, value in trainer.callback_metrics.items()
        }


# The student's side


def test_student_step__plain_torch(tiny_method, tiny_data, fit):
    """SGD written out: momentum, weight decay, KL at temperature 20 times 400, and a cosine."""
    method = tiny_method(optimizer=partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.01))
    twin, batches = copy.deepcopy(method.student), []

    def keep(trainer, module, batch, i):
        if isinstance(batch, DistillationBatch):
            batches.append(batch.images.clone())

    plan = {"epochs": 2, "warmup_epochs": 2}
    fit(method, tiny_data(plan), callbacks=[LambdaCallback(on_train_batch_start=keep)])
    twin.train()
    velocity = [torch.zeros_like(p) for p in twin.parameters()]
    rates = [0.05] * 3 + [(0.05 + 2e-4) / 2] * 3
    for rate, images in zip(rates, batches, strict=True):
        target = F.softmax(method.teacher.classifier(images) / 20, dim=1)
        logs = F.log_softmax(twin(images) / 20, dim=1)
        loss = (target * (target.log() - logs)).sum(1).mean() * 400
        grads = torch.autograd.grad(loss, list(twin.parameters()))
        with torch.no_grad():
            for p, g, v in zip(twin.parameters(), grads, velocity, strict=True):
                v.mul_(0.9).add_(g + 0.01 * p)
                p.sub_(rate * v)
    for key, value in method.student.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[key], rtol=1e-4, atol=1e-5)


# Numbers that are not finite


def nan_at(parameter, call):
    """Make the gradient of `parameter` NaN at its `call`-th backward pass."""
    calls = itertools.count(1)
    parameter.register_hook(lambda grad: grad * math.nan if next(calls) == call else None)


def test_nan__distillation_loss(tiny_method, tiny_data, fit, tmp_path):
    """It stops the run before the next checkpoint."""

    def spoil(trainer, module):
        if trainer.current_epoch == 2:
            torch.nn.init.constant_(module.student.network.head.weight, torch.nan)

    callbacks = [ModelCheckpoint(tmp_path, "last"), LambdaCallback(on_train_epoch_start=spoil)]
    options = {"enable_checkpointing": True, "log_every_n_steps": 50, "callbacks": callbacks}
    with pytest.raises(DivergenceError, match="distillation loss became nan"):
        fit(tiny_method(), tiny_data({"rounds_per_epoch": 0}), **options)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in kept.values())


def test_nan__synthesis_gradient(tiny_method, tiny_data, fit):
    """It stops the run before the images are banked."""
    method, data = tiny_method(generator_steps=4), tiny_data()
    nan_at(method.synthesizer.generator.layers[0].weight, 4 + 3)
    with pytest.raises(DivergenceError, match=r"gradient .* became nan at step 3 of round 2"):
        fit(method, data)
    assert len(data.bank) == 12


def test_nan__student_gradient(tiny_method, tiny_data, fit):
    """It stops the run before the student changes; and the same object can be trained again."""
    method, before = tiny_method(), {}
    keep = LambdaCallback(on_train_batch_start=lambda *_: before.update(copied(method.student)))
    nan_at(method.student.network.head.weight, 5)
    with pytest.raises(DivergenceError, match=r"gradient .* became nan at student update 5"):
        fit(method, tiny_data(), callbacks=[keep], log_every_n_steps=50)
    assert method.student_updates == 4
    assert not parameters(method.student) & changed(before, method.student)
    fit(method, tiny_data())
    assert copy.deepcopy(method).results()["student_updates"] == 4 + 6


# What does not fit


@pytest.mark.parametrize("common", ["classifier", "network", "weights"])
def test_init__shared_weights(tiny_method, tiny_classifier, common):
    teacher, student = tiny_classifier(), tiny_classifier()
    if common == "classifier":
        student = teacher
    elif common == "network":
        student = Classifier(teacher.network, [0.5], [0.5])
    else:
        student.network.head.weight = teacher.network.head.weight
    with pytest.raises(InputError, match=r"same object, or have .* in common"):
        tiny_method(teacher=teacher, student=student)


def test_fit__other_datamodule(tiny_method, fit):
    class Data(LightningDataModule):
        max_epochs = 1

        def train_dataloader(self):
            return [SynthesisRound(torch.arange(3), True)]

    with pytest.raises(InputError, match="SyntheticDataModule"):
        fit(tiny_method(), Data())


@pytest.mark.parametrize(
    ("classes", "epochs", "message"),
    [
        *((3, epochs, "max_epochs must be from 1 to the plan's 3") for epochs in (-1, None, 4)),
        (4, 3, "student has 4 outputs, but the data set has 3 classes"),
    ],
)
def test_fit__sizes(tiny_method, tiny_data, tiny_classifier, fit, classes, epochs, message):
    method = tiny_method(student=tiny_classifier(classes=classes))
    with pytest.raises(InputError, match=message):
        fit(method, tiny_data(), max_epochs=epochs)
