import csv

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from nayer_pl.callbacks import Curves
from nayer_pl.callbacks.pictures import draw_curves

SYNTHESIS = [
    {"step": 9, "synthesis/round": 1, "synthesis/loss": 3.5, "synthesis/bn": 0.25},
    {"step": 19, "synthesis/round": 2, "synthesis/loss": 2.5, "synthesis/bn": 0.125},
]
DISTILLATION = [
    {"step": 29, "student_updates": 10, "distillation/loss": 8.0},
    {"step": 39, "student_updates": 20, "distillation/loss": 4.0},
    {"step": 39, "student_updates": 20, "val/student_accuracy": 0.5, "val/teacher_accuracy": 0.9},
]
TRAINING = [
    {"step": 5, "epoch": 0, "train/loss": 1.5, "distillation/loss": ""},
    {"step": 5, "epoch": 0, "val/accuracy": 0.75},
    {"step": 11, "epoch": 1, "train/loss": 1.25},
]
TITLE = "synthesis, loss terms of the kept images"
SYNTHESIS_PANEL = {(TITLE, "round"): {"loss": [(1, 3.5), (2, 2.5)], "bn": [(1, 0.25), (2, 0.125)]}}
LOSS_PANEL = {("distillation loss", "student updates"): {"loss": [(10, 8.0), (20, 4.0)]}}
ACCURACY_PANEL = {
    ("evaluation", "student updates"): {
        "student accuracy": [(20, 0.5)], "teacher accuracy": [(20, 0.9)],
    }
}  # fmt: skip
TRAINING_PANELS = {
    ("training loss", "step"): {"loss": [(5, 1.5), (11, 1.25)]},
    ("evaluation", "step"): {"accuracy": [(5, 0.75)]},
}


def write(path, rows):
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("rows", "panels"),
    [
        (SYNTHESIS + DISTILLATION, {**SYNTHESIS_PANEL, **LOSS_PANEL, **ACCURACY_PANEL}),
        (SYNTHESIS, SYNTHESIS_PANEL),
        (DISTILLATION[:2], LOSS_PANEL),
        (TRAINING, TRAINING_PANELS),  # a column without values is none
    ],
    ids=["distillation", "synthesis alone", "loss alone", "training"],
)
def test_draw_curves(tmp_path, rows, panels):
    figure = draw_curves(write(tmp_path / "m.csv", rows))
    drawn = {
        (ax.get_title(), ax.get_xlabel()): {
            line.get_label(): [*zip(*map(list, line.get_data()), strict=True)] for line in ax.lines
        }
        for ax in figure.axes
    }
    assert drawn == panels
    legends = [ax.get_legend() is not None for ax in figure.axes]
    assert legends == [len(lines) > 1 for lines in panels.values()]


@pytest.mark.parametrize("rows", [[{"step": 1, "epoch": 0, "lr": 0.1}], [{}]])
def test_draw_curves__no_known_columns(tmp_path, rows):
    assert draw_curves(write(tmp_path / "m.csv", rows)) is None


class Counting(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch, _):
        return self.weight * 0

    def on_train_epoch_end(self):
        self.log("train/loss", float(10 - self.current_epoch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("name", ["metrics.csv", "elsewhere.csv"])
def test_callback(tmp_path, name):
    """The last epoch is drawn too, though its row is not written yet; without a file, nothing."""
    trainer = Trainer(
        accelerator="cpu", max_epochs=3,
        logger=CSVLogger(tmp_path, name="", version="", flush_logs_every_n_steps=1000),
        callbacks=[Curves(tmp_path / name, tmp_path / "curves.png")], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Counting(), DataLoader(torch.zeros(4, 1), batch_size=2))
    if name == "elsewhere.csv":
        assert not (tmp_path / "curves.png").exists()
        return
    (ax,) = draw_curves(tmp_path / name).axes
    assert list(ax.lines[0].get_ydata()) == [10, 9, 8]
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (552, 408)
