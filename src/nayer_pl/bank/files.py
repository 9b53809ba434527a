"""A bank on disk: files that are written once, so that a checkpoint only needs to name them."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from nayer_pl.bank.bank import MemoryBank
from nayer_pl.errors import InputError
from nayer_pl.runtime.distributed import first_error
from nayer_pl.runtime.files import cannot_write, write_durably

LARGEST = 256 * 1024**2  # bytes of a file; it is held in memory while it is written or read

Record = dict[str, Any]
"""A file's name and SHA-256, the number of its first image (of all ever added), how many it has."""


class BankFiles:
    """The files of one bank. Each holds what was added since the one before.

    A file's name contains its checksum. So no file is ever replaced by another content, checkpoints
    of different age share files, and several runs may share a folder.

    Args:
        folder: of the files.
        name: what their names begin with.
    """

    def __init__(self, folder: str | Path, name: str) -> None:
        self.folder, self.name = Path(folder), name
        self.records: list[Record] = []

    def save(self, bank: MemoryBank) -> dict[str, Any]:
        """Write what is new in `bank`.

        Returns:
            What `load` needs, plain values: the files that hold what is in the bank now.

        Raises:
            OSError: the disk of any rank is full or cannot be written; on all of them, because
                they save together. What was written stays, and is not written again.
        """
        trouble = None
        try:
            self._write_new(bank)
        except OSError as error:
            trouble = cannot_write(error)
        trouble = first_error(trouble)
        if trouble is not None:
            raise OSError(trouble)
        return {"added": bank.added, "images": len(bank), "files": [dict(r) for r in self.records]}

    def _write_new(self, bank: MemoryBank) -> None:
        oldest = bank.added - len(bank)
        first = max([oldest, *(record["first"] + record["images"] for record in self.records)])
        at_most = max(1, LARGEST // math.prod(bank.image_shape))
        for start in range(first, bank.added, at_most):
            self.records.append(self._write(bank, start, min(bank.added, start + at_most)))
        self.records = [each for each in self.records if each["first"] + each["images"] > oldest]

    def _write(self, bank: MemoryBank, start: int, end: int) -> Record:
        slots = torch.arange(start, end, device=bank.device) % bank.capacity
        images, labels = bank.images[slots].contiguous().cpu(), bank.labels[slots].cpu()
        content = save({"images": images, "labels": labels})
        checksum = hashlib.sha256(content).hexdigest()
        path = self.folder / f"{self.name}-{start:08d}-{checksum[:12]}.safetensors"
        write_durably(path, content)  # also where it is there already: perhaps it was damaged since
        return {"file": path.name, "sha256": checksum, "first": start, "images": end - start}

    def load(self, bank: MemoryBank, state: Mapping[str, Any]) -> None:
        """Fill `bank` as it was, every image at its old place, from what `save` returned.

        Raises:
            InputError: a file is missing or damaged, or holds images of another shape.
        """
        self.records = [dict(record) for record in state["files"]]
        bank.added = state["added"] - state["images"]
        for images, labels in self.read(state):
            bank.add(images, labels)

    def reshard(
        self, bank: MemoryBank, states: Sequence[Mapping[str, Any]], rank: int, ranks: int
    ) -> None:
        """Fill `bank` with one rank's share of what the banks of other ranks held.

        The files stay those of the others; the next `save` writes the share into new ones.

        Args:
            bank: with room for it.
            states: what `save` returned on every rank that there was.
            rank, ranks: which of how many there are now.

        Raises:
            InputError: a file is missing or damaged.
        """
        dealt = 0
        for state in states:
            for images, labels in self.read(state):
                own = slice((rank - dealt) % ranks, None, ranks)
                bank.add(images[own], labels[own])
                dealt += len(labels)

    def read(self, state: Mapping[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels that a bank held, oldest first, one file at a time.

        Raises:
            InputError: a file is missing or damaged.
        """
        oldest = state["added"] - state["images"]
        for record in state["files"]:
            content = load(checked(self.folder, record))
            skip = max(0, oldest - record["first"])
            yield content["images"][skip:], content["labels"][skip:]


def checked(folder: str | Path, record: Mapping[str, Any]) -> bytes:
    """The content of a file.

    Raises:
        InputError: it is missing, or not what was written.
    """
    path = Path(folder) / record["file"]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"The bank's file '{path}' cannot be read: {error.strerror}.") from error
    if hashlib.sha256(content).hexdigest() != record["sha256"]:
        raise InputError(f"The bank's file '{path}' is damaged: its checksum is another.")
    return content
