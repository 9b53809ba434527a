"""A bank on disk, in files that are written once, so that a checkpoint only needs to name them."""

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

MAX_FILE_BYTES = 256 * 1024**2  # bytes of a file; it is held in memory while it is written or read

Record = dict[str, Any]
"""A file's name and SHA-256, the number of its first image (of all ever added), how many it has."""


class BankFiles:
    """The files of one bank; each holds the images that were added since the file before it.

    A file's name contains its checksum, so a file is never replaced by other content, checkpoints
    of different age share files, and several runs may share a folder. The folder is made if it is
    missing; `name` is the prefix of the files' names.
    """

    def __init__(self, folder: str | Path, name: str) -> None:
        self.folder, self.name = Path(folder), name
        self.records: list[Record] = []

    def save(self, bank: MemoryBank) -> dict[str, Any]:
        """Write the images that were added to `bank` since the last call; called on all ranks.

        Returns the state that `load` needs, plain values: the files that hold the present images.

        Raises:
            OSError: a rank cannot write its files; raised on all ranks, because they save
                together. Files already written stay, and are not written again.
        """
        failure = None
        try:
            self._write_new(bank)
        except OSError as error:
            failure = cannot_write(error)
        failure = first_error(failure)
        if failure is not None:
            raise OSError(failure)
        files = [dict(record) for record in self.records]
        return {"added": bank.num_added, "images": len(bank), "files": files}

    def _write_new(self, bank: MemoryBank) -> None:
        oldest = bank.num_added - len(bank)
        first = max([oldest, *(record["first"] + record["images"] for record in self.records)])
        at_most = max(1, MAX_FILE_BYTES // math.prod(bank.image_shape))
        for start in range(first, bank.num_added, at_most):
            self.records.append(self._write(bank, start, min(bank.num_added, start + at_most)))
        self.records = [each for each in self.records if each["first"] + each["images"] > oldest]

    def _write(self, bank: MemoryBank, start: int, end: int) -> Record:
        slots = torch.arange(start, end, device=bank.device) % bank.capacity
        images, labels = bank.images[slots].contiguous().cpu(), bank.labels[slots].cpu()
        content = save({"images": images, "labels": labels})
        checksum = hashlib.sha256(content).hexdigest()
        path = self.folder / f"{self.name}-{start:08d}-{checksum[:12]}.safetensors"
        write_durably(path, content)  # also over an existing file, which may be damaged
        return {"file": path.name, "sha256": checksum, "first": start, "images": end - start}

    def load(self, bank: MemoryBank, state: Mapping[str, Any]) -> None:
        """Fill `bank` with the images of a saved state, each in its old place."""
        self.records = [dict(record) for record in state["files"]]
        bank.num_added = state["added"] - state["images"]
        for images, labels in self.read(state):
            bank.add(images, labels)

    def reshard(
        self, bank: MemoryBank, states: Sequence[Mapping[str, Any]], rank: int, world_size: int
    ) -> None:
        """Fill an empty `bank`, large enough, with one rank's part of all former ranks' images.

        `states` are those that `save` returned on the former ranks. The next `save` writes the
        images into files of this rank.
        """
        dealt = 0
        for state in states:
            for images, labels in self.read(state):
                own = slice((rank - dealt) % world_size, None, world_size)
                bank.add(images[own], labels[own])
                dealt += len(labels)

    def read(self, state: Mapping[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels of a saved state, oldest first, one file at a time."""
        oldest = state["added"] - state["images"]
        for record in state["files"]:
            content = load(read_verified(self.folder, record))
            skip = max(0, oldest - record["first"])
            yield content["images"][skip:], content["labels"][skip:]


def read_verified(folder: Path, record: Mapping[str, Any]) -> bytes:
    """The content of a file; an InputError if it is missing, or its checksum is wrong."""
    path = folder / record["file"]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"The bank's file '{path}' cannot be read: {error.strerror}.") from error
    if hashlib.sha256(content).hexdigest() != record["sha256"]:
        raise InputError(f"The bank's file '{path}' is damaged: its checksum is wrong.")
    return content
