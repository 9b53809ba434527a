from types import SimpleNamespace

import numpy as np
import torch
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from nayer_pl import MemoryBank, Plan, SyntheticDataModule
from nayer_pl.callbacks import SampleGrid, sample_grid

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


def test_sample_grid__rows_by_class():
    arrays, labels = pictures(6), [2, 0, 2, 1, 2, 0]
    grid = sample_grid(bank_of(arrays, labels), ["a", "b", "c"], per_class=3, cell=48)
    assert grid.size == (LABEL + 3 * 50, 3 * 50)
    for row, newest in enumerate([[5, 1], [3], [4, 2, 0]]):
        for column, index in enumerate(newest):
            np.testing.assert_array_equal(cell(grid, row, column, 8, 8, 6), arrays[index])
        for column in range(len(newest), 3):
            assert (cell(grid, row, column, 8, 8, 6) == 255).all()


def test_sample_grid__grey():
    arrays = pictures(2, channels=1)
    grid = sample_grid(bank_of(arrays, [0, 1]), ["a", "b"], per_class=1, cell=8)
    for row in range(2):
        np.testing.assert_array_equal(cell(grid, row, 0, 8, 8, 1), arrays[row].repeat(3, 0))


def test_sample_grid__larger_than_cell():
    arrays = pictures(1, height=60, width=50)
    grid = sample_grid(bank_of(arrays, [0]), ["a"], per_class=1, cell=48)
    np.testing.assert_array_equal(cell(grid, 0, 0, 60, 50, 1), arrays[0])


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


def test_callback__end_of_training(tmp_path):
    trainer = running(pictures(3), [0, 1, 1])
    SampleGrid(tmp_path / "samples.png", ["a", "b"]).on_train_end(trainer, MODULE)
    expected = np.asarray(sample_grid(trainer.datamodule.bank, ["a", "b"]))
    with Image.open(tmp_path / "samples.png") as file:
        np.testing.assert_array_equal(np.asarray(file), expected)
    ((key, images, step),) = trainer.loggers[0].logged
    assert (key, step) == ("bank/samples", 40)
    np.testing.assert_array_equal(np.asarray(images[0]), expected)


def test_callback__every_n_epochs(tmp_path):
    callback = SampleGrid(tmp_path / "samples.png", ["a", "b"], every_n_epochs=3)
    logged = []
    for epoch in range(8):
        trainer = running(pictures(2), [0, 1], epoch)
        callback.on_train_epoch_end(trainer, MODULE)
        if trainer.loggers[0].logged:
            logged.append(epoch)
    assert logged == [0, 3, 6]
    assert not (tmp_path / "samples.png").exists()


def test_callback__no_images(tmp_path):
    callback = SampleGrid(tmp_path / "samples.png", ["a", "b"])
    callback.on_train_end(running(pictures(0), []), MODULE)
    callback.on_train_end(SimpleNamespace(datamodule=None, loggers=[Board()]), MODULE)
    assert not (tmp_path / "samples.png").exists()
