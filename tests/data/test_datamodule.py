from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule
from torch import nn

from nayer_pl import InputError, RealDataModule
from nayer_pl.data import ImageSet

COUNTS = {"train": 53, "evaluation": 31}


class Numbered:
    """Images filled with `start` and following values, their labels; records what is opened."""

    def __init__(self, start=0):
        self.start, self.opened = start, []

    def load(self, split):
        self.opened.append(split)
        numbers = torch.arange(self.start, self.start + COUNTS[split])
        images = numbers.to(torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4).contiguous()
        return ImageSet(images, numbers)


class Witness(LightningModule):
    """Learns nothing and keeps every batch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.epochs, self.validations = [], []

    def on_train_epoch_start(self):
        self.epochs.append([])

    def on_validation_epoch_start(self):
        self.validations.append([])

    def training_step(self, batch, _):
        self.epochs[-1].append(batch)
        return self.weight * 0

    def validation_step(self, batch, _):
        self.validations[-1].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def seen(batches):
    return torch.cat([labels for _, labels in batches]).tolist()


@pytest.mark.parametrize("augmentation", [None, lambda images, rng: 255 - images])
def test_fit__images_and_labels(fit, augmentation):
    """Training images once an epoch, in other orders; all images of the evaluation, as they are."""
    witness, source = Witness(), Numbered(start=203)
    data = RealDataModule(source, 8, augmentation, epochs=3, eval_batch_size=10)
    fit(witness, data, num_sanity_val_steps=0)
    orders = [seen(batches) for batches in witness.epochs]
    assert len(orders) == 3
    assert orders[0] != orders[1] != orders[2]
    for batches, order in zip(witness.epochs, orders, strict=True):
        assert [len(labels) for _, labels in batches] == [8] * 6  # 53 // 8; the rest is left out
        assert len(set(order)) == 48
        assert set(order) <= set(range(203, 256))
        assert order != sorted(order)
        for images, labels in batches:
            values = (labels if augmentation is None else 255 - labels) / 255
            assert torch.equal(images, values[:, None, None, None].expand_as(images))
    assert [seen(batches) for batches in witness.validations] == [list(range(203, 234))] * 3
    assert [len(labels) for _, labels in witness.validations[0]] == [8, 8, 8, 7]
    for images, labels in witness.validations[0]:
        assert torch.equal(images[:, 0, 0, 0], labels / 255)


def test_setup__loads_each_split_once():
    source = Numbered()
    data = RealDataModule(source)
    data.setup("validate")
    assert source.opened == ["evaluation"]
    for _ in range(2):
        data.setup("fit")
    assert source.opened == ["evaluation", "train"]


def test_train__fewer_images_than_a_batch():
    batches = list(on_rank(0, 1, batch_size=1000).train_dataloader())
    assert len(batches) == 1
    assert sorted(seen(batches)) == list(range(53))


def on_rank(rank, world, epoch=0, **options):
    """A module as one of several processes has it."""
    data = RealDataModule(Numbered(), **options)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world, current_epoch=epoch)
    data.setup("fit")
    return data


def test_ranks__batch_size_is_the_total():
    alone = [sorted(seen([batch])) for batch in on_rank(0, 1, batch_size=12).train_dataloader()]
    shared = [list(on_rank(rank, 3, batch_size=12).train_dataloader()) for rank in range(3)]
    assert {len(labels) for batches in shared for _, labels in batches} == {4}
    assert [sorted(seen(parts)) for parts in zip(*shared, strict=True)] == alone
    assert len(alone) == 53 // 12


def test_transfer__pinned_for_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: ("pinned", self))
    data, batch = on_rank(0, 1), [torch.zeros(2), torch.zeros(2)]
    for device, expected in (("cpu", batch), ("cuda", [("pinned", part) for part in batch])):
        data.trainer.strategy = SimpleNamespace(root_device=torch.device(device))
        assert data.on_before_batch_transfer(batch, 0) == expected


def test_augmentation__own_stream():
    data = on_rank(0, 1, batch_size=8)
    crops = data._random(torch.device("cpu")).initial_seed()
    same = torch.randperm(COUNTS["train"], generator=torch.Generator().manual_seed(crops))
    assert seen(data.train_dataloader()) != same[:48].tolist()


def test_ranks__indivisible_batch():
    with pytest.raises(InputError, match=r"batch_size=128 .*3 proc.*126 or 129"):
        on_rank(0, 3, batch_size=128)


def test_setup__checks_labels():
    with pytest.raises(InputError, match=r"train split is 52, but num_classes=10"):
        on_rank(0, 1, num_classes=10)
    data = RealDataModule(Numbered(), num_classes=30)
    with pytest.raises(InputError, match="evaluation split is 30"):
        data.setup("validate")


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("epochs", 0), ("augmentation", 1), ("steps", 0)]
)
def test_options__out_of_range(name, value):
    with pytest.raises(InputError, match=f"^{name} must be"):
        RealDataModule(Numbered(), **{name: value})


def test_steps__as_many_updates_as_given():
    data = on_rank(0, 1, steps=9, batch_size=10)
    assert len(list(data.train_dataloader())) == len(data.train_dataloader()) == 9
    assert seen(data.val_dataloader()) == list(range(31))
