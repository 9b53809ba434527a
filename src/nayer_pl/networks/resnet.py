"""ResNets for small images (He et al., 2016, arXiv 1512.03385): a 3x3 stem and no first pooling.

Parameter names follow the checkpoints that the data-free distillation literature publishes
(`conv1`, `layer1.0.conv1`, `layer2.0.shortcut.0`, `linear`), so that those load unchanged.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from nayer_pl.networks.architecture import architecture
from nayer_pl.networks.residual import BasicBlock, Block, Bottleneck, ResidualNetwork


class ResNet(ResidualNetwork):
    """Stem, four stages of widths 64, 128, 256, 512, global average pooling, linear."""

    def __init__(
        self,
        block: Block,
        depths: tuple[int, int, int, int],
        num_classes: int,
        channels: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        width = self.add_stages(block, depths, (64, 128, 256, 512), 64, "shortcut")
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W], H and W at least 8 -> logits [B, num_classes]."""
        return self.linear(self.features(F.relu(self.bn1(self.conv1(x)))))


@architecture
def resnet18(num_classes: int, channels: int = 3) -> ResNet:
    """ResNet-18; 11.17 M parameters at 10 classes."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, channels)


@architecture
def resnet34(num_classes: int, channels: int = 3) -> ResNet:
    """ResNet-34; 21.28 M parameters at 10 classes."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, channels)


@architecture
def resnet50(num_classes: int, channels: int = 3) -> ResNet:
    """ResNet-50; 23.52 M parameters at 10 classes."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, channels)
