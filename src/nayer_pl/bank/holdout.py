"""What a run without real images is judged on."""

from collections.abc import Iterator

from torch import Tensor

from nayer_pl.bank.bank import MemoryBank


class HoldoutLoader:
    """Batches of what a bank holds when they are asked for, which is after it was filled."""

    def __init__(self, bank: MemoryBank, batch_size: int) -> None:
        self.bank, self.batch_size = bank, batch_size

    def __iter__(self) -> Iterator[list[Tensor]]:
        images, labels = self.bank.images, self.bank.labels
        for start in range(0, len(self.bank), self.batch_size):
            end = start + self.batch_size
            yield [images[start:end], labels[start:end]]
