import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from PIL import Image

from nayer_pl import MemoryBank, Plan, SyntheticDataModule
from nayer_pl.callbacks import Curves, SampleGrid, sample_grid
from nayer_pl.callbacks.pictures import draw_curves

LABEL = 130


def pictures(count, channels=3, height=8, width=8):
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (count, channels, height, width), dtype=np.uint8)


def bank_of(arrays, labels, capacity=None):
    bank = MemoryBank(capacity or len(arrays), arrays.shape[1:])
    bank.add(torch.from_numpy(arrays), torch.tensor(labels))
    return bank


def cell(grid, row, column, height, width, scale):
    """The image in this place of the grid, [C, height, width]; checks that pixels are repeated."""
    top = row * (height * scale + 2) + 1
    left = LABEL + column * (width * scale + 2)
    shown = np.asarray(grid)[top : top + height * scale, left : left + width * scale]
    small = shown[::scale, ::scale]
    np.testing.assert_array_equal(shown, small.repeat(scale, 0).repeat(scale, 1))
    return small.transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("sizes", "cell_size", "scale"),
    [
        ({}, 48, 6),
        ({"channels": 1}, 8, 1),
        ({"height": 60, "width": 50}, 48, 1),  # larger than a cell
    ],
)
def test_sample_grid__rows_by_class(sizes, cell_size, scale):
    arrays, labels = pictures(6, **sizes), [2, 0, 2, 1, 2, 0]
    grid = sample_grid(bank_of(arrays, labels), ["a", "b", "c"], per_class=3, cell=cell_size)
    height, width = arrays.shape[2:]
    assert grid.size == (LABEL + 3 * (width * scale + 2), 3 * (height * scale + 2))
    for row, newest in enumerate([[5, 1], [3], [4, 2, 0]]):
        for column in range(3):
            shown = cell(grid, row, column, height, width, scale)
            image = arrays[newest[column]] if column < len(newest) else 255
            np.testing.assert_array_equal(shown, np.broadcast_to(image, shown.shape))


def test_sample_grid__class_names():
    names = ["first", "second", "a name that is much too long for its place"]
    grid = np.asarray(sample_grid(bank_of(pictures(1), [1]), names, cell=24))
    height = grid.shape[0] // 3
    written = [grid[row * height : (row + 1) * height, :LABEL] for row in range(3)]
    assert all((part < 128).any() for part in written)
    assert not np.array_equal(written[0], written[1])


def test_sample_grid__ring_has_turned():
    """The oldest are gone, the newest come first, and no more are drawn than asked for."""
    arrays = pictures(7)
    grid = sample_grid(bank_of(arrays, [0] * 7, capacity=4), ["a"], per_class=3, cell=16)
    assert grid.size == (LABEL + 3 * 18, 18)
    for column, index in enumerate([6, 5, 4]):
        np.testing.assert_array_equal(cell(grid, 0, column, 8, 8, 2), arrays[index])


class Board(WandbLogger):
    """Weights & Biases without its service."""

    def __init__(self):
        self.logged = []

    def log_image(self, key, images, step=None, **kwargs):
        self.logged.append((key, images, step))


def running(arrays, labels, epoch=0):
    data = SyntheticDataModule((3, 8, 8), 2, Plan(round_size=4))
    data.bank = MemoryBank(10, (3, 8, 8))
    if len(arrays):
        data.bank.add(torch.from_numpy(arrays), torch.tensor(labels))
    return SimpleNamespace(datamodule=data, loggers=[Board()], current_epoch=epoch)


MODULE = SimpleNamespace(student_updates=40)


def test_samples__end_of_training(tmp_path):
    trainer = running(pictures(3), [0, 1, 1])
    SampleGrid(tmp_path / "samples.png", ["a", "b"]).on_train_end(trainer, MODULE)
    expected = np.asarray(sample_grid(trainer.datamodule.bank, ["a", "b"]))
    with Image.open(tmp_path / "samples.png") as file:
        np.testing.assert_array_equal(np.asarray(file), expected)
    ((key, images, step),) = trainer.loggers[0].logged
    assert (key, step) == ("bank/samples", 40)
    np.testing.assert_array_equal(np.asarray(images[0]), expected)


def test_samples__every_n_epochs(tmp_path):
    callback = SampleGrid(tmp_path / "samples.png", ["a", "b"], every_n_epochs=3)
    logged = []
    for epoch in range(8):
        trainer = running(pictures(2), [0, 1], epoch)
        callback.on_train_epoch_end(trainer, MODULE)
        if trainer.loggers[0].logged:
            logged.append(epoch)
    assert logged == [0, 3, 6]
    assert not (tmp_path / "samples.png").exists()


def test_samples__no_images(tmp_path):
    callback = SampleGrid(tmp_path / "samples.png", ["a", "b"])
    callback.on_train_end(running(pictures(0), []), MODULE)
    callback.on_train_end(SimpleNamespace(datamodule=None, loggers=[Board()]), MODULE)
    assert not (tmp_path / "samples.png").exists()


# Curves

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
        (TRAINING, TRAINING_PANELS),  # a column without values is none
    ],
    ids=["distillation", "synthesis alone", "training"],
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


def test_curves(tmp_path):
    """What a logger has not written yet is drawn too; without a file, nothing."""
    logger = CSVLogger(tmp_path, name="", version="", flush_logs_every_n_steps=1000)
    logger.log_metrics({"train/loss": 2.0}, step=1)
    trainer = SimpleNamespace(loggers=[logger])
    Curves(tmp_path / "elsewhere.csv", tmp_path / "none.png").on_train_end(trainer)
    logger.log_metrics({"train/loss": 1.0}, step=2)
    Curves(tmp_path / "metrics.csv", tmp_path / "curves.png").on_train_end(trainer)
    (ax,) = draw_curves(tmp_path / "metrics.csv").axes
    assert list(ax.lines[0].get_ydata()) == [2, 1]
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (552, 408)
    assert not (tmp_path / "none.png").exists()
