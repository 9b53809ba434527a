"""Real images, for evaluation and for training a teacher."""

from nayer_pl.data.datamodule import RealDataModule, in_batches
from nayer_pl.data.digits import Digits
from nayer_pl.data.hub import HubImages
from nayer_pl.data.images import ImageSet, ImageSource
from nayer_pl.data.names import class_names

__all__ = [
    "Digits",
    "HubImages",
    "ImageSet",
    "ImageSource",
    "RealDataModule",
    "class_names",
    "in_batches",
]
