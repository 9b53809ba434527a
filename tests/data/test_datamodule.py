from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer
from PIL import Image
from torch import nn

from nayer_pl import InputError, RealDataModule, SteppedDataModule
from nayer_pl.data import ImageSet, ImageStream
from nayer_pl.data.decoding import Decoder

COUNTS = {"train": 53, "evaluation": 31}


class Numbered:
    """Image i of a split is filled with the value i, and has label i; records what is opened."""

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
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path, **options,
    )  # fmt: skip


def fit(data, tmp_path, epochs=3):
    witness = Witness()
    trainer(tmp_path, max_epochs=epochs).fit(witness, datamodule=data)
    return witness


def seen(batches):
    return torch.cat([labels for _, labels in batches]).tolist()


def test_train__images_once_an_epoch(tmp_path):
    epochs = fit(RealDataModule(Numbered(), batch_size=8), tmp_path).epochs
    orders = [seen(batches) for batches in epochs]
    assert len(orders) == 3
    for batches, order in zip(epochs, orders, strict=True):
        assert [len(labels) for _, labels in batches] == [8] * 6  # 53 // 8; the rest is left out
        assert len(set(order)) == 48
        assert set(order) <= set(range(53))
        assert order != sorted(order)
    assert orders[0] != orders[1] != orders[2]


def test_train__fewer_images_than_a_batch(tmp_path):
    epochs = fit(RealDataModule(Numbered(), batch_size=1000), tmp_path, epochs=1).epochs
    assert len(epochs[0]) == 1
    assert sorted(seen(epochs[0])) == list(range(53))


def test_fit__images_and_labels(tmp_path):
    witness = fit(RealDataModule(Numbered(start=203), eval_batch_size=10), tmp_path, epochs=1)
    for images, labels in witness.epochs[0] + witness.validations[0]:
        assert images.dtype == torch.float32
        expected = labels / 255
        assert torch.equal(images, expected[:, None, None, None].expand_as(images))
    values = torch.cat([images.flatten() for images, _ in witness.epochs[0]])
    assert values.max() == 1


def test_validation__complete_and_not_augmented(tmp_path):
    data = RealDataModule(
        Numbered(), batch_size=8, augmentation=lambda images, rng: 255 - images, eval_batch_size=10
    )
    witness = fit(data, tmp_path, epochs=2)
    assert len(witness.validations) == 2
    for batches in witness.validations:
        assert [len(labels) for _, labels in batches] == [8, 8, 8, 7]
        assert seen(batches) == list(range(31))
        for images, labels in batches:
            assert torch.equal(images[:, 0, 0, 0], labels / 255)
    for batches in witness.epochs:
        for images, labels in batches:
            assert torch.equal(images[:, 0, 0, 0], (255 - labels) / 255)


def test_validate__evaluation_split_only(tmp_path):
    source = Numbered()
    trainer(tmp_path).validate(Witness(), datamodule=RealDataModule(source), verbose=False)
    assert source.opened == ["evaluation"]


def test_setup__loads_each_split_once(tmp_path):
    source = Numbered()
    data = RealDataModule(source, epochs=7)
    fit(data, tmp_path, epochs=2)
    fit(data, tmp_path, epochs=1)
    assert sorted(source.opened) == ["evaluation", "train"]
    assert data.max_epochs == 7


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


def test_ranks__evaluate_every_image_once():
    shared = [
        list(on_rank(r, 4, batch_size=4, eval_batch_size=5).val_dataloader()) for r in range(4)
    ]
    assert len({len(batches) for batches in shared}) == 1
    assert sorted(label for batches in shared for label in seen(batches)) == list(range(31))


def test_transfer__pinned_for_a_gpu(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    data, batch = on_rank(0, 1), [torch.zeros(2), torch.zeros(2)]
    for device, expected in (("cpu", []), ("cuda", batch)):
        data.trainer.strategy = SimpleNamespace(root_device=torch.device(device))
        sent = data.on_before_batch_transfer(batch, 0)
        assert [id(part) for part in sent] == [id(part) for part in batch]
        assert [id(part) for part in pinned] == [id(part) for part in expected]


@pytest.mark.parametrize("seed", range(3))
def test_augmentation__own_stream(seed):
    module = RealDataModule(Numbered(), 8, augmentation=lambda images, rng: images, seed=seed)
    module.setup("fit")
    crops = module._random(torch.device("cpu")).initial_seed()
    same = torch.randperm(COUNTS["train"], generator=torch.Generator().manual_seed(crops))
    first = torch.cat(module.train_dataloader().indices())
    assert first.tolist() != same[: len(first)].tolist()


@pytest.mark.parametrize(("batch", "world", "near"), [(128, 3, "126 or 129"), (2, 3, "choose 3")])
def test_ranks__indivisible_batch(batch, world, near):
    with pytest.raises(InputError, match=rf"batch_size={batch} .*{world} proc.*{near}"):
        on_rank(0, world, batch_size=batch)


def test_setup__checks_labels():
    with pytest.raises(InputError, match=r"train split is 52, but num_classes=10"):
        on_rank(0, 1, num_classes=10)
    data = RealDataModule(Numbered(), num_classes=30)
    with pytest.raises(InputError, match="evaluation split is 30"):
        data.setup("validate")


class OnDisk(Numbered):
    """The same, as PNG files; file 20 of the training split is damaged."""

    def __init__(self, folder, corrupt):
        super().__init__()
        self.folder, self.corrupt = folder, corrupt

    def load(self, split):
        images, labels = super().load(split)
        files = [self.folder / f"{split}{i}.png" for i in range(len(labels))]
        for file, image in zip(files, images, strict=True):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
        if split == "train":
            files[20].write_bytes(files[20].read_bytes()[:45])
        encoded = [(file.name, str(file)) for file in files]
        return ImageStream(encoded, labels, Decoder((3, 4, 4)), self.corrupt, workers=2)


def test_fit__skips_a_damaged_file(tmp_path, caplog):
    data = RealDataModule(OnDisk(tmp_path, "skip"), batch_size=53, eval_batch_size=10)
    witness = fit(data, tmp_path, epochs=2)
    for batches in witness.epochs:
        assert sorted(seen(batches)) == [i for i in range(53) if i != 20]
        for images, labels in batches:
            assert torch.equal(images[:, 0, 0, 0], labels / 255)
    assert seen(witness.validations[0]) == list(range(31))
    assert caplog.text.count("train20.png") == 1
    assert caplog.text.count("1 of 53 images are left out") == 1


def test_fit__stops_at_a_damaged_file(tmp_path):
    with pytest.raises(InputError, match=r"^This image cannot be read: train20.png"):
        fit(RealDataModule(OnDisk(tmp_path, "stop"), batch_size=8), tmp_path)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"epochs": 0}, {"augmentation": 1}])
def test_options__out_of_range(options):
    for kind, more in ((RealDataModule, {}), (SteppedDataModule, {"steps": 3})):
        with pytest.raises(InputError, match=f"^{next(iter(options))} must be"):
            kind(Numbered(), **more, **options)


def test_stepped__as_many_updates_as_given():
    data = SteppedDataModule(Numbered(), steps=9, batch_size=5, epochs=2)
    data.setup("fit")
    assert len(list(data.train_dataloader())) == len(data.train_dataloader()) == 9
    assert seen(data.val_dataloader()) == list(range(31))
