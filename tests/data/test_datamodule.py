import pytest
import torch
from lightning import LightningModule, Trainer
from torch import nn

from nayer_pl import RealDataModule
from nayer_pl.data import ImageSet, in_batches

COUNTS = {"train": 53, "evaluation": 31}


class Numbered:
    """Image i of a split is filled with the value i, and has the label i; notes what is opened."""

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


def trainer(tmp_path, **options):
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        **options,
    )


def fit(data, tmp_path, epochs=3):
    witness = Witness()
    trainer(tmp_path, max_epochs=epochs).fit(witness, datamodule=data)
    return witness


def seen(batches):
    return torch.cat([labels for _, labels in batches]).tolist()


def test_every_training_image_is_seen_at_most_once_an_epoch(tmp_path):
    epochs = fit(RealDataModule(Numbered(), batch_size=8), tmp_path).epochs
    orders = [seen(batches) for batches in epochs]
    assert len(orders) == 3
    for batches, order in zip(epochs, orders, strict=True):
        assert [len(labels) for _, labels in batches] == [8] * 6  # 53 // 8; the rest is left out
        assert len(set(order)) == 48
        assert set(order) <= set(range(53))
        assert order != sorted(order)
    assert orders[0] != orders[1] != orders[2]


def test_set_smaller_than_a_batch_is_one_batch(tmp_path):
    epochs = fit(RealDataModule(Numbered(), batch_size=1000), tmp_path, epochs=1).epochs
    assert len(epochs[0]) == 1
    assert sorted(seen(epochs[0])) == list(range(53))


def test_images_keep_their_labels_and_lie_between_zero_and_one(tmp_path):
    witness = fit(RealDataModule(Numbered(start=203), eval_batch_size=10), tmp_path, epochs=1)
    for images, labels in witness.epochs[0] + witness.validations[0]:
        assert images.dtype == torch.float32
        expected = labels / 255
        assert torch.equal(images, expected[:, None, None, None].expand_as(images))
    values = torch.cat([images.flatten() for images, _ in witness.epochs[0]])
    assert values.max() == 1


def test_validation_is_complete_in_order_and_not_augmented(tmp_path):
    data = RealDataModule(
        Numbered(), batch_size=8, augmentation=lambda images: 255 - images, eval_batch_size=10
    )
    witness = fit(data, tmp_path, epochs=2)
    assert len(witness.validations) == 2
    for batches in witness.validations:
        assert [len(labels) for _, labels in batches] == [10, 10, 10, 1]
        assert seen(batches) == list(range(31))
        for images, labels in batches:
            assert torch.equal(images[:, 0, 0, 0], labels / 255)
    for batches in witness.epochs:
        for images, labels in batches:
            assert torch.equal(images[:, 0, 0, 0], (255 - labels) / 255)


def test_validating_alone_opens_the_evaluation_split_only(tmp_path):
    source = Numbered()
    trainer(tmp_path).validate(Witness(), datamodule=RealDataModule(source), verbose=False)
    assert source.opened == ["evaluation"]


def test_each_split_is_decoded_once(tmp_path):
    source = Numbered()
    data = RealDataModule(source, epochs=7)
    fit(data, tmp_path, epochs=2)
    fit(data, tmp_path, epochs=1)
    assert sorted(source.opened) == ["evaluation", "train"]
    assert data.max_epochs == 7


@pytest.mark.parametrize(("shuffle", "batches"), [(True, 2), (False, 3)])
def test_only_shuffled_batches_drop_the_incomplete_last_one(shuffle, batches):
    images = ImageSet(torch.zeros(11, 1, 2, 2, dtype=torch.uint8), torch.arange(11))
    loader = in_batches(images, 4, shuffle=shuffle)
    assert len(loader) == len(list(loader)) == batches
