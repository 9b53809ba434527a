"""A network together with its normalisation: images in [0, 1] in, logits out."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nayer_pl.errors import InputError
from nayer_pl.networks.architecture import build_network


class Classifier(nn.Module):
    """Teacher or student: normalises images in [0, 1] as `network` was trained to see them.

    Args:
        network: images [B, C, H, W] -> logits [B, num_classes].
        mean: per-channel mean, one value or C.
        std: per-channel standard deviation, one value or C.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,)
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise InputError(
                f"mean {list(mean)} and std {list(std)} must be as many values, std above zero."
            )
        self.network = network
        # Not part of the state: weight files keep the network's own keys, in every layout.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images in [0, 1], [B, C, H, W] -> logits [B, num_classes]."""
        return self.network((images - self.mean) / self.std)

    @property
    def description(self) -> dict[str, Any] | None:
        """What `build_classifier` needs to rebuild this, or None if nobody recorded it."""
        architecture = getattr(self.network, "architecture", None)
        if architecture is None:
            return None
        return {
            "architecture": architecture,
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
        }

    @torch.no_grad()
    def num_classes(self, image_shape: Sequence[int]) -> int:
        """Number of outputs, asked of the network itself with one grey image.

        Raises:
            InputError: the network does not take images of this shape.
        """
        modes = [(module, module.training) for module in self.modules()]
        try:
            image = torch.full((1, *image_shape), 0.5, device=self.mean.device)
            return int(self.eval()(image).shape[1])
        except (RuntimeError, IndexError) as error:
            name = type(self.network).__name__
            raise InputError(
                f"{name} does not take images of shape {tuple(image_shape)}: {error}"
            ) from error
        finally:
            for module, training in modes:
                module.training = training

    def freeze(self) -> "Classifier":
        """Evaluation mode, and no gradient for any parameter; returns self."""
        return self.eval().requires_grad_(False)


def build_classifier(
    architecture: Mapping[str, Any],
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.5,),
) -> Classifier:
    """Build a `Classifier` with fresh weights from a description of its network."""
    return Classifier(build_network(architecture), mean, std)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and gradients through the module but not for its parameters."""
    training = module.training
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    module.eval().requires_grad_(False)
    try:
        yield
    finally:
        module.train(training)
        for parameter in trainable:
            parameter.requires_grad_(True)
