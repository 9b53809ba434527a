"""The seed decides everything: on one CPU process, to the last bit."""

import random

import numpy as np
import pytest
import torch
from lightning import seed_everything

from nayer_pl import RandomCropFlip, RealDataModule, Supervised
from nayer_pl.callbacks.loggers import MetricsFile
from nayer_pl.data import ImageSet


class Source:
    """Random images to train a teacher on."""

    def load(self, split):
        rng = torch.Generator().manual_seed(5)
        images = torch.randint(256, (24, 1, 8, 8), dtype=torch.uint8, generator=rng)
        return ImageSet(images, torch.arange(24) % 3)


@pytest.fixture
def run(tiny_method, tiny_data, tiny_classifier, fit, tmp_path):
    """A whole run with this seed: its network and its metrics.csv."""

    def start(name, seed, kind, **options):
        seed_everything(seed, verbose=False)
        if kind == "distillation":
            method = tiny_method(generator_life=1, **options)
            data = tiny_data({"rounds_per_epoch": 2}, augmentation=RandomCropFlip(1), seed=seed)
        else:
            method = Supervised(tiny_classifier())
            data = RealDataModule(
                Source(), 8, RandomCropFlip(1), epochs=2, num_classes=3, seed=seed
            )
        logger = MetricsFile(tmp_path / name, name="", version="")
        fit(method, data, logger=logger)
        metrics = tmp_path / name / "metrics.csv"
        return method.exported_classifier.state_dict(), metrics.read_bytes()

    return start


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("distillation", {}),
        ("distillation", {"conditioning": "noise"}),
        ("distillation", {"reset_noisy_layer": False}),
        ("teacher", {}),
    ],
)
def test_seed(run, kind, options):
    student, metrics = run("first", 7, kind, **options)
    # Other random numbers that this process drew.
    for draw in (random.random, np.random.rand, lambda: torch.rand(3)):
        draw()
    again, rows = run("second", 7, kind, **options)
    assert same(again, student)
    assert rows == metrics
    other, rows = run("third", 8, kind, **options)
    assert not same(other, student)
    assert rows != metrics
