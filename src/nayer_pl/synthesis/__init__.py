"""What makes images: generators, their inputs, augmentation, and the rounds that train them."""

from nayer_pl.synthesis.augmentation import RandomCropFlip, RandomResizedPart, RollFlip
from nayer_pl.synthesis.conditioning import LabelConditioning, NoiseConditioning, NoisyLayer
from nayer_pl.synthesis.generators import DeepGenerator, Generator
from nayer_pl.synthesis.label_text import EmbeddingFile, LabelText
from nayer_pl.synthesis.synthesizer import OnlineSynthesizer, Synthesizer
from nayer_pl.synthesis.text_encoder import TextEncoder

__all__ = [
    "DeepGenerator",
    "EmbeddingFile",
    "Generator",
    "LabelConditioning",
    "LabelText",
    "NoiseConditioning",
    "NoisyLayer",
    "OnlineSynthesizer",
    "RandomCropFlip",
    "RandomResizedPart",
    "RollFlip",
    "Synthesizer",
    "TextEncoder",
]
