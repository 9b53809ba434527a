"""Where synthetic images are kept, and the plan by which they are made and used."""

from nayer_pl.memory.bank import MemoryBank
from nayer_pl.memory.datamodule import BankOptions, SyntheticDataModule
from nayer_pl.memory.plan import DistillationBatch, Plan, SynthesisRound

__all__ = [
    "BankOptions",
    "DistillationBatch",
    "MemoryBank",
    "Plan",
    "SynthesisRound",
    "SyntheticDataModule",
]
