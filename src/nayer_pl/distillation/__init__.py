"""What the methods share: the bases of their classes, and a file for each part of those."""

from nayer_pl.distillation.base import DataFreeDistillation
from nayer_pl.distillation.descent import descend
from nayer_pl.distillation.inversion import InversionDistillation
from nayer_pl.distillation.online import OnlineDistillation

__all__ = ["DataFreeDistillation", "InversionDistillation", "OnlineDistillation", "descend"]
