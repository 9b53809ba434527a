"""Architectures, and what turns one into a teacher or a student."""

from nayer_pl.networks.architecture import architecture, build_network
from nayer_pl.networks.cifar_resnet import resnet8x4, resnet20, resnet32, resnet32x4, resnet56
from nayer_pl.networks.classifier import Classifier, build_classifier
from nayer_pl.networks.from_timm import from_timm
from nayer_pl.networks.from_torch_hub import from_torch_hub
from nayer_pl.networks.from_torchvision import from_torchvision
from nayer_pl.networks.from_transformers import from_transformers
from nayer_pl.networks.imagenet_resnet import (
    resnet18_imagenet,
    resnet34_imagenet,
    resnet50_imagenet,
)
from nayer_pl.networks.mobilenet import mobilenetv2, mobilenetv2_imagenet
from nayer_pl.networks.resnet import resnet18, resnet34, resnet50
from nayer_pl.networks.shufflenet import shufflenetv2
from nayer_pl.networks.teacher import load_teacher
from nayer_pl.networks.vgg import vgg11
from nayer_pl.networks.wrn import wrn16_1, wrn16_2, wrn40_1, wrn40_2

__all__ = [
    "Classifier",
    "architecture",
    "build_classifier",
    "build_network",
    "from_timm",
    "from_torch_hub",
    "from_torchvision",
    "from_transformers",
    "load_teacher",
    "mobilenetv2",
    "mobilenetv2_imagenet",
    "resnet8x4",
    "resnet18",
    "resnet18_imagenet",
    "resnet20",
    "resnet32",
    "resnet32x4",
    "resnet34",
    "resnet34_imagenet",
    "resnet50",
    "resnet50_imagenet",
    "resnet56",
    "shufflenetv2",
    "vgg11",
    "wrn16_1",
    "wrn16_2",
    "wrn40_1",
    "wrn40_2",
]
