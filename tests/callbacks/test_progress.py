import re
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nayer_pl.bank.plan import DistillationBatch, SynthesisRound
from nayer_pl.callbacks import PhaseProgressBar, PhaseTimer, progress


@pytest.fixture
def shown(tiny_method, tiny_data, fit, capsys):
    """What a run of one warm-up epoch and two others puts on standard output."""

    def run(bar, *callbacks):
        try:
            fit(tiny_method(), tiny_data(), callbacks=[bar, *callbacks], enable_progress_bar=True)
        finally:
            run.text = capsys.readouterr().out
        return run.text

    return run


def epochs(text):
    """The lines that are not a log's."""
    return [line for line in text.splitlines() if line.startswith("Epoch")]


def lines_of(text):
    """The lines on a screen at the end."""
    return [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]


def test_log_file__line_per_epoch(shown):
    text = shown(PhaseProgressBar())  # what is captured is no terminal
    assert "\r" not in text
    warm_up, first, last = epochs(text)
    assert re.fullmatch(r"Epoch 1/3 done in \d+ s: synthesis=\S+", warm_up)
    line = r"Epoch {}/3 done in \d+ s: acc=\S+, agree=\S+, synthesis=\S+, kd=\S+"
    assert re.fullmatch(line.format(2), first)
    assert re.fullmatch(line.format(3), last)


def test_log_file__line_per_minute(shown, monkeypatch):
    monkeypatch.setattr(progress, "MINUTE", 0.0)
    found = [line.partition(":")[0] for line in epochs(shown(PhaseProgressBar()))]
    steps = ["synthesis 1/4", "distillation 2/4", "distillation 3/4", "distillation 4/4"]
    wanted = ["Epoch 1/3 warm-up 1/2", "Epoch 1/3 warm-up 2/2", *(f"Epoch 2/3 {s}" for s in steps)]
    assert [line for line in found if " done" not in line][:6] == wanted


def test_terminal__bar_per_epoch(shown):
    drawn = re.split("[\r\n]", shown(PhaseProgressBar(terminal=True)))
    bars = {bar[:9]: bar for bar in drawn if re.match(r"Epoch ./3", bar)}  # the last of each
    phases = [bar.partition(" |")[0].rstrip() for bar in bars.values()]
    assert phases == ["Epoch 1/3 warm-up", "Epoch 2/3 distillation", "Epoch 3/3 distillation"]
    line = r"4/4 \[\S+, acc=\S+, agree=\S+, synthesis="
    assert [bool(re.search(line, bar)) for bar in bars.values()] == [False, True, True]


def test_terminal__after_error(shown):
    class Fails(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.current_epoch == 1:
                raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        shown(PhaseProgressBar(terminal=True), Fails())
    *_, last, rest = lines_of(shown.text)
    assert last.startswith("Epoch 2/3")
    assert not rest


# The timer

MODULE = SimpleNamespace(device=torch.device("cpu"))


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(progress, "time", clock)
    return clock


def synthesis(images):
    return SynthesisRound(torch.zeros(images, dtype=torch.int64), warm_up=False)


def distillation(images):
    return DistillationBatch(torch.zeros(images, 3, 4, 4), torch.zeros(images, dtype=torch.int64))


@pytest.mark.parametrize(
    ("items", "seconds", "images"),
    [
        (
            [
                (synthesis(40), 3, 5), (synthesis(40), 0, 7), (distillation(16), 0, 2),
                (distillation(16), 1, 2), (distillation(8), 1, 2),
            ],
            {"synthesis": 15, "distillation": 8, "training": 0},
            {"synthesis": 80, "distillation": 40, "training": 0},
        ),
        (
            [([torch.zeros(7, 1), torch.zeros(7)], 0, 2)],
            {"synthesis": 0, "distillation": 0, "training": 2},
            {"synthesis": 0, "distillation": 0, "training": 7},
        ),
    ],
    ids=["phases", "ordinary batches"],
)  # fmt: skip
def test_timer__each_phase(clock, items, seconds, images):
    """Items as (what, seconds to fetch it, seconds of work on it), in two epochs.

    Fetching an item belongs to its phase, also the first; the time between epochs to none.
    """
    timer = PhaseTimer()
    for _ in range(2):
        timer.on_train_epoch_start(None, MODULE)
        for i, (item, fetching, working) in enumerate(items):
            clock.now += fetching
            timer.on_train_batch_start(None, MODULE, item, i)
            clock.now += working
        timer.on_train_epoch_end(None, MODULE)
        clock.now += 50
    assert timer.seconds == {phase: 2 * count for phase, count in seconds.items()}
    assert timer.images == {phase: 2 * count for phase, count in images.items()}


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


class Counted(Slow):
    """Counts as methods do: two student updates and five steps of synthesis in every batch."""

    student_updates = synthesis_steps = 0

    def training_step(self, batch, _):
        self.student_updates += 2
        self.synthesis_steps += 5
        return super().training_step(batch, _)


class Rows(DummyLogger):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        if "student_updates" in metrics:
            self.rows.append((step, metrics))


@pytest.fixture
def timed(tmp_path):
    """Four batches of two in every epoch, and what is logged after the evaluations."""

    def run(method, epochs, ckpt_path=None, **options):
        logger, timer = Rows(), PhaseTimer()
        trainer = Trainer(
            accelerator="cpu", max_epochs=epochs, callbacks=[timer], logger=logger,
            default_root_dir=tmp_path, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, **options,
        )  # fmt: skip
        loader = DataLoader(TensorDataset(torch.zeros(8, 1), torch.zeros(8)), batch_size=2)
        trainer.fit(method, loader, loader, ckpt_path=ckpt_path)
        assert timer.images["training"] == 8 * epochs
        return trainer, logger.rows

    return run


def test_timer__logged_after_evaluation(clock, timed):
    _, rows = timed(Counted(clock), epochs=2)
    assert rows == [
        (8, {"time/training": 12, "synthesis/steps": 20, "student_updates": 8}),
        (16, {"time/training": 24, "synthesis/steps": 40, "student_updates": 16}),
    ]


def test_timer__resumed_and_evaluated_in_the_middle(clock, timed, tmp_path):
    trainer, rows = timed(Slow(clock), epochs=1, val_check_interval=0.5)
    assert rows == [
        (2, {"time/training": 6, "student_updates": 2}),
        (4, {"time/training": 12, "student_updates": 4}),
    ]
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    clock.now += 5000
    _, rows = timed(Slow(clock), 2, ckpt_path=tmp_path / "one.ckpt")
    assert rows == [(8, {"time/training": 24, "student_updates": 8})]
