"""The seed decides everything: on one CPU process, to the last bit."""

import random

import numpy as np
import pytest
import torch
from lightning import seed_everything

from nayer_pl import RandomCropFlip, Supervised
from nayer_pl.callbacks.loggers import MetricsFile
from nayer_pl.networks.weights import fingerprint


@pytest.mark.parametrize("kind", ["reset", "kept", "noise", "teacher"])
def test_seed(kind, tiny_method, tiny_data, tiny_classifier, tiny_real_data, fit, tmp_path):
    def run(name, seed):
        """A whole run: its network, and its metrics.csv."""
        seed_everything(seed, verbose=False)
        if kind == "teacher":
            method = Supervised(tiny_classifier())
            data = tiny_real_data(seed=seed)
        else:
            conditioning = "noise" if kind == "noise" else "lte"
            method = tiny_method(
                generator_life=1, conditioning=conditioning, reset_noisy_layer=kind != "kept"
            )
            data = tiny_data({"rounds_per_epoch": 2}, augmentation=RandomCropFlip(1), seed=seed)
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
