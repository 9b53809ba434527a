"""What makes an image and what judges it; pure torch."""

from nayer_pl.losses.batchnorm import BatchNormMatching
from nayer_pl.losses.functional import adversarial_loss, class_loss, distillation_loss
from nayer_pl.synthesis.conditioning import LabelConditioning, NoiseConditioning
from nayer_pl.synthesis.generators import DeepGenerator, Generator
from nayer_pl.synthesis.label_text import EmbeddingFile, LabelText
from nayer_pl.synthesis.noisy_layer import NoisyLayer
from nayer_pl.synthesis.text_encoder import TextEncoder

__all__ = [
    "BatchNormMatching",
    "DeepGenerator",
    "EmbeddingFile",
    "Generator",
    "LabelConditioning",
    "LabelText",
    "NoiseConditioning",
    "NoisyLayer",
    "TextEncoder",
    "adversarial_loss",
    "class_loss",
    "distillation_loss",
]
