"""Data-free knowledge distillation in PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers: the same names as in the table below
    from nayer_pl.bank import BankOptions, MemoryBank, Plan, SyntheticDataModule
    from nayer_pl.data import Digits, FolderImages, HubImages, RealDataModule, class_names
    from nayer_pl.distillation import DataFreeDistillation, TeacherStudentModule, step_decay
    from nayer_pl.errors import DivergenceError, InputError, NayerError
    from nayer_pl.losses import (
        DIST,
        DecoupledKD,
        InversionLoss,
        KLCrossEntropy,
        KLDivergence,
        L1Logits,
        LogitStandardization,
        MSELogits,
    )
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
        FrozenTeacher,
        build_classifier,
        create_model,
        list_models,
        load_classifier,
        load_teacher,
        save_classifier,
    )
    from nayer_pl.runtime.numerics import fastest_precision
    from nayer_pl.synthesis import (
        DeepGenerator,
        EmbeddingFile,
        Generator,
        LabelText,
        NoisyLayer,
        OnlineSynthesizer,
        RandomCropFlip,
        RandomResizedPart,
        RollFlip,
        Synthesizer,
        TextEncoder,
    )

__version__ = "0.1.0"

# Imported when they are first asked for, because torchmetrics, which most rooms need, imports
# matplotlib and transformers where it finds them. A mistyped option is answered without that wait.
PUBLIC = {
    "bank": "BankOptions MemoryBank Plan SyntheticDataModule",
    "data": "Digits FolderImages HubImages RealDataModule class_names",
    "distillation": "DataFreeDistillation TeacherStudentModule step_decay",
    "errors": "DivergenceError InputError NayerError",
    "losses": (
        "DIST DecoupledKD InversionLoss KLCrossEntropy KLDivergence L1Logits LogitStandardization "
        "MSELogits"
    ),
    "methods": (
        "CMI DAFL DFAD DFQ NAYER ZSKT DeepInversion FastDFKD KnowledgeDistillation Supervised"
    ),
    "networks": (
        "Classifier FrozenTeacher build_classifier create_model list_models load_classifier "
        "load_teacher save_classifier"
    ),
    "runtime.numerics": "fastest_precision",
    "synthesis": (
        "DeepGenerator EmbeddingFile Generator LabelText NoisyLayer OnlineSynthesizer "
        "RandomCropFlip RandomResizedPart RollFlip Synthesizer TextEncoder"
    ),
}
_ROOMS = {name: room for room, names in PUBLIC.items() for name in names.split()}

__all__ = sorted(_ROOMS)


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'nayer_pl' has no attribute '{name}'")
    value = getattr(import_module(f"nayer_pl.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
