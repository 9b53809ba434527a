"""The memory bank: synthetic images in one uint8 tensor."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from pydantic import PositiveInt
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nayer_pl.errors import InputError
from nayer_pl.runtime.options import checked


class MemoryBank:
    """A ring buffer of images and their target labels; the oldest leave when it is full.

    Adding and sampling index one preallocated tensor, so neither depends on how much is in it.

    Args:
        capacity: number of images it can hold.
        image_shape: (C, H, W).
        device: device of the images and labels; sampling happens there.
        memory: a uint8 tensor to keep the images in, of exactly their size (see `allocate`);
            its device replaces `device`. None allocates one.

    Raises:
        InputError: an option is out of its range.

    Example:
        >>> bank = MemoryBank(capacity=4, image_shape=(1, 2, 2))
        >>> bank.add(torch.rand(6, 1, 2, 2), torch.arange(6))
        >>> len(bank), bank.num_added, sorted(bank.labels.tolist())
        (4, 6, [2, 3, 4, 5])
    """

    num_added: int
    """Images ever added, those that have left included."""

    @checked
    def __init__(
        self,
        capacity: PositiveInt,
        image_shape: Sequence[PositiveInt],
        device: torch.device | str = "cpu",
        memory: Tensor | None = None,
    ) -> None:
        self.capacity = capacity
        self.num_added = 0
        channels, height, width = image_shape
        shape = (capacity, height, width, channels)  # channels last, as convolutions like it
        if memory is None:
            memory = torch.empty(shape, dtype=torch.uint8, device=device)
        self._pixels = memory.view(shape)
        self._labels = torch.empty(capacity, dtype=torch.int64, device=memory.device)

    def __len__(self) -> int:
        return min(self.num_added, self.capacity)

    @property
    def device(self) -> torch.device:
        """Device of the images and labels."""
        return self._pixels.device

    @property
    def nbytes(self) -> int:
        """Bytes of the whole capacity, images and labels."""
        return self._pixels.nbytes + self._labels.nbytes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        height, width, channels = self._pixels.shape[1:]
        return channels, height, width

    @property
    def images(self) -> Tensor:
        """All images held, uint8 [N, C, H, W]; a view, not by age once the ring is full."""
        return self._pixels[: len(self)].permute(0, 3, 1, 2)

    @property
    def labels(self) -> Tensor:
        """The target label of each image, int64 [N]; a view."""
        return self._labels[: len(self)]

    def oldest_first(self) -> Tensor:
        """Positions in `images` and `labels`, oldest first: int64 [N]."""
        oldest = self.num_added % self.capacity if self.num_added > self.capacity else 0
        return (torch.arange(len(self), device=self.device) + oldest) % len(self)

    @torch.no_grad()
    def add(self, images: Tensor, labels: Tensor) -> None:
        """Add images [B, C, H, W], uint8 or floats in [0, 1], and their target labels [B].

        Raises:
            InputError: their shapes or types do not fit.
        """
        if images.shape[1:] != self.image_shape or labels.shape != images.shape[:1]:
            raise InputError(
                f"The bank holds images of shape {self.image_shape}, one label each; given images "
                f"{tuple(images.shape)} and labels {tuple(labels.shape)}."
            )
        if images.is_floating_point():
            images = images.mul(255).round_().clamp_(0, 255)
            images = images.to(torch.int16).to(torch.uint8)  # the direct way is slower on a CPU
        elif images.dtype != torch.uint8:
            raise InputError(f"The bank takes uint8 or floats in [0, 1], not {images.dtype}.")
        self.num_added += len(images)
        images, labels = images[-self.capacity :].permute(0, 2, 3, 1), labels[-self.capacity :]
        first = (self.num_added - len(images)) % self.capacity
        room = self.capacity - first  # before the ring starts over
        for slot, part in ((first, slice(0, room)), (0, slice(room, None))):
            slots = slice(slot, slot + len(images[part]))
            self._pixels[slots], self._labels[slots] = images[part], labels[part]

    def sample(
        self,
        count: int,
        rng: torch.Generator | None = None,
        augmentation: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw with replacement: images uint8 [count, C, H, W] and labels int64 [count].

        Args:
            count: number of images.
            rng: random stream on the bank's device; None for torch's global one.
            augmentation: applied to the images, called with `rng`; None for none.

        Raises:
            InputError: the bank is empty.
        """
        if not len(self):
            raise InputError(
                "The memory bank is empty: a distillation step came before any synthesis round; "
                "give the plan a warm-up or rounds per epoch."
            )
        index = torch.randint(len(self), (count,), device=self.device, generator=rng)
        # Unlike indexing, this copies whole images; they stay channels last in memory.
        images = self._pixels.index_select(0, index).permute(0, 3, 1, 2)
        if augmentation is not None:
            images = augmentation(images, rng)  # type: ignore[arg-type]
        return images, self._labels[index]

    def save(self, path: str | Path) -> None:
        """Write images and labels to a `.safetensors` file, oldest first."""
        order = self.oldest_first()
        images, labels = self.images[order].contiguous(), self.labels[order]
        save_file({"images": images.cpu(), "labels": labels.cpu()}, path)


class HoldoutLoader:
    """Batches of what a bank holds at the time of iteration, which is after it was filled."""

    def __init__(self, bank: MemoryBank, batch_size: int) -> None:
        self.bank, self.batch_size = bank, batch_size

    def __iter__(self) -> Iterator[list[Tensor]]:
        images, labels = self.bank.images, self.bank.labels
        for start in range(0, len(self.bank), self.batch_size):
            end = start + self.batch_size
            yield [images[start:end], labels[start:end]]


def read_bank(path: str | Path) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, C, H, W] and labels int64 [N] of a saved bank, or of the bank of a run.

    Args:
        path: a file that `MemoryBank.save` wrote, or the folder `bank` of a run, whose files hold
            every image that its checkpoints saved.

    Raises:
        InputError: there is no bank, or it is damaged.
    """
    files = sorted(Path(path).glob("bank-*.safetensors")) if Path(path).is_dir() else [Path(path)]
    try:
        if not files or not files[0].is_file():
            raise FileNotFoundError("no such file, nor a run's folder with files of a bank")
        contents = [load_file(file) for file in files]
        images, labels = (torch.cat([c[name] for c in contents]) for name in ("images", "labels"))
        kinds = (images.dtype, images.ndim, labels.dtype, tuple(labels.shape))
        if kinds != (torch.uint8, 4, torch.int64, (len(images),)):
            raise TypeError("not images uint8 [N, C, H, W] and labels int64 [N]")
    except (OSError, SafetensorError, KeyError, RuntimeError, TypeError) as error:
        raise InputError(
            f"'{path}' is not a saved memory bank, or damaged ({error}); give a file that "
            "MemoryBank.save wrote, or the folder 'bank' of a run."
        ) from error
    return images, labels
