"""The memory bank: every image that was synthesized, in one uint8 tensor."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nayer_pl.errors import InputError
from nayer_pl.synthesis.augmentation import RandomCropFlip


class MemoryBank:
    """A ring buffer of images and their wanted labels; the oldest leave when it is full.

    Adding and sampling index one preallocated tensor, so neither depends on how much is in it.

    Args:
        capacity: images it can hold.
        image_shape: (C, H, W).
        device: where it lives; sampling happens there.
        memory: where the images go instead, uint8, as many bytes as they need (`allocate`).

    >>> bank = MemoryBank(capacity=4, image_shape=(1, 2, 2))
    >>> bank.add(torch.rand(6, 1, 2, 2), torch.arange(6))
    >>> len(bank), bank.added, sorted(bank.labels.tolist())
    (4, 6, [2, 3, 4, 5])
    """

    def __init__(
        self,
        capacity: int,
        image_shape: Sequence[int],
        device: torch.device | str = "cpu",
        memory: Tensor | None = None,
    ) -> None:
        if capacity < 1:
            raise InputError(f"A memory bank needs room for at least one image, not {capacity}.")
        self.capacity = capacity
        self.added = 0
        channels, height, width = image_shape
        shape = (capacity, height, width, channels)  # channels last, as convolutions like it
        if memory is None:
            memory = torch.empty(shape, dtype=torch.uint8, device=device)
        self._pixels = memory.view(shape)
        self._labels = torch.empty(capacity, dtype=torch.int64, device=memory.device)

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self._pixels.device

    @property
    def nbytes(self) -> int:
        """Bytes that images and labels take, with the room for those to come."""
        return self._pixels.nbytes + self._labels.nbytes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        height, width, channels = self._pixels.shape[1:]
        return channels, height, width

    @property
    def images(self) -> Tensor:
        """All images held, uint8 [len, C, H, W]; a view, in no order of age once the ring turns."""
        return self._pixels[: len(self)].permute(0, 3, 1, 2)

    @property
    def labels(self) -> Tensor:
        """The label each image was made for, int64 [len]; a view."""
        return self._labels[: len(self)]

    def oldest_first(self) -> Tensor:
        """Positions in `images` and `labels`, oldest first: int64 [len]."""
        oldest = self.added % self.capacity if self.added > self.capacity else 0
        return (torch.arange(len(self), device=self.device) + oldest) % len(self)

    @torch.no_grad()
    def add(self, images: Tensor, labels: Tensor) -> None:
        """Keep images, [B, C, H, W] uint8 or floats in [0, 1], and labels [B]."""
        if images.shape[1:] != self.image_shape or labels.shape != images.shape[:1]:
            raise InputError(
                f"The bank holds images of shape {self.image_shape}, one label each; given images "
                f"{tuple(images.shape)} and labels {tuple(labels.shape)}."
            )
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise InputError(f"The bank takes uint8 or floats in [0, 1], not {images.dtype}.")
        if images.dtype != torch.uint8:
            images = images.mul(255).round_().clamp_(0, 255)
            images = images.to(torch.int16).to(torch.uint8)  # the direct way takes a CPU longer
        self.added += len(images)
        images, labels = images[-self.capacity :].permute(0, 2, 3, 1), labels[-self.capacity :]
        first = (self.added - len(images)) % self.capacity
        room = self.capacity - first  # before the ring begins anew
        for slot, part in ((first, slice(0, room)), (0, slice(room, None))):
            slots = slice(slot, slot + len(images[part]))
            self._pixels[slots], self._labels[slots] = images[part], labels[part]

    def sample(
        self,
        count: int,
        rng: torch.Generator | None = None,
        augmentation: RandomCropFlip | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw with replacement: images uint8 [count, C, H, W], augmented, and labels [count].

        The images are channels last in memory.
        """
        if not len(self):
            raise InputError(
                "The memory bank is empty: a distillation step came before any synthesis round; "
                "give the plan a warm-up or rounds per epoch."
            )
        index = torch.randint(len(self), (count,), device=self.device, generator=rng)
        # Unlike indexing, this copies whole images.
        images = self._pixels.index_select(0, index).permute(0, 3, 1, 2)
        if augmentation is not None:
            images = augmentation(images, rng)
        return images, self._labels[index]

    def save(self, path: str | Path) -> None:
        """Write images and labels to a `.safetensors` file, oldest first."""
        order = self.oldest_first()
        content = {"images": self.images[order].contiguous(), "labels": self.labels[order]}
        save_file({name: tensor.cpu() for name, tensor in content.items()}, path)


def read_bank(path: str | Path) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, C, H, W] and labels int64 [N] of a saved bank, or of the bank of a run.

    Args:
        path: a file that `MemoryBank.save` wrote, or the folder `bank` of a run, whose files hold
            every image that the run has saved.

    Raises:
        InputError: no bank there, or a damaged one.
    """
    files = sorted(Path(path).glob("bank-*.safetensors")) if Path(path).is_dir() else [Path(path)]
    if not files or not files[0].is_file():
        raise InputError(
            f"'{path}' is not a saved memory bank: there is no such file, nor a run's folder with "
            "files of a bank."
        )
    try:
        contents = [load_file(file) for file in files]
        images, labels = (torch.cat([c[name] for c in contents]) for name in ("images", "labels"))
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise InputError(
            f"'{path}' is not a saved memory bank, or damaged ({error}); give a file that "
            "MemoryBank.save wrote."
        ) from error
    kinds = (images.dtype, images.ndim, labels.dtype, tuple(labels.shape))
    if kinds != (torch.uint8, 4, torch.int64, (len(images),)):
        raise InputError(
            f"'{path}' is not a saved memory bank: it holds images {_kind(images)} and labels "
            f"{_kind(labels)}, not uint8 [N, C, H, W] and int64 [N]."
        )
    return images, labels


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
