import csv

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from nayer_pl.callbacks import Curves
from nayer_pl.callbacks import curves as curves_module
from nayer_pl.callbacks.curves import draw_curves


def write(path, rows):
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


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
    {"step": 5, "epoch": 0, "train/loss": 1.5},
    {"step": 5, "epoch": 0, "val/accuracy": 0.75},
    {"step": 11, "epoch": 1, "train/loss": 1.25},
]


def panels(figure):
    return {
        (ax.get_title(), ax.get_xlabel()): {
            line.get_label(): [*zip(*map(list, line.get_data()), strict=True)] for line in ax.lines
        }
        for ax in figure.axes
    }


def test_distillation_run_draws_the_numbers_of_its_file(tmp_path):
    figure = draw_curves(write(tmp_path / "m.csv", SYNTHESIS + DISTILLATION))
    assert panels(figure) == {
        ("synthesis, loss terms of the kept images", "round"): {
            "loss": [(1, 3.5), (2, 2.5)],
            "bn": [(1, 0.25), (2, 0.125)],
        },
        ("distillation loss", "student updates"): {"loss": [(10, 8.0), (20, 4.0)]},
        ("evaluation", "student updates"): {
            "student accuracy": [(20, 0.5)],
            "teacher accuracy": [(20, 0.9)],
        },
    }


def test_training_run_has_panels_of_its_own(tmp_path):
    figure = draw_curves(write(tmp_path / "m.csv", TRAINING))
    assert panels(figure) == {
        ("training loss", "step"): {"loss": [(5, 1.5), (11, 1.25)]},
        ("evaluation", "step"): {"accuracy": [(5, 0.75)]},
    }


@pytest.mark.parametrize(
    ("rows", "titles"),
    [
        (SYNTHESIS, ["synthesis, loss terms of the kept images"]),
        (DISTILLATION[:2], ["distillation loss"]),
        (DISTILLATION[2:], ["evaluation"]),
    ],
)
def test_only_panels_with_columns_are_drawn(tmp_path, rows, titles):
    figure = draw_curves(write(tmp_path / "m.csv", rows))
    assert [ax.get_title() for ax in figure.axes] == titles


def test_columns_without_any_value_count_as_absent(tmp_path):
    rows = [{**row, "distillation/loss": ""} for row in TRAINING]
    figure = draw_curves(write(tmp_path / "m.csv", rows))
    assert [ax.get_title() for ax in figure.axes] == ["training loss", "evaluation"]


def test_only_panels_of_several_lines_have_a_legend(tmp_path):
    figure = draw_curves(write(tmp_path / "m.csv", SYNTHESIS + DISTILLATION))
    assert [ax.get_legend() is not None for ax in figure.axes] == [True, False, True]


@pytest.mark.parametrize("rows", [[{"step": 1, "epoch": 0, "lr": 0.1}], [{}]])
def test_file_without_known_columns_draws_nothing(tmp_path, rows):
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


def fit(tmp_path, module, metrics):
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=CSVLogger(tmp_path, name="", version="", flush_logs_every_n_steps=1000),
        callbacks=[Curves(metrics, tmp_path / "curves.png")],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, DataLoader(torch.zeros(4, 1), batch_size=2))


def test_callback_draws_the_whole_run_last_epoch_included(tmp_path, monkeypatch):
    drawn = []

    def draw(metrics):
        drawn.append(draw_curves(metrics))
        return drawn[-1]

    monkeypatch.setattr(curves_module, "draw_curves", draw)
    fit(tmp_path, Counting(), tmp_path / "metrics.csv")
    (figure,) = drawn
    assert panels(figure) == {("training loss", "step"): {"loss": [(1, 10), (3, 9), (5, 8)]}}
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == (552, 408)


def test_callback_without_a_file_draws_nothing(tmp_path):
    fit(tmp_path, Counting(), tmp_path / "elsewhere.csv")
    assert not (tmp_path / "curves.png").exists()
