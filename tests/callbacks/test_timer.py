from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nayer_pl.bank.plan import DistillationBatch, SynthesisRound
from nayer_pl.callbacks import PhaseTimer
from nayer_pl.callbacks import progress as timer_module

QUIET = dict.fromkeys(
    ("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
)
MODULE = SimpleNamespace(device=torch.device("cpu"))


class Clock:
    now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timer_module, "time", clock)
    return clock


def synthesis(images):
    return SynthesisRound(torch.zeros(images, dtype=torch.int64), warm_up=False)


def distillation(images):
    return DistillationBatch(torch.zeros(images, 3, 4, 4), torch.zeros(images, dtype=torch.int64))


def run_items(timer, clock, items):
    """Items as (what, seconds to fetch it, seconds of work on it)."""
    for i, (item, fetching, working) in enumerate(items):
        clock.now += fetching
        timer.on_train_batch_start(None, MODULE, item, i)
        clock.now += working


def test_seconds_and_images__of_each_phase(clock):
    """Fetching an item belongs to its phase, also the first; the time between epochs to none."""
    timer = PhaseTimer()
    for _ in range(2):
        timer.on_train_epoch_start(None, MODULE)
        rounds = [(synthesis(40), 3, 5), (synthesis(40), 0, 7)]
        batches = [(distillation(16), 0, 2), (distillation(16), 1, 2), (distillation(8), 1, 2)]
        run_items(timer, clock, rounds + batches)
        timer.on_train_epoch_end(None, MODULE)
        clock.now += 50
    assert timer.seconds == {"synthesis": 30, "distillation": 16, "training": 0}
    assert timer.images == {"synthesis": 160, "distillation": 80, "training": 0}


def test_seconds_and_images__ordinary_batches(clock):
    timer = PhaseTimer()
    timer.on_train_epoch_start(None, MODULE)
    run_items(timer, clock, [([torch.zeros(7, 1), torch.zeros(7)], 0, 2)])
    timer.on_train_epoch_end(None, MODULE)
    assert timer.seconds == {"synthesis": 0, "distillation": 0, "training": 2}
    assert timer.images["training"] == 7


class Slow(LightningModule):
    """Every training batch takes 3 seconds of the clock, every validation batch 1000."""

    def __init__(self, clock):
        super().__init__()
        self.clock, self.weight = clock, nn.Parameter(torch.zeros(()))

    def training_step(self, batch, _):
        self.clock.now += 3
        return self.weight * 0

    def validation_step(self, batch, _):
        self.clock.now += 1000

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("interval", [1.0, 0.5])
def test_seconds__validation_excluded(clock, tmp_path, interval):
    timer = PhaseTimer()
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, callbacks=[timer], val_check_interval=interval,
        logger=False, default_root_dir=tmp_path, **QUIET,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(torch.zeros(8, 1), torch.zeros(8)), batch_size=2)
    trainer.fit(Slow(clock), loader, loader)
    assert timer.images["training"] == 16
    assert timer.seconds["training"] == 2 * 4 * 3


class Rows(DummyLogger):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        if "student_updates" in metrics:
            self.rows.append((step, metrics))


class Counted(Slow):
    """Counts as methods do: two student updates and five steps of synthesis in every batch."""

    student_updates = synthesis_steps = 0

    def training_step(self, batch, _):
        self.student_updates += 2
        self.synthesis_steps += 5
        return super().training_step(batch, _)


def fit_with_rows(method, tmp_path, epochs, ckpt_path=None):
    logger = Rows()
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=[PhaseTimer()], logger=logger,
        default_root_dir=tmp_path, **QUIET,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(torch.zeros(8, 1), torch.zeros(8)), batch_size=2)
    trainer.fit(method, loader, loader, ckpt_path=ckpt_path)
    return trainer, logger.rows


def test_logged_after_evaluation(clock, tmp_path):
    _, rows = fit_with_rows(Counted(clock), tmp_path, epochs=2)
    assert rows == [
        (8, {"time/training": 12, "synthesis/steps": 20, "student_updates": 8}),
        (16, {"time/training": 24, "synthesis/steps": 40, "student_updates": 16}),
    ]


def test_logged_after_evaluation__global_step(clock, tmp_path):
    _, rows = fit_with_rows(Slow(clock), tmp_path, epochs=1)
    assert rows == [(4, {"time/training": 12, "student_updates": 4})]


def test_resumed(clock, tmp_path):
    trainer, _ = fit_with_rows(Slow(clock), tmp_path, epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    clock.now += 5000
    _, rows = fit_with_rows(Slow(clock), tmp_path, 2, ckpt_path=tmp_path / "one.ckpt")
    assert rows == [(8, {"time/training": 24, "student_updates": 8})]
