import copy
import itertools
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.optim import SGD

from nayer_pl import Classifier, DivergenceError, InputError
from nayer_pl.bank import DistillationBatch, SynthesisRound


def test_fit__student_alone_learns(tiny_method, tiny_data, fit):
    method = tiny_method()
    teacher = copy.deepcopy(method.teacher.state_dict())
    student = copy.deepcopy(method.student.state_dict())
    fit(method, tiny_data())
    assert all(torch.equal(teacher[k], v) for k, v in method.teacher.state_dict().items())
    assert not any(
        torch.equal(student[k], v) for k, v in method.student.state_dict().items() if "conv" in k
    )


def test_student_step__plain_torch(tiny_method, tiny_data, fit):
    """Against SGD written out: momentum, weight decay, and KL at temperature 20 times 400."""
    method = tiny_method(optimizer=partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.01))
    twin = copy.deepcopy(method.student)
    batches = []

    class Keep(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if isinstance(batch, DistillationBatch):
                batches.append(batch.images.clone())

    plan = {"epochs": 1, "kd_steps": 3}
    fit(method, tiny_data(plan), callbacks=[Keep()])
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
    for key, value in method.student.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[key], rtol=1e-4, atol=1e-5)


def test_scheduler__distillation_epochs(tiny_method, tiny_data, fit):
    rates = []

    class Watch(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit(tiny_method(), tiny_data({"epochs": 4, "warmup_epochs": 2}), callbacks=[Watch()])
    cosine = [2e-4 + (0.05 - 2e-4) * (1 + math.cos(math.pi * e / 4)) / 2 for e in range(4)]
    assert rates == pytest.approx([0.05, 0.05, *cosine])


def test_fit__counts(tiny_method, tiny_data, fit):
    method, data = tiny_method(), tiny_data({"epochs": 3, "rounds_per_epoch": 2})
    trainer = fit(method, data)
    assert method.rounds == 2 + 3 * 2
    assert method.student_updates == 9
    assert data.bank.num_added == len(data.bank) == 8 * 12
    assert trainer.current_epoch == 4


def test_metrics__student_updates(tiny_method, tiny_data, fit, tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    fit(tiny_method(), tiny_data(), logger=logger)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    assert [r["step"] for r in rows if r["synthesis/loss"]] == ["0", "0", "0", "3"]
    assert [r["step"] for r in rows if r["val/agreement"]] == ["3", "6"]
    assert [r["step"] for r in rows if r["distillation/loss"]] == list("123456")


def test_results__accuracies(tiny_method, tiny_data, fit):
    method, data = tiny_method(), tiny_data()
    fit(method, data)
    images, labels = data.source.load("evaluation")
    method.student.eval()
    student = method.student(images / 255).argmax(1)
    teacher = method.teacher.classifier(images / 255).argmax(1)
    results = method.results()
    assert results["student_accuracy"] == pytest.approx((student == labels).float().mean().item())
    assert results["teacher_accuracy"] == pytest.approx((teacher == labels).float().mean().item())
    assert results["agreement"] == pytest.approx((student == teacher).float().mean().item())


def test_results__holdout(tiny_method, tiny_data, fit):
    method, data = tiny_method(), tiny_data(evaluation=False, holdout=0.25)
    fit(method, data)
    method.student.eval()
    images = data.holdout.images / 255
    agree = method.student(images).argmax(1) == method.teacher.classifier(images).argmax(1)
    results = method.results()
    assert results["student_accuracy"] is None
    assert results["teacher_accuracy"] is None
    assert results["agreement"] == pytest.approx(agree.float().mean().item())
    assert len(data.holdout) == 4 * 3


def test_checkpoint__contents(tiny_method, tiny_data, fit, tmp_path):
    saver = ModelCheckpoint(tmp_path, "last")
    fit(tiny_method(), tiny_data(), enable_checkpointing=True, callbacks=[saver])
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert not [key for key in content["state_dict"] if key.startswith("teacher.")]
    assert content["progress"] == {"student_updates": 6, "rounds": 4}


def test_nan__distillation_loss(tiny_method, tiny_data, fit, tmp_path):
    method = tiny_method()

    class Break(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                torch.nn.init.constant_(pl_module.student.network.head.weight, torch.nan)

    saver = ModelCheckpoint(tmp_path, "last")
    with pytest.raises(DivergenceError, match="distillation loss became nan"):
        fit(
            method, tiny_data({"rounds_per_epoch": 0}), enable_checkpointing=True,
            callbacks=[saver, Break()], log_every_n_steps=50,
        )  # fmt: skip
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in kept.values())


def nan_at(parameter, call):
    """Make the gradient of `parameter` NaN at its `call`-th backward pass."""
    calls = itertools.count(1)
    parameter.register_hook(lambda grad: grad * math.nan if next(calls) == call else None)


def test_nan__synthesis_gradient(tiny_method, tiny_data, fit):
    method, data = tiny_method(generator_steps=4), tiny_data()
    nan_at(method.synthesizer.generator.layers[0].weight, 4 + 3)
    with pytest.raises(DivergenceError, match=r"gradient .* became nan at step 3 of round 2"):
        fit(method, data)
    assert len(data.bank) == 12


def test_nan__student_gradient(tiny_method, tiny_data, fit):
    method, kept = tiny_method(), {}

    class Keep(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            kept.update({n: p.detach().clone() for n, p in method.student.named_parameters()})

    nan_at(method.student.network.head.weight, 5)
    with pytest.raises(DivergenceError, match=r"gradient .* became nan at student update 5"):
        fit(method, tiny_data(), callbacks=[Keep()], log_every_n_steps=50)
    assert method.student_updates == 4
    assert all(torch.equal(kept[n], p) for n, p in method.student.named_parameters())


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


def test_fit__default_trainer(tiny_method, tiny_data, tmp_path: Path):
    """Sanity check, checkpoints, a logger: as in a notebook."""
    method = tiny_method()
    data = tiny_data({"warmup_epochs": 0})
    trainer = Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path)
    trainer.fit(method, datamodule=data)
    assert method.student_updates == 6


def test_checkpoint__weights_only(tiny_method, tiny_data, fit, tmp_path):
    method = tiny_method()
    trainer = fit(method, tiny_data())
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    saved = torch.load(tmp_path / "weights.ckpt", weights_only=False)["state_dict"]
    assert {name.partition(".")[0] for name in saved} == {"student"}
    for name, tensor in method.student.state_dict().items():
        if name.startswith("network."):
            assert torch.equal(saved[f"student.{name}"], tensor)


def test_validate__without_fit(tiny_method, tiny_data, tmp_path):
    method, data = tiny_method(), tiny_data()
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.validate(method, datamodule=data)
    images, labels = data.source.load("evaluation")
    own, theirs = (
        net(images / 255).argmax(1) for net in (method.student, method.teacher.classifier)
    )
    expected = {
        "val/student_accuracy": (own == labels), "val/teacher_accuracy": (theirs == labels),
        "val/agreement": (own == theirs),
    }  # fmt: skip
    assert trainer.callback_metrics == pytest.approx(
        {k: float(v.float().mean()) for k, v in expected.items()}
    )


@pytest.mark.parametrize("epochs", [-1, None, 4])
def test_fit__max_epochs(tiny_method, tiny_data, fit, epochs):
    with pytest.raises(InputError, match=r"max_epochs must be from 1 to the plan's 3"):
        fit(tiny_method(), tiny_data(), max_epochs=epochs)


def test_fit__no_logging(tiny_method, tiny_data, fit):
    method = tiny_method()
    fit(method, tiny_data(), log_every_n_steps=0)
    assert method.student_updates == 6


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
