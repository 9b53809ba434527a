"""Every loss: tensors in, a scalar out."""

from nayer_pl.losses.distillation import (
    DIST,
    DecoupledKD,
    KLCrossEntropy,
    KLDivergence,
    L1Logits,
    LogitStandardization,
    MSELogits,
    StudentLoss,
)
from nayer_pl.losses.inversion import BatchNormMatching, GaussianMatching, InversionLoss

__all__ = [
    "DIST",
    "BatchNormMatching",
    "DecoupledKD",
    "GaussianMatching",
    "InversionLoss",
    "KLCrossEntropy",
    "KLDivergence",
    "L1Logits",
    "LogitStandardization",
    "MSELogits",
    "StudentLoss",
]
