"""Owns the bank, plans the epochs, and opens the evaluation split: the only real images."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from nayer_pl.bank.bank import MemoryBank, read_bank
from nayer_pl.bank.epoch import EpochPlan, Share, seek_epoch
from nayer_pl.bank.files import BankFiles
from nayer_pl.bank.holdout import HoldoutLoader
from nayer_pl.bank.placement import BankOptions, allocate
from nayer_pl.bank.plan import DistillationBatch, Plan, WorkItem, round_targets
from nayer_pl.data.batches import Batches
from nayer_pl.data.images import Images, ImageSource, open_split
from nayer_pl.errors import InputError
from nayer_pl.runtime import distributed
from nayer_pl.runtime.rng import Stream, restore_generator, stream_seed
from nayer_pl.synthesis.augmentation import RandomCropFlip

log = logging.getLogger(__name__)


class SyntheticDataModule(LightningDataModule):
    """What a data-free run trains on: a planned sequence of rounds and banked batches.

    Args:
        image_shape: (C, H, W) of the images to make.
        num_classes: labels to make them for.
        plan: how much of what.
        source: real images, of which only the evaluation split is opened.
        evaluation: False, or no source, for a run without any real image: the student is
            compared with the teacher on banked images that are held back from training.
        augmentation: applied to banked images when they are drawn; None for none.
        bank: how the bank is kept.
        holdout: without `evaluation`, the share of every round that is held back.
        eval_batch_size: images per evaluation step.
        seed: of labels, sampling and augmentation.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        plan: Plan,
        source: ImageSource | None = None,
        evaluation: bool = True,
        augmentation: RandomCropFlip | None = None,
        bank: BankOptions | None = None,
        holdout: float = 0.05,
        eval_batch_size: int = 500,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if plan.round_size < num_classes and not plan.allow_partial_classes:
            raise InputError(
                f"A round of {plan.round_size} images is smaller than the number of classes "
                f"({num_classes}); set plan.round_size to at least {num_classes}, or "
                "plan.allow_partial_classes=true for rounds that hold a random part of the classes."
            )
        if not 0 < holdout < 1:
            raise InputError(f"holdout is a share between 0 and 1, not {holdout}.")
        self.image_shape, self.num_classes, self.plan = tuple(image_shape), num_classes, plan
        self.source = source if evaluation else None
        self.augmentation, self.bank_options = augmentation, bank or BankOptions()
        self.holdout_share, self.eval_batch_size, self.seed = holdout, eval_batch_size, seed
        self.share = Share()
        self.bank: MemoryBank
        self.holdout: MemoryBank | None = None
        self._real: Images | None = None

    @property
    def max_epochs(self) -> int:
        """Epochs of the whole plan."""
        return self.plan.max_epochs

    @property
    def has_real_images(self) -> bool:
        """Whether there is an evaluation split, with real labels."""
        return self.source is not None

    def setup(self, stage: str) -> None:
        """Open the evaluation split, and start with an empty bank (or the one asked for)."""
        if self.source is not None and self._real is None:
            self._real = open_split(self.source, "evaluation", self.num_classes)
        if stage != "fit":
            return
        assert self.trainer is not None
        # Warm-up and distillation epochs differ in length: the trainer must ask every time.
        self.trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
        self.share = Share(self.trainer.global_rank, self.trainer.world_size)
        images, labels = self._initial_images()
        self.share.check(self.plan, len(images))
        self.bank = self._start_bank(images, labels)
        self._start_streams()
        if not self.has_real_images:
            room = max(1, round(self.bank.capacity * self.holdout_share))
            self.holdout = self._new_bank(room)
        folder = Path(self.trainer.default_root_dir) / "bank"
        self.segments = {
            name: BankFiles(folder, f"{name}-{self.share.rank}") for name in self._banks()
        }

    def _start_streams(self) -> None:
        seed, rank = self.seed, self.share.rank
        self.rng = torch.Generator(self.bank.device)
        self.rng.manual_seed(stream_seed(seed, rank, Stream.BATCHES))
        self.label_rng = torch.Generator()
        self.label_rng.manual_seed(stream_seed(seed, rank, Stream.LABELS))

    def _banks(self) -> dict[str, MemoryBank]:
        banks = {"bank": self.bank, "holdout": self.holdout}
        return {name: bank for name, bank in banks.items() if bank is not None}

    def _initial_images(self) -> tuple[Tensor, Tensor]:
        if self.bank_options.initial:
            return read_bank(self.bank_options.initial)
        return torch.empty((0, *self.image_shape)), torch.empty(0, dtype=torch.int64)

    def _start_bank(self, images: Tensor, labels: Tensor) -> MemoryBank:
        own = self.share.part(len(images))
        images, labels = images[own], labels[own]
        capacity = -(-(self.bank_options.capacity or 0) // self.share.ranks)
        bank = self._new_bank(capacity or len(images) + self.share.room(self.plan))
        bank.add(images, labels)
        return bank

    def _new_bank(self, capacity: int) -> MemoryBank:
        assert self.trainer is not None
        memory = allocate(
            (capacity, *self.image_shape),
            self.trainer.strategy.root_device,
            self.bank_options.device,
            self.trainer.default_root_dir,
            self.trainer.num_devices,
        )
        return MemoryBank(capacity, self.image_shape, memory=memory)

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Bank the images of one round; some go to the held-back ones if nothing else evaluates."""
        if self.holdout is not None:
            order = torch.randperm(len(images), generator=self.label_rng).to(images.device)
            keep = min(len(images) - 1, max(1, round(len(images) * self.holdout_share)))
            self.holdout.add(images[order[:keep]], labels[order[:keep]])
            images, labels = images[order[keep:]], labels[order[keep:]]
        self.bank.add(images, labels)

    def state_dict(self) -> dict[str, Any]:
        """Where the images of every rank are, and its random streams; called on all of them."""
        own = {name: self.segments[name].save(bank) for name, bank in self._banks().items()}
        streams = {"rng": self.rng.get_state(), "label_rng": self.label_rng.get_state()}
        return {"ranks": distributed.all_gather({**own, **streams})}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Bring the banks back; deal them out again if there is another number of ranks.

        Raises:
            InputError: a file of the bank is missing or damaged.
        """
        states, rank = state_dict["ranks"], self.share.rank
        if len(states) == self.share.ranks:
            for name, bank in self._banks().items():
                self.segments[name].load(bank, states[rank][name])
        else:
            self._deal_out(states)
            self._start_streams()  # where the new banks are
        if rank < len(states):
            restore_generator(self.rng, states[rank]["rng"])
            restore_generator(self.label_rng, states[rank]["label_rng"])

    def _deal_out(self, states: Sequence[Mapping[str, Any]]) -> None:
        # The rounds already made were dealt out otherwise: some ranks have more to come than room.
        more = 2 * self.plan.round_size + 2 if self.bank_options.capacity is None else 0
        room = {name: bank.capacity + more for name, bank in self._banks().items()}
        for name, capacity in room.items():
            delattr(self, name)  # before it is asked how much memory is free
            setattr(self, name, self._new_bank(capacity))
        for name, bank in self._banks().items():
            own = [state[name] for state in states]
            self.segments[name].reshard(bank, own, self.share.rank, self.share.ranks)
        if self.share.rank == 0:
            log.warning(
                "The run had %s processes and now has %s: its %s banked images are dealt out "
                "again. None is lost, but from here on it is not the run that it would have been.",
                len(states), self.share.ranks, f"{sum(s['bank']['images'] for s in states):,}",
            )  # fmt: skip

    def train_dataloader(self) -> EpochPlan:
        """The work items of the current epoch."""
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        return EpochPlan(self.plan, epoch, self._targets, self._batch, self.share)

    def seek_epoch(self, loop: Mapping[str, Any]) -> None:
        """See `epoch.seek_epoch`."""
        seek_epoch(loop, self.plan, self.share)

    def _targets(self) -> Tensor:
        return round_targets(self.num_classes, self.plan.round_size, self.label_rng)

    def _batch(self) -> DistillationBatch:
        size = self.plan.batch_size // self.share.ranks
        images, labels = self.bank.sample(size, self.rng, self.augmentation)
        assert self.trainer is not None
        if self.trainer.strategy.root_device.type == "cuda" and self.bank.device.type == "cpu":
            # From memory that is not pinned, the transfer would wait for the GPU.
            images, labels = images.pin_memory(), labels.pin_memory()
        return DistillationBatch(images, labels)

    def val_dataloader(self) -> "Batches | HoldoutLoader | list[Batches]":
        """What the student is judged on after an epoch; nothing while it has not learned."""
        assert self.trainer is not None
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        if fitting and self.plan.is_warm_up(self.trainer.current_epoch):
            return []
        return self.evaluation_batches()

    def evaluation_batches(self) -> "Batches | HoldoutLoader":
        """Real images in order, or the banked ones that were held back."""
        if self.holdout is not None:
            return HoldoutLoader(self.holdout, self.eval_batch_size)
        if self._real is None:
            raise InputError("There are no real images to evaluate on: data.evaluation is false.")
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        return Batches(self._real, self.eval_batch_size, rank=rank, world=world)

    def on_after_batch_transfer(
        self, batch: WorkItem | list[Tensor], _: int
    ) -> WorkItem | tuple[Tensor, Tensor]:
        """Uint8 images -> [0, 1], on the device, where it is cheap."""
        if isinstance(batch, DistillationBatch):
            return batch._replace(images=batch.images.to(torch.float32).div_(255))
        if isinstance(batch, list):
            images, labels = batch
            return images.to(torch.float32).div_(255), labels
        return batch
