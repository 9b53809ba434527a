from functools import partial

import pytest
import torch
from torch import nn

from nayer_pl import Classifier, DivergenceError, InputError, RealDataModule, Supervised
from nayer_pl.callbacks.checkpoint import Checkpoints
from nayer_pl.data import ImageSet

SMALL_STEPS = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


class Stripes:
    """Class 0 is bright above, class 1 below: anything that learns gets it right."""

    def load(self, split):
        rng = torch.Generator().manual_seed(len(split))
        images = torch.randint(60, (200, 1, 8, 8), dtype=torch.uint8, generator=rng)
        labels = torch.arange(200) % 2
        images[labels == 0, :, :4] += 150
        images[labels == 1, :, 4:] += 150
        return ImageSet(images, labels)


@pytest.fixture
def linear():
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), [0.5], [0.5])


def test_it_learns(linear, fit):
    """And its learning rate falls to zero."""
    method = Supervised(linear, optimizer=SMALL_STEPS)
    trainer = fit(method, RealDataModule(Stripes(), batch_size=20, epochs=3))
    images, labels = Stripes().load("evaluation")
    right = (method.network(images / 255).argmax(1) == labels).float().mean().item()
    assert method.results() == {"accuracy": pytest.approx(right), "parameters": 130}
    assert right > 0.95
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_nonfinite_loss(tiny_classifier, real_data, fit, tmp_path):
    """Network and checkpoint stay finite."""
    method = Supervised(tiny_classifier(), optimizer=partial(torch.optim.SGD, lr=1e30))
    saver = Checkpoints(tmp_path, minutes=0)
    with pytest.raises(DivergenceError, match=r"training loss became (nan|inf) at step 2, which"):
        fit(method, real_data, callbacks=[saver], enable_checkpointing=True)
    for state in (
        method.network.state_dict(),
        torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"],
    ):
        parameters = {k: v for k, v in state.items() if not k.rpartition(".")[2].startswith("run")}
        assert all(value.isfinite().all() for value in parameters.values())


def test_endless_schedule(linear, real_data, fit):
    with pytest.raises(InputError, match="max_epochs must be a number of epochs"):
        fit(Supervised(linear), real_data, max_epochs=-1)
