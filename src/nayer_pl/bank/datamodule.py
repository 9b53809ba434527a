"""The data of a data-free run: a bank of synthetic images, and images to evaluate on."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Gt, Lt
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from pydantic import PositiveInt
from torch import Tensor

from nayer_pl.bank.bank import HoldoutLoader, MemoryBank, read_bank
from nayer_pl.bank.files import BankFiles
from nayer_pl.bank.placement import BankOptions, allocate
from nayer_pl.bank.plan import DistillationBatch, EpochPlan, Plan, RankShard, SynthesisRound
from nayer_pl.data.batches import Batches, Images, ImageSource, open_split, pinned_for
from nayer_pl.errors import InputError
from nayer_pl.runtime import distributed
from nayer_pl.runtime.numerics import Stream, restore_generator, stream_seed
from nayer_pl.runtime.options import checked

log = logging.getLogger(__name__)

Batch = SynthesisRound | DistillationBatch | Sequence[Tensor]  # the last one of real images


class SyntheticDataModule(LightningDataModule):
    """Training data of a data-free run: synthesis rounds, and batches of the bank they fill.

    Real images are only evaluated on, and their training split is never opened.

    Args:
        image_shape: (C, H, W) of the synthetic images.
        num_classes: number of classes that images are synthesized for.
        plan: how many rounds and distillation batches.
        source: real images to evaluate the student on; None for none.
        evaluation: False opens no real image even if there is a `source`. Without real images the
            student is compared with the teacher on banked images that are held out of training.
        augmentation: augmentation of the student's batches, any callable that takes uint8 images
            [B, C, H, W] and a random generator on their device; None for none.
        bank: size, place and initial content of the bank.
        holdout: without real images, the share of every round that is held out.
        eval_batch_size: images per evaluation step.
        seed: seed of target labels, sampling and augmentation.

    Raises:
        InputError: an option is out of its range, or a round does not hold every class.

    Example:
        >>> data = SyntheticDataModule((1, 8, 8), 10, Plan(epochs=2, warmup_epochs=1))
        >>> data.max_epochs, data.has_real_images
        (3, False)
    """

    bank: MemoryBank
    holdout: MemoryBank | None

    @checked
    def __init__(
        self,
        image_shape: Sequence[PositiveInt],
        num_classes: PositiveInt,
        plan: Plan,
        source: ImageSource | None = None,
        evaluation: bool = True,
        augmentation: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        bank: BankOptions | None = None,
        holdout: Annotated[float, Gt(0), Lt(1)] = 0.05,
        eval_batch_size: PositiveInt = 500,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if plan.round_size < num_classes and not plan.allow_partial_classes:
            raise InputError(
                f"A round of {plan.round_size} images is smaller than the number of classes "
                f"({num_classes}); set round_size to at least {num_classes}, or "
                "allow_partial_classes=True for rounds that hold a random part of the classes."
            )
        self.image_shape, self.num_classes, self.plan = tuple(image_shape), num_classes, plan
        self.source = source if evaluation else None
        self.augmentation, self.bank_options = augmentation, bank or BankOptions()
        self.holdout_share, self.eval_batch_size, self.seed = holdout, eval_batch_size, seed
        self.shard, self.holdout = RankShard(), None
        self._real: Images | None = None

    @property
    def max_epochs(self) -> int:
        """Epochs of the whole plan."""
        return self.plan.max_epochs

    @property
    def has_real_images(self) -> bool:
        """Whether the student is evaluated on real images."""
        return self.source is not None

    def setup(self, stage: str) -> None:
        """Open the evaluation split, and start with an empty bank or the one in `bank.initial`."""
        if self.trainer is not None:
            self.shard = RankShard(self.trainer.global_rank, self.trainer.world_size)
        if self.source is not None and self._real is None:
            self._real = open_split(self.source, "evaluation", self.num_classes)
        if stage != "fit":
            return
        assert self.trainer is not None
        # Warm-up and distillation epochs differ in length, so the trainer must ask every time.
        self.trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
        images, labels = torch.empty(0, *self.image_shape), torch.empty(0, dtype=torch.int64)
        if self.bank_options.initial:
            images, labels = read_bank(self.bank_options.initial)
        self.shard.check(self.plan, len(images))
        own, total = self.shard.slice(len(images)), self.bank_options.capacity
        planned = len(images[own]) + self.shard.capacity(self.plan)
        self.bank = self._new_bank(-(-total // self.shard.world_size) if total else planned)
        self.bank.add(images[own], labels[own])
        self._start_streams()
        if not self.has_real_images:
            self.holdout = self._new_bank(max(1, round(self.bank.capacity * self.holdout_share)))
        folder, rank = Path(self.trainer.default_root_dir) / "bank", self.shard.rank
        self._files = {name: BankFiles(folder, f"{name}-{rank}") for name in self._banks()}

    def _start_streams(self) -> None:
        seed, rank = self.seed, self.shard.rank
        self.rng = torch.Generator(self.bank.device)
        self.rng.manual_seed(stream_seed(seed, rank, Stream.BATCHES))
        self.label_rng = torch.Generator()
        self.label_rng.manual_seed(stream_seed(seed, rank, Stream.LABELS))

    def _banks(self) -> dict[str, MemoryBank]:
        banks = {"bank": self.bank, "holdout": self.holdout}
        return {name: bank for name, bank in banks.items() if bank is not None}

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
        """Add the images [B, C, H, W] and labels [B] of a round to the bank and the holdout."""
        if self.holdout is not None:
            order = torch.randperm(len(images), generator=self.label_rng).to(images.device)
            keep = min(len(images) - 1, max(1, round(len(images) * self.holdout_share)))
            self.holdout.add(images[order[:keep]], labels[order[:keep]])
            images, labels = images[order[keep:]], labels[order[keep:]]
        self.bank.add(images, labels)

    def state_dict(self) -> dict[str, Any]:
        """The files and random streams of every rank; called on all of them."""
        own = {name: self._files[name].save(bank) for name, bank in self._banks().items()}
        streams = {"rng": self.rng.get_state(), "label_rng": self.label_rng.get_state()}
        return {"ranks": distributed.all_gather({**own, **streams})}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the banks; split them again if the number of ranks is another.

        Raises:
            InputError: a file of the bank is missing or damaged.
        """
        states, rank = state_dict["ranks"], self.shard.rank
        if len(states) == self.shard.world_size:
            for name, bank in self._banks().items():
                self._files[name].load(bank, states[rank][name])
        else:
            self._reshard(states)
            self._start_streams()  # on the device of the new banks
        if rank < len(states):
            restore_generator(self.rng, states[rank]["rng"])
            restore_generator(self.label_rng, states[rank]["label_rng"])

    def _reshard(self, states: Sequence[Mapping[str, Any]]) -> None:
        # Rounds that were made with the former ranks may leave this one more to come than planned.
        more = 2 * self.plan.round_size + 2 if self.bank_options.capacity is None else 0
        capacities = {name: bank.capacity + more for name, bank in self._banks().items()}
        for name, capacity in capacities.items():
            delattr(self, name)  # free its memory before the new bank looks for some
            setattr(self, name, self._new_bank(capacity))
        for name, bank in self._banks().items():
            own = [state[name] for state in states]
            self._files[name].reshard(bank, own, self.shard.rank, self.shard.world_size)
        if self.shard.rank == 0:
            log.warning(
                "The run had %s processes and now has %s: its %s banked images are split again. "
                "None is lost, but the run is no longer the one that it would have been.",
                len(states), self.shard.world_size, f"{sum(s['bank']['images'] for s in states):,}",
            )  # fmt: skip

    def train_dataloader(self) -> EpochPlan:
        """The rounds and batches of the current epoch."""
        return self._epoch_plan(self.trainer.current_epoch if self.trainer is not None else 0)

    def _epoch_plan(self, epoch: int) -> EpochPlan:
        return EpochPlan(
            self.plan, epoch, self.num_classes, self.bank, self.shard,
            self.label_rng, self.rng, self.augmentation,
        )  # fmt: skip

    def seek_epoch(self, loop: Mapping[str, Any]) -> None:
        """Correct the position in the epoch in the saved state of a trainer's fit loop.

        The trainer counts items, of which there are more or fewer with another number of ranks.
        """
        done, epoch = loop["state_dict"].get("combined_loader"), loop["epoch_progress"]["current"]
        if not done or epoch["processed"] == epoch["started"]:
            return  # between two epochs
        items = self._epoch_plan(epoch["processed"])
        items.load_state_dict(done[0])
        place = loop["epoch_loop.batch_progress"]["current"]
        moved = items.position() - place["ready"]
        place.update({name: count + moved for name, count in place.items()})

    def val_dataloader(self) -> "Batches | HoldoutLoader | list[Batches]":
        """Images to evaluate the student on after an epoch; none after a warm-up epoch."""
        assert self.trainer is not None
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        if fitting and self.plan.is_warm_up(self.trainer.current_epoch):
            return []
        return self.evaluation_batches()

    def evaluation_batches(self) -> "Batches | HoldoutLoader":
        """Real images in order, or the banked images that were held out."""
        if self.holdout is not None:
            return HoldoutLoader(self.holdout, self.eval_batch_size)
        if self._real is None:
            raise InputError("There are no real images to evaluate on: set evaluation=True.")
        rank, world_size = self.shard.rank, self.shard.world_size
        return Batches(self._real, self.eval_batch_size, rank=rank, world_size=world_size)

    def on_before_batch_transfer(self, batch: Batch, _: int) -> Batch:
        """Pin images on the host for the transfer to a GPU."""
        assert self.trainer is not None
        if isinstance(batch, SynthesisRound):
            return batch
        pinned = pinned_for(self.trainer.strategy.root_device, batch)
        return DistillationBatch(*pinned) if isinstance(batch, DistillationBatch) else pinned

    def on_after_batch_transfer(self, batch: Batch, _: int) -> Batch:
        """Convert uint8 images to floats in [0, 1], on the device."""
        if isinstance(batch, SynthesisRound):
            return batch
        floats = batch[0].to(torch.float32).div_(255), batch[1]
        return DistillationBatch(*floats) if isinstance(batch, DistillationBatch) else floats
