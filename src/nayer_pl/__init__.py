"""Data-free knowledge distillation in PyTorch Lightning."""

from nayer_pl.bank import BankOptions, MemoryBank, Plan, SyntheticDataModule
from nayer_pl.data import (
    Digits,
    FolderImages,
    HubImages,
    RealDataModule,
    SteppedDataModule,
    class_names,
)
from nayer_pl.distillation import (
    DataFreeDistillation,
    InversionDistillation,
    OnlineDistillation,
    descend,
)
from nayer_pl.errors import DivergenceError, InputError, NayerError
from nayer_pl.methods import (
    CMI,
    DAFL,
    DFAD,
    DFQ,
    NAYER,
    ZSKT,
    DeepInversion,
    FastDFKD,
    KnowledgeDistillation,
    Supervised,
)
from nayer_pl.networks import (
    Classifier,
    build_classifier,
    load_classifier,
    load_teacher,
    save_classifier,
)
from nayer_pl.runtime.precision import fastest_precision
from nayer_pl.synthesis import (
    DeepGenerator,
    EmbeddingFile,
    Generator,
    LabelText,
    NoisyLayer,
    TextEncoder,
)
from nayer_pl.synthesis.augmentation import RandomCropFlip

__version__ = "0.1.0"

__all__ = [
    "CMI",
    "DAFL",
    "DFAD",
    "DFQ",
    "NAYER",
    "ZSKT",
    "BankOptions",
    "Classifier",
    "DataFreeDistillation",
    "DeepGenerator",
    "DeepInversion",
    "Digits",
    "DivergenceError",
    "EmbeddingFile",
    "FastDFKD",
    "FolderImages",
    "Generator",
    "HubImages",
    "InputError",
    "InversionDistillation",
    "KnowledgeDistillation",
    "LabelText",
    "MemoryBank",
    "NayerError",
    "NoisyLayer",
    "OnlineDistillation",
    "Plan",
    "RandomCropFlip",
    "RealDataModule",
    "SteppedDataModule",
    "Supervised",
    "SyntheticDataModule",
    "TextEncoder",
    "build_classifier",
    "class_names",
    "descend",
    "fastest_precision",
    "load_classifier",
    "load_teacher",
    "save_classifier",
]
