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


def copied(net):
    return copy.deepcopy(net.state_dict())


def changed(before, net):
    return {
        name for name, tensor in net.state_dict().items() if not torch.equal(before[name], tensor)
    }


def share(hits):
    return pytest.approx(hits.float().mean().item())


def answers(method, images):
    """Of student and teacher."""
    networks = method.student.eval(), method.teacher.classifier
    return [net(images / 255).argmax(1) for net in networks]


# A run


def test_fit__results(tiny_method, tiny_data, fit):
    method, data = tiny_method(), tiny_data({"epochs": 3, "rounds_per_epoch": 2})
    teacher, student = copied(method.teacher), copied(method.student)
    trainer = fit(method, data)
    assert trainer.current_epoch == 4
    assert (method.rounds, method.student_updates) == (2 + 3 * 2, 9)
    assert data.bank.num_added == len(data.bank) == 8 * 12
    assert not changed(teacher, method.teacher)
    learned = {name for name, _ in method.student.named_parameters()}
    assert learned <= changed(student, method.student)
    assert method.exported_classifier is method.student
    images, labels = data.source.load("evaluation")
    own, theirs = answers(method, images)
    results = method.results()
    assert results["student_accuracy"] == share(own == labels)
    assert results["teacher_accuracy"] == share(theirs == labels)
    assert results["agreement"] == share(own == theirs)


def test_fit__holdout(tiny_method, tiny_data, fit):
    method, data = tiny_method(), tiny_data(evaluation=False, holdout=0.25)
    fit(method, data)
    own, theirs = answers(method, data.holdout.images)
    results = method.results()
    assert results["student_accuracy"] is results["teacher_accuracy"] is None
    assert results["agreement"] == share(own == theirs)
    assert len(data.holdout) == 4 * 3


def test_fit__files(tiny_method, tiny_data, fit, tmp_path):
    """Metrics stand against student updates; checkpoints have no teacher, and plain values."""
    method, saver = tiny_method(), ModelCheckpoint(tmp_path, "last")
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = fit(method, tiny_data(), logger=logger, enable_checkpointing=True, callbacks=[saver])
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    steps = {
        "synthesis/loss": "0003", "val/agreement": "36", "distillation/loss": "123456",
    }  # fmt: skip
    for name, expected in steps.items():
        assert "".join(row["step"] for row in rows if row[name]) == expected
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert not [name for name in content["state_dict"] if name.startswith("teacher.")]
    assert content["progress"] == {"student_updates": 6, "rounds": 4}
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    saved = torch.load(tmp_path / "weights.ckpt", weights_only=False)["state_dict"]
    assert {name.partition(".")[0] for name in saved} == {"student"}
    for name, tensor in method.student.network.state_dict().items():
        assert torch.equal(saved[f"student.network.{name}"], tensor)


def test_fit__default_trainer(tiny_method, tiny_data, tmp_path):
    """Sanity check, checkpoints, a logger: as in a notebook."""
    method = tiny_method()
    trainer = Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path)
    trainer.fit(method, datamodule=tiny_data({"warmup_epochs": 0}))
    assert method.student_updates == 6


def test_fit__no_logging(tiny_method, tiny_data, fit):
    method = tiny_method()
    fit(method, tiny_data(), log_every_n_steps=0)
    assert method.student_updates == 6


def test_validate__without_fit(tiny_method, tiny_data, tmp_path):
    method, data = tiny_method(), tiny_data()
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.validate(method, datamodule=data)
    images, labels = data.source.load("evaluation")
    own, theirs = answers(method, images)
    expected = {
        "student_accuracy": own == labels, "teacher_accuracy": theirs == labels,
        "agreement": own == theirs,
    }  # fmt: skip
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert found == {f"val/{name}": share(hits) for name, hits in expected.items()}


# The student's side


def test_student_step__plain_torch(tiny_method, tiny_data, fit):
    """Against SGD written out: momentum, weight decay, and KL at temperature 20 times 400."""
    method = tiny_method(optimizer=partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.01))
    twin, batches = copy.deepcopy(method.student), []

    def keep(trainer, module, batch, i):
        if isinstance(batch, DistillationBatch):
            batches.append(batch.images.clone())

    fit(method, tiny_data({"epochs": 1}), callbacks=[LambdaCallback(on_train_batch_start=keep)])
    twin.train()
    velocity = [torch.zeros_like(p) for p in twin.parameters()]
    for images in batches:
        target = F.softmax(method.teacher.classifier(images) / 20, dim=1)
        logs = F.log_softmax(twin(images) / 20, dim=1)
        loss = (target * (target.log() - logs)).sum(1).mean() * 400
        grads = torch.autograd.grad(loss, list(twin.parameters()))
        with torch.no_grad():
            for p, g, v in zip(twin.parameters(), grads, velocity, strict=True):
                v.mul_(0.9).add_(g + 0.01 * p)
                p.sub_(0.05 * v)
    assert len(batches) == 3
    for key, value in method.student.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[key], rtol=1e-4, atol=1e-5)


def test_scheduler__distillation_epochs(tiny_method, tiny_data, fit):
    """A cosine that begins after warm-up."""
    rates = []
    watch = LambdaCallback(
        on_train_epoch_start=lambda trainer, _: rates.append(
            trainer.optimizers[0].param_groups[0]["lr"]
        )
    )
    fit(tiny_method(), tiny_data({"epochs": 4, "warmup_epochs": 2}), callbacks=[watch])
    cosine = [2e-4 + (0.05 - 2e-4) * (1 + math.cos(math.pi * e / 4)) / 2 for e in range(4)]
    assert rates == pytest.approx([0.05, 0.05, *cosine])


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
    """It stops the run before the student changes."""
    method, before = tiny_method(), {}
    keep = LambdaCallback(on_train_batch_start=lambda *_: before.update(copied(method.student)))
    nan_at(method.student.network.head.weight, 5)
    with pytest.raises(DivergenceError, match=r"gradient .* became nan at student update 5"):
        fit(method, tiny_data(), callbacks=[keep], log_every_n_steps=50)
    assert method.student_updates == 4
    parameters = {name for name, _ in method.student.named_parameters()}
    assert not parameters & changed(before, method.student)


def test_fit__again_after_an_error(tiny_method, tiny_data, fit):
    method = tiny_method(optimizer=partial(SGD, lr=math.inf))
    with pytest.raises(DivergenceError):
        fit(method, tiny_data())
    method.updater.optimizer = partial(SGD, lr=0.05)
    for part in method.student.network.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    fit(method, tiny_data())
    assert copy.deepcopy(method).results()["student_updates"] == method.student_updates


# What does not fit


def test_fit__number_of_outputs(tiny_method, tiny_data, fit, tiny_classifier):
    with pytest.raises(InputError, match="student has 4 outputs, but the data set has 3 classes"):
        fit(tiny_method(student=tiny_classifier(classes=4)), tiny_data())


@pytest.mark.parametrize("common", ["classifier", "network", "layer", "weights"])
def test_init__shared_weights(tiny_method, tiny_classifier, common):
    teacher, student = tiny_classifier(), tiny_classifier()
    if common == "classifier":
        student = teacher
    elif common == "network":
        student = Classifier(teacher.network, [0.5], [0.5])
    elif common == "layer":
        student.network.head = teacher.network.head
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


@pytest.mark.parametrize("epochs", [-1, None, 4])
def test_fit__max_epochs(tiny_method, tiny_data, fit, epochs):
    with pytest.raises(InputError, match=r"max_epochs must be from 1 to the plan's 3"):
        fit(tiny_method(), tiny_data(), max_epochs=epochs)


def test_fit__round_size(tiny_method, tiny_data, fit):
    with pytest.raises(InputError, match="round_size must be at least the plan's, which is 12"):
        fit(tiny_method(round_size=11), tiny_data())
