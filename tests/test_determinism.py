"""The seed decides everything: on one CPU process, to the last bit."""

import random

import numpy as np
import pytest
import torch
from lightning import seed_everything

from nayer_pl import RandomCropFlip, RealDataModule, Supervised
from nayer_pl.callbacks.loggers import MetricsFile
from nayer_pl.data import ImageSet
from nayer_pl.networks.weights import fingerprint


class Source:
    """Random images to train and evaluate on."""

    def load(self, split):
        rng = torch.Generator().manual_seed(5)
        images = torch.randint(256, (24, 1, 8, 8), dtype=torch.uint8, generator=rng)
        return ImageSet(images, torch.arange(24) % 3)


@pytest.mark.parametrize("kind", ["reset", "kept", "noise", "teacher"])
def test_seed(kind, tiny_method, tiny_data, tiny_classifier, fit, tmp_path):
    def run(name, seed):
        """A whole run: its network, and its metrics.csv."""
        seed_everything(seed, verbose=False)
        crop = RandomCropFlip(1)
        if kind == "teacher":
            method = Supervised(tiny_classifier())
            data = RealDataModule(Source(), 8, crop, epochs=2, num_classes=3, seed=seed)
        else:
            conditioning = "noise" if kind == "noise" else "lte"
            method = tiny_method(
                generator_life=1, conditioning=conditioning, reset_noisy_layer=kind != "kept"
            )
            data = tiny_data({"rounds_per_epoch": 2}, augmentation=crop, seed=seed)
        fit(method, data, logger=MetricsFile(tmp_path / name, name="", version=""))
        metrics = (tmp_path / name / "metrics.csv").read_bytes()
        return fingerprint(method.exported_classifier), metrics

    first = run("first", 7)
    # Other random numbers that this process drew.
    for draw in (random.random, np.random.rand, lambda: torch.rand(3)):
        draw()
    assert run("second", 7) == first
    for mine, other in zip(first, run("third", 8), strict=True):
        assert mine != other
