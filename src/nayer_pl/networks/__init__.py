"""Architectures, and what turns one into a teacher or a student."""

from nayer_pl.networks import cifar, mobile, resnet
from nayer_pl.networks.cifar import *  # noqa: F403
from nayer_pl.networks.classifier import Classifier, build_classifier
from nayer_pl.networks.external import (
    from_timm,
    from_torch_hub,
    from_torchvision,
    from_transformers,
)
from nayer_pl.networks.mobile import *  # noqa: F403
from nayer_pl.networks.pretrained import load_classifier, load_teacher, save_classifier
from nayer_pl.networks.registry import architecture, build_network, create_model, list_models
from nayer_pl.networks.resnet import *  # noqa: F403
from nayer_pl.networks.teacher import FrozenTeacher

__all__ = [
    "Classifier",
    "FrozenTeacher",
    "architecture",
    "build_classifier",
    "build_network",
    "create_model",
    "from_timm",
    "from_torch_hub",
    "from_torchvision",
    "from_transformers",
    "list_models",
    "load_classifier",
    "load_teacher",
    "save_classifier",
]
# Each family lists its own networks.
__all__ += cifar.__all__ + mobile.__all__ + resnet.__all__
