from functools import partial

import pytest
import torch

from nayer_pl import (
    CMI,
    DAFL,
    DFAD,
    DFQ,
    NAYER,
    ZSKT,
    BankOptions,
    DeepInversion,
    FastDFKD,
    Generator,
    KnowledgeDistillation,
    RealDataModule,
)
from nayer_pl.data import ImageSet

SHAPE = (1, 8, 8)
ROUND = {"generator": partial(Generator, width=8), "generator_steps": 4, "round_size": 12}
TURN = {"generator": partial(Generator, width=8), "noise_features": 6}
SMALL = {
    NAYER: {"label_text": torch.eye(3), "noisy_features": 16, **ROUND},
    FastDFKD: {"noise_features": 16, **ROUND},
    CMI: {"noise_features": 16, "embedding_features": 8, **ROUND},
    DeepInversion: {"image_steps": 4, "augmentation": None, "round_size": 12},
    DAFL: TURN,
    DFAD: TURN,
    DFQ: TURN,
    ZSKT: {"round_size": 16, **TURN},
    KnowledgeDistillation: {},
}


@pytest.fixture
def make(tiny_classifier):
    """A method for images of SHAPE and 3 classes; none of its steps takes long."""

    def build(method, **options):
        nets = {"teacher": tiny_classifier(), "student": tiny_classifier()}
        small = {"image_shape": SHAPE, "check_teacher": False, **SMALL[method]}
        return method(**{**nets, **small, **options})

    return build


@pytest.fixture
def turns(tiny_data):
    """Data of a few turns; in each the generator learns, and then the student for some steps."""

    def build(turns=3, steps=1, **sizes):
        plan = {
            "epochs": 2, "warmup_epochs": 0, "rounds_per_epoch": turns, "kd_steps": turns * steps,
            "round_size": 16, "batch_size": 16, "interleaved": True, **sizes,
        }  # fmt: skip
        return tiny_data(plan, bank=BankOptions(capacity=plan["round_size"]))

    return build


class RandomImages:
    """24 images of three classes, without anything to learn about them."""

    def load(self, split):
        rng = torch.Generator().manual_seed(len(split))
        images = torch.randint(256, (24, *SHAPE), dtype=torch.uint8, generator=rng)
        return ImageSet(images, torch.arange(24) % 3)


@pytest.fixture
def real_data():
    return RealDataModule(RandomImages(), batch_size=8, epochs=2)
