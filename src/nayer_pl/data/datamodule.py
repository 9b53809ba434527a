"""Real images for training a teacher, in augmented batches."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning import LightningDataModule
from pydantic import PositiveInt
from torch import Tensor

from nayer_pl.data.batches import Batches, Images, ImageSource, Split, open_split, pinned_for
from nayer_pl.runtime import distributed
from nayer_pl.runtime.numerics import Stream, restore_generator, stream_seed
from nayer_pl.runtime.options import checked


class RealDataModule(LightningDataModule):
    """Training and evaluation split of real images.

    Args:
        source: source of the images.
        batch_size: images per training step, over all ranks.
        augmentation: augmentation of the training images (a teacher's training), any callable that
            takes uint8 images [B, C, H, W] and a random generator on their device; None for none.
        epochs: epochs of training; `max_epochs` gives it to the trainer.
        eval_batch_size: images per evaluation step on each rank.
        num_classes: number of classes that the labels must fit; None does not check them.
        seed: seed of the order of the training images and of their augmentation.
        image_shape: (C, H, W) that the images must have; None does not check them.
        steps: batches in an epoch, as many as a data-free run has, whatever the size of the data
            set; None for one pass.

    Raises:
        InputError: an option is out of its range.

    Example:
        >>> from nayer_pl.data import Digits
        >>> data = RealDataModule(Digits(image_size=8), batch_size=32)
        >>> data.setup("validate")
        >>> data.image_shape
        (1, 8, 8)
    """

    has_real_images = True

    @checked
    def __init__(
        self,
        source: ImageSource,
        batch_size: PositiveInt = 128,
        augmentation: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        epochs: PositiveInt = 1,
        eval_batch_size: PositiveInt = 500,
        num_classes: PositiveInt | None = None,
        seed: int = 0,
        image_shape: Sequence[PositiveInt] | None = None,
        steps: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        self.source, self.batch_size, self.eval_batch_size = source, batch_size, eval_batch_size
        self.augmentation, self.max_epochs, self.steps = augmentation, epochs, steps
        self.num_classes, self.seed, self._expected_shape = num_classes, seed, image_shape
        self._rng: torch.Generator | None = None
        self._open: dict[Split, Images] = {}

    def setup(self, stage: str) -> None:
        """Open the splits that this stage needs, once.

        Raises:
            InputError: the batch cannot be split among the ranks, or a split cannot be used.
        """
        needed: list[Split] = ["evaluation"]
        if stage == "fit":
            needed = ["train", "evaluation"]
            distributed.check_batch_size(self.batch_size, self._rank()[1])
            if self.trainer is not None:
                # Every epoch has its own order, so the trainer must ask for it every time.
                self.trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
        for split in needed:
            if split not in self._open:
                images = open_split(self.source, split, self.num_classes, self._expected_shape)
                self._open[split] = images

    def _rank(self) -> tuple[int, int]:
        """This process and the number of processes."""
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of the images, once they are open."""
        return self._open["evaluation"].image_shape

    def train_dataloader(self) -> Batches:
        """Shuffled batches of this epoch, the incomplete last one of a pass dropped."""
        images, (rank, world) = self._open["train"], self._rank()
        batch_size = max(1, min(self.batch_size, len(images.labels)) // world)
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        return Batches(images, batch_size, True, self.seed, epoch, rank, world, self.steps)

    def evaluation_batches(self) -> Batches:
        """The evaluation split in order."""
        images, (rank, world) = self._open["evaluation"], self._rank()
        return Batches(images, self.eval_batch_size, rank=rank, world_size=world)

    val_dataloader = evaluation_batches

    def _random(self, device: torch.device) -> torch.Generator:
        """This rank's random stream of the augmentation."""
        if self._rng is None:
            seed = stream_seed(self.seed, self._rank()[0], Stream.CROPS)
            self._rng = torch.Generator(device).manual_seed(seed)
        return self._rng

    def state_dict(self) -> dict[str, Any]:
        """The random stream of every rank; called on all of them."""
        own = None if self._rng is None else self._rng.get_state()
        return {"ranks": distributed.all_gather(own)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resume the random stream of this rank, if it was saved."""
        assert self.trainer is not None
        states, (rank, _) = state_dict["ranks"], self._rank()
        if rank < len(states) and states[rank] is not None:
            restore_generator(self._random(self.trainer.strategy.root_device), states[rank])

    def on_before_batch_transfer(self, batch: list[Tensor], _: int) -> list[Tensor]:
        """Pin images on the host for the transfer to a GPU."""
        trainer = self.trainer
        return batch if trainer is None else pinned_for(trainer.strategy.root_device, batch)

    def on_after_batch_transfer(self, batch: list[Tensor], _: int) -> tuple[Tensor, Tensor]:
        """Convert uint8 images to floats in [0, 1], augmented while training."""
        images, labels = batch
        if self.augmentation is not None and self.trainer is not None and self.trainer.training:
            images = self.augmentation(images, self._random(images.device))
        return images.to(torch.float32) / 255, labels
