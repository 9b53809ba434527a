"""What a teacher sees in images, as one vector for each of them."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nayer_pl.networks.teacher import FrozenTeacher

Layers = Literal["all", "stages"]


class TeacherFeatures:
    """The spatial mean of every channel that goes into the teacher's BatchNorms.

    Args:
        teacher: Its BatchNorms are watched from now on.
        image_shape: (C, H, W) of the images.
        layers: BatchNorms that features are taken from: "all", or "stages" for the last one at each
            resolution.

    Example:
        >>> from nayer_pl.networks.classifier import Classifier
        >>> teacher = FrozenTeacher(Classifier(nn.BatchNorm2d(3), mean=[0.5], std=[0.2]))
        >>> features = TeacherFeatures(teacher, image_shape=(3, 8, 8), layers="all")
        >>> features.count, features(torch.rand(4, 3, 8, 8)).shape
        (3, torch.Size([4, 3]))
    """

    def __init__(self, teacher: FrozenTeacher, image_shape: Sequence[int], layers: Layers) -> None:
        self.teacher, self.layers = teacher, layers
        self._means: dict[Any, Tensor] = {}
        for norm in teacher.norms:
            norm.register_forward_pre_hook(self._keep)
        self.count = self(teacher.classifier.dummy_images(image_shape)).shape[1]

    def __call__(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, count]."""
        self.teacher.observe(images)
        return self.last()

    def last(self) -> Tensor:
        """The same of the images that the teacher has observed last."""
        return torch.cat(list(self._means.values()), dim=1)

    def forget(self) -> None:
        """Let go of the last images, and of the graph that they are part of."""
        self._means = {}

    def _keep(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        layer = norm if self.layers == "all" else x.shape[2:]  # the last one of its resolution
        self._means[layer] = x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))
