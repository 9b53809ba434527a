"""Real images for training a teacher, in augmented batches."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor

from nayer_pl.data.batches import Batches
from nayer_pl.data.images import Images, ImageSource, Split, open_split
from nayer_pl.errors import require
from nayer_pl.runtime import distributed
from nayer_pl.runtime.rng import Stream, restore_generator, stream_seed
from nayer_pl.synthesis.augmentation import RandomCropFlip


class RealDataModule(LightningDataModule):
    """Training and evaluation split of real images.

    Args:
        source: where they come from.
        batch_size: images per training step, over all ranks.
        augmentation: applied to training images, on the device; None for none.
        epochs: how long to train; `run.train` gives it to the trainer.
        eval_batch_size: images per evaluation step, on each rank.
        num_classes: what the labels must be of; None does not check them.
        seed: of the order of the training images and their augmentation.
        image_shape: (C, H, W) that the images must have; None does not check them.

    Raises:
        InputError: no epoch, or no image in a batch.
    """

    def __init__(
        self,
        source: ImageSource,
        batch_size: int = 128,
        augmentation: RandomCropFlip | None = None,
        epochs: int = 1,
        eval_batch_size: int = 500,
        num_classes: int | None = None,
        seed: int = 0,
        image_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        require(epochs >= 1, "plan.epochs", "at least 1", epochs)
        require(batch_size >= 1, "plan.batch_size", "at least 1", batch_size)
        self.source, self.batch_size, self.eval_batch_size = source, batch_size, eval_batch_size
        self.augmentation, self.max_epochs = augmentation, epochs
        self.num_classes, self.seed, self._wanted_shape = num_classes, seed, image_shape
        self._rng: torch.Generator | None = None
        self._train: Images | None = None
        self._evaluation: Images | None = None

    def setup(self, stage: str) -> None:
        """Open the splits that this stage needs, once.

        Raises:
            InputError: the batch cannot be shared out among the ranks, or a split is not usable.
        """
        if stage == "fit":
            distributed.check_batch_size(self.batch_size, self._rank()[1])
            if self.trainer is not None:
                # Every epoch has an order of its own: the trainer must ask every time.
                self.trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
            if self._train is None:
                self._train = self._open("train")
        if self._evaluation is None:
            self._evaluation = self._open("evaluation")

    def _open(self, split: Split) -> Images:
        return open_split(self.source, split, self.num_classes, self._wanted_shape)

    def _rank(self) -> tuple[int, int]:
        """Which of how many processes this is."""
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of the images, once they are open."""
        assert self._evaluation is not None
        return self._evaluation.image_shape

    def train_dataloader(self) -> Batches:
        """Shuffled batches of this epoch, the incomplete last one dropped."""
        assert self._train is not None
        rank, world = self._rank()
        share = min(self.batch_size, len(self._train.labels)) // world
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        return Batches(self._train, max(1, share), True, self.seed, epoch, rank, world)

    has_real_images = True

    def evaluation_batches(self) -> Batches:
        """What a network is judged on."""
        return self.val_dataloader()

    def val_dataloader(self) -> Batches:
        """The evaluation split in order."""
        assert self._evaluation is not None
        rank, world = self._rank()
        return Batches(self._evaluation, self.eval_batch_size, rank=rank, world=world)

    def _random(self, device: torch.device) -> torch.Generator:
        """This rank's stream of crops and flips."""
        if self._rng is None:
            seed = stream_seed(self.seed, self._rank()[0], Stream.CROPS)
            self._rng = torch.Generator(device).manual_seed(seed)
        return self._rng

    def state_dict(self) -> dict[str, Any]:
        """The random stream of every rank; called on all of them."""
        return {
            "ranks": distributed.all_gather(None if self._rng is None else self._rng.get_state())
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on with the stream of this rank, if it was there."""
        assert self.trainer is not None
        states, (rank, _) = state_dict["ranks"], self._rank()
        if rank < len(states) and states[rank] is not None:
            restore_generator(self._random(self.trainer.strategy.root_device), states[rank])

    def on_before_batch_transfer(self, batch: list[Tensor], _: int) -> list[Tensor]:
        """From memory that is not pinned, the transfer would wait for the GPU."""
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return [part.pin_memory() for part in batch] if on_gpu else batch

    def on_after_batch_transfer(self, batch: list[Tensor], _: int) -> tuple[Tensor, Tensor]:
        """Uint8 -> [0, 1], augmented while training."""
        images, labels = batch
        if self.augmentation is not None and self.trainer is not None and self.trainer.training:
            images = self.augmentation(images, self._random(images.device))
        return images.to(torch.float32) / 255, labels
