"""Where synthetic images are kept, and the plan by which they are made and used."""

from nayer_pl.memory.bank import MemoryBank
from nayer_pl.memory.datamodule import SyntheticDataModule
from nayer_pl.memory.plan import DistillationBatch, Plan, SynthesisRound
from nayer_pl.memory.storage import BankOptions

__all__ = [
    "BankOptions",
    "DistillationBatch",
    "MemoryBank",
    "Plan",
    "SynthesisRound",
    "SyntheticDataModule",
]
