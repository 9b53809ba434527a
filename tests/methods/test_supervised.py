from functools import partial

import pytest
import torch
from lightning import Trainer

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


def fit(method, epochs=3):
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = RealDataModule(Stripes(), batch_size=20)
    trainer.fit(method, datamodule=data)
    return trainer


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(64, 2)

    def forward(self, x):
        return self.head(x.flatten(1))


def test_it_learns():
    method = Supervised(Classifier(Linear(), [0.5], [0.5]), optimizer=SMALL_STEPS)
    fit(method)
    images, labels = Stripes().load("evaluation")
    right = (method.network(images / 255).argmax(1) == labels).float().mean().item()
    assert method.results() == {"accuracy": pytest.approx(right), "parameters": 130}
    assert right > 0.95


def test_learning_rate_falls_to_zero():
    trainer = fit(Supervised(Classifier(Linear(), [0.5], [0.5]), optimizer=SMALL_STEPS), epochs=2)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_nonfinite_loss():
    method = Supervised(Classifier(Linear(), [0.5], [0.5]))
    torch.nn.init.constant_(method.network.network.head.weight, torch.nan)
    with pytest.raises(DivergenceError, match="training loss became nan"):
        fit(method)


def test_nonfinite_loss__network_and_checkpoint_stay_finite(tiny_classifier, fit, tmp_path):
    class Source:
        def load(self, split):
            return ImageSet(torch.zeros(24, 1, 8, 8, dtype=torch.uint8), torch.arange(24) % 3)

    method = Supervised(tiny_classifier(), optimizer=partial(torch.optim.SGD, lr=1e30))
    data = RealDataModule(Source(), 8, epochs=2, num_classes=3)
    saver = Checkpoints(tmp_path, minutes=0)
    with pytest.raises(DivergenceError, match=r"training loss became (nan|inf) at step 2, which"):
        fit(method, data, callbacks=[saver], enable_checkpointing=True)
    for state in (
        method.network.state_dict(),
        torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"],
    ):
        parameters = {k: v for k, v in state.items() if not k.rpartition(".")[2].startswith("run")}
        assert all(value.isfinite().all() for value in parameters.values())


def test_endless_schedule():
    with pytest.raises(InputError, match="max_epochs must be a number of epochs"):
        fit(Supervised(Classifier(Linear())), epochs=-1)
