"""Residual blocks and stages (He et al., 2016, arXiv 1512.03385, table 1).

Checkpoints of different origin call the shortcut of a block differently, and nothing else.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut.

    Args:
        in_channels: of the input.
        width: channels of the convolutions.
        stride: 2 halves the resolution.
        shortcut: what it is called in checkpoints.
    """

    expansion = 1

    def __init__(
        self, in_channels: int, width: int, stride: int, shortcut: str = "downsample"
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.name_of_shortcut = shortcut
        self.add_module(shortcut, projection(in_channels, width, stride))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, width, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.get_submodule(self.name_of_shortcut)(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut.

    The 3x3 convolution halves the resolution, where the paper has the first 1x1 do it ("v1.5").

    Args:
        in_channels, width, stride, shortcut: see `BasicBlock`.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, stride: int, shortcut: str = "downsample"
    ) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.name_of_shortcut = shortcut
        self.add_module(shortcut, projection(in_channels, out_channels, stride))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, 4 width, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.get_submodule(self.name_of_shortcut)(x))


Block = type[BasicBlock] | type[Bottleneck]


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """A 1x1 convolution with BatchNorm, or nothing where the shape stays (option B)."""
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class ResidualNetwork(nn.Module):
    """Has stages `layer1`, `layer2`, ... of blocks; each but the first halves the resolution."""

    def add_stages(
        self,
        block: Block,
        depths: Sequence[int],
        widths: Sequence[int],
        in_channels: int,
        shortcut: str = "downsample",
    ) -> int:
        """Make them.

        Args:
            block: of all stages.
            depths, widths: blocks of each stage, and their width.
            in_channels: of the first stage's input.
            shortcut: see `BasicBlock`.

        Returns:
            Channels of the last stage's output.
        """
        self.stage_count = len(depths)
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
            blocks = []
            for i in range(depth):
                stride = 2 if stage > 1 and i == 0 else 1
                blocks.append(block(in_channels, width, stride, shortcut))
                in_channels = width * block.expansion
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        return in_channels

    def features(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the mean of the last stage's output over H and W, [B, channels]."""
        for stage in range(1, self.stage_count + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return torch.mean(x, dim=(2, 3))
