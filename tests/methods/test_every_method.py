"""What every method promises a user, whatever it does inside."""

import copy
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
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
    Classifier,
    DeepInversion,
    FastDFKD,
    InputError,
    KnowledgeDistillation,
    build_classifier,
    callbacks,
    save_classifier,
)
from nayer_pl.app.train import train
from nayer_pl.bank import SynthesisRound
from nayer_pl.networks.weights import read_weights

ROOT = Path(__file__).resolve().parents[2]
REAL = {"supervised", "kd", "scratch"}  # these learn from real images
METHODS = sorted({path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")} - REAL)

# The real data, networks and files, only less of everything.
SHORT = [
    "experiment=digits", "data.source.image_size=8", "data.image_shape=[1,8,8]", "plan.epochs=2",
    "plan.rounds_per_epoch=1", "plan.kd_steps=2", "plan.round_size=20", "plan.batch_size=16",
    "teacher.weights=teacher.safetensors", "text_encoder=file", "text_encoder.path=text.npy",
    "model.check_teacher=false", "trainer.accelerator=cpu", "trainer.precision=32-true",
    "logger=csv", "callbacks.progress=null", "callbacks.samples=null", "callbacks.curves=null",
    "+trainer.enable_progress_bar=false",
]  # fmt: skip
SUMMARY = {
    "seed", "precision", "teacher_accuracy", "student_accuracy", "agreement", "teacher_parameters",
    "student_parameters", "student_updates", "images_banked", "images_kept", "synthesis_steps",
    "bank_bytes", "synthesis_loss", "label_agreement", "diversity", "seconds_teacher",
    "seconds_synthesis", "images_per_second_synthesis", "seconds_distillation",
    "images_per_second_distillation", "machine", "versions",
}  # fmt: skip


def smaller(cfg: DictConfig) -> list[str]:
    """Overrides that make a method's own numbers small, whatever they are called."""
    sizes = [f"plan.{name}={min(1, cfg.plan[name])}" for name in ("warmup_epochs", "warmup_rounds")]
    for name, value in cfg.model.items():
        if name.endswith("steps") and isinstance(value, int):
            sizes.append(f"model.{name}={min(2, value)}")
        if name == "noisy_features":
            sizes.append(f"model.{name}=32")
        if name == "generator" and "width" in value:
            sizes.append("model.generator.width=4")
    return sizes


@pytest.fixture
def short(config, tmp_path):
    """The configuration of a run of seconds; the files that it reads are in its directory."""
    description = {"_target_": "nayer_pl.networks.wrn16_1", "num_classes": 10, "channels": 1}
    teacher = build_classifier(description, [0.3053], [0.3398])
    save_classifier(tmp_path / "teacher.safetensors", teacher)
    np.save(tmp_path / "text.npy", np.eye(10, dtype="float32"))

    def compose(name: str) -> DictConfig:
        cfg = config(f"model={name}", *SHORT)
        cfg.merge_with_dotlist(smaller(cfg))
        return cfg

    return compose


class StopHereError(Exception):
    pass


@pytest.fixture
def watched(monkeypatch):
    """Keeps every student as it was at the start, and can stop a run after so many items."""

    class Witness(callbacks.Checkpoints):
        first, items, last = {}, 0, None

        def on_train_start(self, trainer, method):
            super().on_train_start(trainer, method)
            Witness.first = copy.deepcopy(method.student.state_dict())
            Witness.items = 0

        def on_train_batch_end(self, trainer, *rest):
            super().on_train_batch_end(trainer, *rest)
            Witness.items += 1
            if Witness.items == Witness.last:
                raise StopHereError

    monkeypatch.setattr(callbacks, "Checkpoints", Witness)
    return Witness


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("name", METHODS)
def test_one_rank__summary_student_and_resume(short, watched, tmp_path, name):
    cfg = short(name)
    summary, objects = train(cfg)
    teacher, student = objects["method"].teacher.classifier, objects["method"].student

    assert summary.keys() == SUMMARY
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert summary["student_updates"] == 2 * 2
    assert summary["images_banked"] > 0

    places = [{p.data_ptr() for p in net.parameters()} for net in (teacher, student)]
    assert not places[0] & places[1]
    assert same(teacher.network.state_dict(), read_weights(tmp_path / "teacher.safetensors")[0])
    learned = student.state_dict()
    assert [
        n for n, _ in student.named_parameters() if torch.equal(learned[n], watched.first[n])
    ] == []
    exported, _ = read_weights(tmp_path / "run" / "student.safetensors")
    assert same(student.network.state_dict(), exported)

    # Once more, but stopped between the two steps of the first epoch, and resumed.
    again = {"run_dir": f"{tmp_path}/again", "checkpoint": {"minutes": 0}}
    cfg = OmegaConf.merge(cfg, again)
    watched.last = watched.items - 4
    with pytest.raises(StopHereError):
        train(cfg)
    watched.last = None
    resumed, objects = train(OmegaConf.merge(cfg, {"resume": "auto"}))
    assert watched.items == 4
    assert same(objects["method"].student.state_dict(), learned)
    timeless = {key for key in SUMMARY if "second" not in key}
    assert {key: resumed[key] for key in timeless} == {key: summary[key] for key in timeless}


WITNESS = """
import torch
from lightning import Callback


class Witness(Callback):
    def on_train_end(self, trainer, method):
        found = {"images": trainer.datamodule.bank.images, "student": method.student.state_dict()}
        torch.save(found, f"rank{trainer.global_rank}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_ranks__different_images_for_one_student(short, tmp_path, name):
    (tmp_path / "witness.py").write_text(WITNESS)
    command = [
        sys.executable, str(ROOT / "train.py"), f"model={name}", *SHORT, *smaller(short(name)),
        "plan.rounds_per_epoch=2", "run_dir=run", "trainer.devices=2", "strategy=ddp_gloo",
        "+callbacks.witness._target_=witness.Witness",
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        command, cwd=tmp_path, env=env, text=True, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        _, errors = running.communicate(timeout=300)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)  # with the rank that it started
    assert running.returncode == 0, errors[-3000:]
    one, other = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert same(one["student"], other["student"])
    images = [{*map(tuple, found["images"].flatten(1).tolist())} for found in (one, other)]
    assert all(images)
    assert not images[0] & images[1]
    assert json.loads((tmp_path / "run" / "summary.json").read_text()).keys() == SUMMARY


# What can be exchanged, and what is asked of a teacher

BANKED, ONLINE = (NAYER, FastDFKD, CMI, DeepInversion), (DAFL, DFAD, DFQ, ZSKT)
LR = 0.01


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


@pytest.mark.parametrize("method", [*BANKED, *ONLINE, KnowledgeDistillation])
def test_exchange(make, tiny_data, real_data, fit, method):
    """The student's loss, optimizer and schedule."""
    spy, real, online = Spy(), method is KnowledgeDistillation, method in ONLINE
    with pytest.raises(InputError, match=r"The optimizer cannot be built: .*learning rate"):
        make(method, optimizer=partial(RMSprop, lr=-1.0))
    built = make(
        method, student_loss=spy, optimizer=partial(RMSprop, lr=LR),
        scheduler=partial(ExponentialLR, gamma=0.5),
    )  # fmt: skip
    if online:  # no class is everybody's favorite
        with torch.no_grad():
            images = built.synthesizer.generator(torch.randn(64, 6))
            teacher = built.teacher.classifier
            teacher.network.head.bias -= teacher(images).mean(0)
    before = {name: weight.clone() for name, weight in built.student.named_parameters()}
    plan = {"epochs": 1, "warmup_epochs": 0, "kd_steps": 2, "interleaved": online}
    data = real_data if real else tiny_data(plan)
    trainer = fit(built, data, callbacks=[spy], max_epochs=1)

    updates = 3 if real else 2
    assert len(spy.labels) == built.student_updates == updates
    expected = [logits.argmax(1) for logits in spy.logits] if online else spy.targets
    assert all(map(torch.equal, spy.labels, expected))
    assert len(torch.cat(spy.labels).unique()) > 1
    if method in BANKED:  # the bank's labels are those that the images were made for
        assert torch.equal(data.bank.labels, spy.made[0])
    assert isinstance(trainer.optimizers[0], RMSprop)
    halved = updates if real else 1  # after every step, or every epoch
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(LR * 0.5**halved)
    learned = dict(built.student.named_parameters())
    assert not any(torch.equal(before[name], weight) for name, weight in learned.items())


@pytest.mark.parametrize("method", [*BANKED, *ONLINE])
def test_augmentation(make, tiny_data, fit, method):
    """Any callable takes the place of RandomCropFlip; its images are judged, but not banked."""
    made, judged = [], []

    def negative(images, rng):
        assert rng is synthesizer.rng
        return 1 - images

    built = make(method, augmentation=negative)
    synthesizer, generate = built.synthesizer, built.synthesizer.generate
    synthesizer.generate = lambda targets: made.append(generate(targets)) or made[-1]
    judge = synthesizer.criterion
    if isinstance(judge, nn.Module):
        judge.register_forward_pre_hook(lambda _, inputs: judged.append(inputs[0]))
    else:
        synthesizer.criterion = lambda images, *rest: judged.append(images) or judge(images, *rest)
    data = tiny_data({"epochs": 1, "warmup_epochs": 0, "interleaved": method in ONLINE})
    fit(built, data, limit_train_batches=1)
    assert len(made) == synthesizer.steps
    assert all(torch.equal(1 - plain, seen) for plain, seen in zip(made, judged, strict=True))
    banked = data.bank.images.float() / 255
    near = [torch.allclose(banked, each, rtol=0, atol=0.51 / 255) for each in made]
    assert any(near)
    assert not any(torch.allclose(banked, each, rtol=0, atol=0.1) for each in judged)


CONVOLUTION = nn.Conv2d(1, 3, 3, padding=1)
STATISTICS = {*BANKED, DFQ}
TEACHERS = {  # a teacher, and the methods that work with it
    "a linear layer": ([nn.Flatten(), nn.Linear(64, 3)], {DFAD, DAFL}),
    "convolutions": ([CONVOLUTION, nn.AdaptiveAvgPool2d(1), nn.Flatten()], {DFAD, ZSKT}),
    "a BatchNorm of single pixels": (
        [nn.Conv2d(1, 3, 8), nn.BatchNorm2d(3), nn.Flatten()], {DFAD, *STATISTICS},
    ),
    "all of it": (
        [CONVOLUTION, nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)],
        {*BANKED, *ONLINE},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("layers", "work"), TEACHERS.values(), ids=TEACHERS)
def test_teacher(make, layers, work):
    """A method that refuses one names those that do not."""
    for method in (*BANKED, *ONLINE):
        teacher = Classifier(copy.deepcopy(nn.Sequential(*layers)), [0.5], [0.5])
        if method in work:
            make(method, teacher=teacher)
        else:
            with pytest.raises(InputError, match="DFAD works with every teacher"):
                make(method, teacher=teacher)


@pytest.mark.slow
@pytest.mark.parametrize("method", [NAYER, ZSKT])
def test_compile(make, tiny_data, fit, method):
    """Compiled steps compute the same."""
    made = make(method)
    fit(made, tiny_data({"interleaved": method in ONLINE}))  # a student that has learned
    images, targets, synthesizer = torch.rand(12, 1, 8, 8), torch.arange(12) % 3, made.synthesizer
    learned = list(made.student.parameters())

    def terms_and_gradients():
        results = [] if method in ONLINE else [synthesizer.generate(targets)]
        for warm_up in (False, True):
            x = images.clone().requires_grad_()
            terms = synthesizer.loss(x, targets, made.teacher, made.student.eval(), warm_up)
            results += [*terms.values(), *torch.autograd.grad(terms["loss"], x)]
        loss = made.student_objective(images, targets)
        return [*results, loss, *torch.autograd.grad(loss, learned)]

    plain = terms_and_gradients()
    made.student_objective = torch.compile(made.student_objective, dynamic=False)
    synthesizer.compile_steps()
    for fast, expected in zip(terms_and_gradients(), plain, strict=True):
        torch.testing.assert_close(fast, expected, rtol=1e-3, atol=1e-5)
