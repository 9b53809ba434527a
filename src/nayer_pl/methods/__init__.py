"""One file per method."""

from nayer_pl.methods.base import DataFreeDistillation
from nayer_pl.methods.nayer import NAYER
from nayer_pl.methods.supervised import Supervised

__all__ = ["NAYER", "DataFreeDistillation", "Supervised"]
