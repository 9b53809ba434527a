"""Real images, for evaluation and for training a teacher."""

from nayer_pl.data.batches import Batches
from nayer_pl.data.datamodule import RealDataModule
from nayer_pl.data.digits import Digits
from nayer_pl.data.folder import FolderImages
from nayer_pl.data.hub import HubImages
from nayer_pl.data.images import Images, ImageSet, ImageSource, open_split
from nayer_pl.data.names import class_names
from nayer_pl.data.steps import SteppedDataModule
from nayer_pl.data.stream import ImageStream

__all__ = [
    "Batches",
    "Digits",
    "FolderImages",
    "HubImages",
    "ImageSet",
    "ImageSource",
    "ImageStream",
    "Images",
    "RealDataModule",
    "SteppedDataModule",
    "class_names",
    "open_split",
]
