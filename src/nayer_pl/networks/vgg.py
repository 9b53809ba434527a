"""VGG with BatchNorm for small images (Simonyan and Zisserman, 2015, arXiv 1409.1556).

Parameter names follow the checkpoints that the data-free distillation literature publishes
(`block0.0`, `block2.3`, `classifier`), so that those load unchanged.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nayer_pl.networks.registry import architecture

__all__ = ["vgg11"]


class VGG(nn.Module):
    """Five blocks of 3x3 convolutions, halved in between, global average pooling, linear."""

    def __init__(self, blocks: list[list[int]], num_classes: int, channels: int) -> None:
        super().__init__()
        self.depth = len(blocks)
        width_in = channels
        for i, widths in enumerate(blocks):
            layers: list[nn.Module] = []
            for width in widths:
                layers += [
                    nn.Conv2d(width_in, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                width_in = width
            self.add_module(f"block{i}", nn.Sequential(*layers))
        self.classifier = nn.Linear(width_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W], H and W at least 16 -> logits [B, num_classes]."""
        for i in range(self.depth):
            x = self.get_submodule(f"block{i}")(x if i == 0 else F.max_pool2d(x, 2))
        return self.classifier(torch.mean(x, dim=(2, 3)))


@architecture
def vgg11(num_classes: int, channels: int = 3) -> VGG:
    """VGG-11 with BatchNorm and one linear layer; 9.23 M parameters at 10 classes."""
    return VGG([[64], [128], [256, 256], [512, 512], [512, 512]], num_classes, channels)
