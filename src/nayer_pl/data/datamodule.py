"""Real images for training a teacher: augmented batches of a data set that sits in memory."""

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from nayer_pl.augmentation import Augmentation
from nayer_pl.data.images import ImageSet, ImageSource


def in_batches(images: ImageSet, batch_size: int, *, shuffle: bool) -> DataLoader:
    """Yield (images, labels) by indexing whole batches: no per-image work, no worker processes."""
    dataset = TensorDataset(*images)
    order = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)
    return DataLoader(dataset, sampler=BatchSampler(order, batch_size, shuffle), batch_size=None)


class RealDataModule(LightningDataModule):
    """Training and evaluation split of real images.

    Args:
        source: where they come from.
        batch_size: images per training step.
        augmentation: applied to training images, on the device; None for none.
        epochs: how long to train; `run.train` gives it to the trainer.
        eval_batch_size: images per evaluation step.
    """

    def __init__(
        self,
        source: ImageSource,
        batch_size: int = 128,
        augmentation: Augmentation | None = None,
        epochs: int = 1,
        eval_batch_size: int = 500,
    ) -> None:
        super().__init__()
        self.source, self.batch_size, self.eval_batch_size = source, batch_size, eval_batch_size
        self.augmentation, self.max_epochs = augmentation, epochs
        self._train: ImageSet | None = None
        self._evaluation: ImageSet | None = None

    def setup(self, stage: str) -> None:
        """Decode the splits that this stage needs, once."""
        if stage == "fit" and self._train is None:
            self._train = self.source.load("train")
        if self._evaluation is None:
            self._evaluation = self.source.load("evaluation")

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches, the incomplete last one dropped."""
        assert self._train is not None
        size = min(self.batch_size, len(self._train.labels))
        return in_batches(self._train, size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """The evaluation split in order."""
        assert self._evaluation is not None
        return in_batches(self._evaluation, self.eval_batch_size, shuffle=False)

    def on_after_batch_transfer(self, batch: list[Tensor], _: int) -> tuple[Tensor, Tensor]:
        """Uint8 -> [0, 1], augmented while training."""
        images, labels = batch
        if self.augmentation is not None and self.trainer is not None and self.trainer.training:
            images = self.augmentation(images)
        return images.to(torch.float32) / 255, labels
