"""Architectures for small images, and what turns one into a teacher or a student."""

from nayer_pl.networks.architecture import architecture, build_network
from nayer_pl.networks.classifier import Classifier, build_classifier
from nayer_pl.networks.resnet import resnet18, resnet34, resnet50
from nayer_pl.networks.teacher import load_teacher
from nayer_pl.networks.vgg import vgg11
from nayer_pl.networks.wrn import wrn16_1, wrn16_2, wrn40_1, wrn40_2

__all__ = [
    "Classifier",
    "architecture",
    "build_classifier",
    "build_network",
    "load_teacher",
    "resnet18",
    "resnet34",
    "resnet50",
    "vgg11",
    "wrn16_1",
    "wrn16_2",
    "wrn40_1",
    "wrn40_2",
]
