"""Where synthetic images are kept, and the plan by which they are made and used."""

from nayer_pl.bank.bank import MemoryBank
from nayer_pl.bank.datamodule import SyntheticDataModule
from nayer_pl.bank.placement import BankOptions
from nayer_pl.bank.plan import DistillationBatch, Plan, SynthesisRound

__all__ = [
    "BankOptions",
    "DistillationBatch",
    "MemoryBank",
    "Plan",
    "SynthesisRound",
    "SyntheticDataModule",
]
