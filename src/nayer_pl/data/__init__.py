"""Real images, for evaluation and for training a teacher."""

from nayer_pl.data.batches import Batches, Images, ImageSet, ImageSource, open_split
from nayer_pl.data.datamodule import RealDataModule
from nayer_pl.data.decoding import ImageStream
from nayer_pl.data.folder import FolderImages
from nayer_pl.data.hub import HubImages
from nayer_pl.data.shipped import Digits, class_names

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
    "class_names",
    "open_split",
]
