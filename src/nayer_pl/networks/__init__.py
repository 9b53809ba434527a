"""Architectures, and what turns one into a teacher or a student."""

from nayer_pl.networks import mobilenet, resnet, shufflenet, vgg, wrn
from nayer_pl.networks.classifier import Classifier, build_classifier
from nayer_pl.networks.external import (
    from_timm,
    from_torch_hub,
    from_torchvision,
    from_transformers,
)
from nayer_pl.networks.mobilenet import *  # noqa: F403
from nayer_pl.networks.pretrained import load_classifier, load_teacher, save_classifier
from nayer_pl.networks.registry import architecture, build_network, create_model, list_models
from nayer_pl.networks.resnet import *  # noqa: F403
from nayer_pl.networks.shufflenet import *  # noqa: F403
from nayer_pl.networks.teacher import FrozenTeacher
from nayer_pl.networks.vgg import *  # noqa: F403
from nayer_pl.networks.wrn import *  # noqa: F403

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
__all__ += mobilenet.__all__ + resnet.__all__ + shufflenet.__all__ + vgg.__all__ + wrn.__all__
