"""Data-free knowledge distillation in PyTorch Lightning."""

from nayer_pl.augmentation import Augmentation
from nayer_pl.data import Digits, FolderImages, HubImages, RealDataModule, class_names
from nayer_pl.errors import DivergenceError, InputError, NayerError
from nayer_pl.export import load_classifier, save_classifier
from nayer_pl.memory import BankOptions, MemoryBank, Plan, SyntheticDataModule
from nayer_pl.methods import NAYER, DataFreeDistillation, Supervised
from nayer_pl.networks import Classifier, build_classifier, load_teacher
from nayer_pl.precision import fastest_precision
from nayer_pl.synthesis import (
    DeepGenerator,
    EmbeddingFile,
    Generator,
    LabelText,
    NoisyLayer,
    TextEncoder,
)

__all__ = [
    "NAYER",
    "Augmentation",
    "BankOptions",
    "Classifier",
    "DataFreeDistillation",
    "DeepGenerator",
    "Digits",
    "DivergenceError",
    "EmbeddingFile",
    "FolderImages",
    "Generator",
    "HubImages",
    "InputError",
    "LabelText",
    "MemoryBank",
    "NayerError",
    "NoisyLayer",
    "Plan",
    "RealDataModule",
    "Supervised",
    "SyntheticDataModule",
    "TextEncoder",
    "build_classifier",
    "class_names",
    "fastest_precision",
    "load_classifier",
    "load_teacher",
    "save_classifier",
]
